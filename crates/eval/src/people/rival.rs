//! The rival: an adapter for each person (LoRA, arXiv 2106.09685, by DPO, arXiv 2305.18290) on the same frozen
//! model and the same feedback, trained until it is as accurate.

use std::time::{Duration, Instant};

use anyhow::Result;
use attune_train::{
    batch::{Batch, Encoded},
    lora::Adapter,
    model::Llama,
    optimizer::AdamW,
    tokenizer::{END, encode, encode_prompt},
    world::Pair,
};
use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

/// Rank of the adapter: that of the bench's experts.
const RANK: usize = 16;
/// The learning rate: of 4e-3 (that of the bench's experts), 1e-3 and 3e-4 the one by which most people's adapters
/// get there soonest.
const RATE: f64 = 1e-3;
/// Beta of the bench's experts.
const BETA: f64 = 0.3;
/// Steps after which a rival that is not as accurate yet is given up.
const STEPS: usize = 60;
/// Pairs of one forward pass.
const BATCH: usize = 10;

/// How far a rival came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Seconds of training, on all cores; measuring is not counted.
    pub seconds: f64,
    /// Steps.
    pub steps: usize,
    /// Share of held-out pairs that it orders rightly.
    pub accuracy: f64,
}

/// Pairs with what the frozen model says of their answers.
struct Ready {
    batch: Batch,
    /// Chosen answers, then rejected ones, `[2 * pairs]`.
    frozen: Tensor,
    pairs: usize,
}

/// Trains until the adapter orders `target` of the held-out pairs rightly.
///
/// # Errors
/// A loss that is not finite; what the libraries report.
pub fn train(
    model: &Llama,
    tokenizer: &Tokenizer,
    said: &[Pair],
    held_out: &[Pair],
    target: f64,
    seed: u64,
) -> Result<Outcome> {
    let held_out = ready(model, tokenizer, held_out)?;
    let begun = Instant::now();
    let adapted = model.with_adapter(&Adapter::fresh(model.config(), RANK, 2.0 * RANK as f64, seed)?)?;
    // What the frozen model says is the same at every step, and read once.
    let batches = ready(model, tokenizer, said)?;
    let mut optimizer = AdamW::new(0.0, 1.0);
    let mut spent = begun.elapsed();
    let mut outcome = Outcome { seconds: 0.0, steps: 0, accuracy: 0.0 };
    for steps in 1..=STEPS {
        let begun = Instant::now();
        let batch = &batches[(steps - 1) % batches.len()];
        let margins = (margins(&adapted, batch, false)? * BETA)?;
        // -log sigmoid(m) = -m/2 + log(2 cosh(m/2)).
        let half = (&margins * 0.5)?;
        let loss = ((half.exp()? + half.neg()?.exp()?)?.log()? - &half)?.mean_all()?;
        optimizer.update(adapted.trained(), &loss.backward()?, RATE)?;
        spent += begun.elapsed();
        outcome = Outcome { seconds: seconds(spent), steps, accuracy: accuracy(&adapted, &held_out)? };
        if outcome.accuracy >= target {
            break;
        }
    }
    Ok(outcome)
}

fn seconds(spent: Duration) -> f64 {
    spent.as_secs_f64()
}

fn ready(model: &Llama, tokenizer: &Tokenizer, pairs: &[Pair]) -> Result<Vec<Ready>> {
    let text = |prompt: &str, answer: &str| {
        let prompt = encode_prompt(tokenizer, prompt, None)?;
        Ok::<_, anyhow::Error>(Encoded::new(&prompt, &encode(tokenizer, answer)?, END))
    };
    let of_chunk = |chunk: &[Pair]| {
        let chosen = chunk.iter().map(|pair| text(&pair.prompt, &pair.chosen));
        let texts = chosen
            .chain(chunk.iter().map(|pair| text(&pair.prompt, &pair.rejected)))
            .collect::<Result<Vec<_>>>()?;
        let batch = Batch::new(&texts.iter().collect::<Vec<_>>())?;
        let frozen = of_answers(model, &batch, 2 * chunk.len(), true)?;
        Ok(Ready { batch, frozen, pairs: chunk.len() })
    };
    pairs.chunks(BATCH).map(of_chunk).collect()
}

/// Log-probabilities of the answers of a batch, `[answers]`.
fn of_answers(model: &Llama, batch: &Batch, answers: usize, frozen: bool) -> candle_core::Result<Tensor> {
    let tokens = model.log_probs(&batch.tokens, &batch.at, &batch.targets, frozen)?;
    Tensor::zeros(answers, tokens.dtype(), &Device::Cpu)?.index_add(&batch.owners, &tokens, 0)
}

fn margins(model: &Llama, ready: &Ready, frozen: bool) -> candle_core::Result<Tensor> {
    let n = ready.pairs;
    let ratios = (of_answers(model, &ready.batch, 2 * n, frozen)? - &ready.frozen)?;
    ratios.narrow(0, 0, n)? - ratios.narrow(0, n, n)?
}

fn accuracy(model: &Llama, held_out: &[Ready]) -> Result<f64> {
    let (mut right, mut all) = (0, 0);
    for ready in held_out {
        right += margins(model, ready, true)?.to_vec1::<f32>()?.iter().filter(|m| **m > 0.0).count();
        all += ready.pairs;
    }
    Ok(right as f64 / all.max(1) as f64)
}
