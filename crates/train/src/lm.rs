//! Training of the base: the next token of answers.

use anyhow::Result;
use tokenizers::Tokenizer;

use crate::batch::{Batch, Encoded, bucketed};
use crate::model::{Llama, ModelConfig};
use crate::optimizer::{AdamW, Schedule};
use crate::progress::Progress;
use crate::tokenizer::{END, encode, encode_prompt};
use crate::world::dice::Dice;
use crate::world::pairs;

/// How to train the base.
#[derive(Debug, Clone)]
pub struct LmOptions {
    /// Texts, each seen once.
    pub texts: usize,
    /// Texts a step.
    pub batch: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// Share of the steps that warm up.
    pub warm_up: f64,
}

/// Trains a base from fresh weights; returns it with the mean loss (nats a token) of the last tenth of the steps.
///
/// # Errors
/// A loss or gradient that is not finite; what the libraries report.
pub fn train(
    config: ModelConfig,
    tokenizer: &Tokenizer,
    options: &LmOptions,
    seed: u64,
    quiet: bool,
) -> Result<(Llama, f64)> {
    let model = Llama::fresh(config, seed)?;
    let mut texts = Vec::with_capacity(options.texts);
    for sample in pairs::samples(options.texts, seed) {
        let prompt = encode_prompt(tokenizer, &sample.prompt, sample.preference.as_deref())?;
        texts.push(Encoded::new(&prompt, &encode(tokenizer, &sample.answer)?, END));
    }
    let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
    let batches = bucketed(&lengths, options.batch, &mut Dice::new(seed, 30));
    let steps = batches.len();
    let schedule =
        Schedule { peak: options.rate, warm_up: ((steps as f64 * options.warm_up) as usize).max(1), steps };
    let mut optimizer = AdamW::new(0.05, 1.0);
    let progress = Progress::new("base", steps, quiet);
    let (mut shown, mut last, mut counted) = (0f64, 0f64, 0usize);
    for (step, indices) in batches.iter().enumerate() {
        let chosen: Vec<&Encoded> = indices.iter().map(|index| &texts[*index]).collect();
        let batch = Batch::new(&chosen)?;
        let log_probs = model.log_probs(&batch.tokens, &batch.at, &batch.targets, false)?;
        let loss = log_probs.mean_all()?.neg()?;
        optimizer.update(model.vars(), &loss.backward()?, schedule.rate(step))?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        shown = if step == 0 { loss } else { 0.95 * shown + 0.05 * loss };
        if step * 10 >= steps * 9 {
            last += loss;
            counted += 1;
        }
        progress.step(step, &format!("loss {shown:.3}"));
    }
    Ok((model, last / counted.max(1) as f64))
}
