//! Stage one of the PersRM: the DPO-form loss against the frozen base (PAD, section 3.2, with `w_p` as ones).

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use tokenizers::Tokenizer;

use crate::batch::{Batch, Encoded};
use crate::model::Llama;
use crate::tokenizer::{END, encode, encode_prompt};
use crate::trainer::{self, Loss, Recipe, Run, Summary, Task};
use crate::world::pairs;

/// How to train the PersRM.
#[derive(Debug, Clone)]
pub struct DpoOptions {
    /// Pairs, each seen once.
    pub pairs: usize,
    /// Pairs a step.
    pub batch: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// Share of the steps that warm up.
    pub warm_up: f64,
    /// How closely the model is held to its reference; the loss is of `beta` times the log-ratios.
    pub beta: f64,
    /// Weight of the chosen answer's own loss (nats a token), which keeps the grammar; 0 for none.
    pub anchor: f64,
}

/// What training ended with, over the last tenth of the steps; the loss is without the anchor.
pub type DpoOutcome = Summary;

/// A batch of pairs: the chosen answers first, the rejected ones after them, in the same order.
#[derive(Debug)]
pub struct PairBatch {
    batch: Batch,
    pairs: usize,
}

impl PairBatch {
    /// Joins pairs `(chosen, rejected)`.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn new(pairs: &[&(Encoded, Encoded)]) -> candle_core::Result<Self> {
        let texts: Vec<&Encoded> =
            pairs.iter().map(|pair| &pair.0).chain(pairs.iter().map(|pair| &pair.1)).collect();
        Ok(Self { batch: Batch::new(&texts)?, pairs: pairs.len() })
    }

    /// Tokens and targets.
    pub(crate) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Sums over each answer's tokens: `[n]` to `[2 * pairs]`.
    pub(crate) fn by_answer(&self, tokens: &Tensor) -> candle_core::Result<Tensor> {
        let zeros = Tensor::zeros(2 * self.pairs, tokens.dtype(), &Device::Cpu)?;
        zeros.index_add(&self.batch.owners, tokens, 0)
    }
}

/// Log-probability of each answer under the log-softmax over the vocabulary, `[2 * pairs]`.
fn sequence_log_probs(model: &Llama, pairs: &PairBatch, frozen: bool) -> candle_core::Result<Tensor> {
    let batch = &pairs.batch;
    pairs.by_answer(&model.log_probs(&batch.tokens, &batch.at, &batch.targets, frozen)?)
}

/// The loss of a batch, its margins `[pairs]`, and the mean log-probability a token of the chosen answers.
///
/// `loss = mean(-log sigmoid(beta * ((log p(c) - log ref(c)) - (log p(r) - log ref(r)))))` (Rafailov et al. 2023).
///
/// # Errors
/// Ids outside the vocabulary.
pub fn dpo_loss(
    model: &Llama,
    reference: &Llama,
    pairs: &PairBatch,
    beta: f64,
) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
    preference_loss(model, Some(reference), pairs, beta)
}

/// [`dpo_loss`]; without a reference that of an autoregressive reward (GenARM, arXiv 2410.08193, equation 6).
fn preference_loss(
    model: &Llama,
    reference: Option<&Llama>,
    pairs: &PairBatch,
    beta: f64,
) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
    let own = sequence_log_probs(model, pairs, false)?;
    let reference = reference.map(|reference| sequence_log_probs(reference, pairs, true)).transpose()?;
    margins_loss(&own, reference.as_ref(), pairs, beta)
}

/// The loss of answers with these log-probabilities, each `[2 * pairs]`.
pub(crate) fn margins_loss(
    own: &Tensor,
    reference: Option<&Tensor>,
    pairs: &PairBatch,
    beta: f64,
) -> candle_core::Result<(Tensor, Tensor, Tensor)> {
    let ratios = match reference {
        Some(reference) => (own - reference)?,
        None => own.clone(),
    };
    let n = pairs.pairs;
    let margins = ((ratios.narrow(0, 0, n)? - ratios.narrow(0, n, n)?)? * beta)?;
    // -log sigmoid(m) = -m/2 + log(2 cosh(m/2)): smooth at 0, where training starts, and safe to |m| = 170.
    let half = (&margins * 0.5)?;
    let loss = ((half.exp()? + half.neg()?.exp()?)?.log()? - &half)?.mean_all()?;
    let owners = pairs.batch.owners.to_vec1::<u32>()?;
    let chosen = owners.iter().filter(|owner| (**owner as usize) < n).count().max(1);
    let anchor = (own.narrow(0, 0, n)?.sum_all()? / chosen as f64)?;
    Ok((loss, margins, anchor))
}

/// Trains a PersRM from the weights of `base`, which is also its frozen reference, where that lives.
///
/// # Errors
/// A loss or gradient that is not finite; what the libraries report.
pub fn train(
    base: &Llama,
    tokenizer: &Tokenizer,
    options: &DpoOptions,
    seed: u64,
    quiet: bool,
) -> Result<(Llama, DpoOutcome)> {
    let model = Llama::from_tensors(base.config().clone(), &base.tensors())?;
    let outcome = fit(
        &model,
        Some(base),
        tokenizer,
        pairs::pairs(options.pairs, seed),
        options,
        seed,
        ("PersRM", quiet),
    )?;
    Ok((model, outcome))
}

/// Moves what `model` trains by these pairs; without a reference it becomes an autoregressive reward.
/// `shown` is the name of its progress, and whether to show none.
///
/// # Errors
/// As [`train`].
pub fn fit(
    model: &Llama,
    reference: Option<&Llama>,
    tokenizer: &Tokenizer,
    pairs: impl Iterator<Item = pairs::Pair>,
    options: &DpoOptions,
    seed: u64,
    shown: (&'static str, bool),
) -> Result<DpoOutcome> {
    let mut data = Vec::with_capacity(options.pairs);
    for pair in pairs {
        let prompt = encode_prompt(tokenizer, &pair.prompt, pair.preference.as_deref())?;
        let join =
            |answer: &str| Ok::<_, anyhow::Error>(Encoded::new(&prompt, &encode(tokenizer, answer)?, END));
        data.push((join(&pair.chosen)?, join(&pair.rejected)?));
    }
    let task = Pairs { model, reference, data, beta: options.beta, anchor: options.anchor };
    let recipe = Recipe::once(options.batch, options.rate, options.warm_up, (seed, 31));
    trainer::train(&task, &recipe, &Run { name: shown.0, quiet: shown.1, ..Run::default() })?.done()
}

/// Pairs of answers `(chosen, rejected)` that are to be told apart.
#[derive(Debug)]
pub struct Pairs<'a> {
    /// What is trained.
    pub model: &'a Llama,
    /// What its log-probabilities are measured against; without one they are the reward themselves.
    pub reference: Option<&'a Llama>,
    /// The pairs.
    pub data: Vec<(Encoded, Encoded)>,
    /// As [`DpoOptions::beta`].
    pub beta: f64,
    /// As [`DpoOptions::anchor`].
    pub anchor: f64,
}

impl Task for Pairs<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.data.iter().map(|(chosen, rejected)| chosen.ids.len().max(rejected.ids.len())).collect()
    }

    fn weight(&self, examples: &[usize]) -> usize {
        examples.len()
    }

    fn vars(&self) -> &BTreeMap<String, Var> {
        self.model.trained()
    }

    fn loss(&self, examples: &[usize]) -> candle_core::Result<Loss> {
        let pairs = PairBatch::new(&examples.iter().map(|&i| &self.data[i]).collect::<Vec<_>>())?;
        let (loss, margins, anchor) = preference_loss(self.model, self.reference, &pairs, self.beta)?;
        let total = (&loss - (anchor * self.anchor)?)?;
        told(&loss, &margins, total)
    }
}

/// A loss over pairs with what is shown of it.
pub(crate) fn told(loss: &Tensor, margins: &Tensor, total: Tensor) -> candle_core::Result<Loss> {
    let margins = margins.to_vec1::<f32>()?;
    let right = margins.iter().filter(|margin| **margin > 0.0).count() as f64;
    let accuracy = Some(right / margins.len() as f64);
    Ok(Loss { total, shown: f64::from(loss.to_scalar::<f32>()?), accuracy })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lora::Adapter;
    use crate::model::{ModelConfig, Variant};

    pub(crate) fn tiny(seed: u64) -> Llama {
        let config = ModelConfig {
            vocab_size: 23,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 100.0,
            variant: Variant::default(),
        };
        let model = Llama::fresh(config, seed).unwrap();
        // Larger weights than a fresh model's, so that every part of the loss has a slope to check.
        let tensors = model.tensors().into_iter().map(|(name, tensor)| {
            let scale = if name.ends_with("norm.weight") { 1.0 } else { 6.0 };
            (name, (tensor * scale).unwrap())
        });
        Llama::from_tensors(model.config().clone(), &tensors.collect()).unwrap()
    }

    #[test]
    fn the_losss_gradient_is_the_finite_difference() {
        let (model, reference) = (tiny(1), tiny(2));
        let pairs = [
            (Encoded::new(&[1, 3, 9, 4], &[7, 8, 11], 2), Encoded::new(&[1, 3, 9, 4], &[7, 12], 2)),
            (Encoded::new(&[1, 5, 4], &[13], 2), Encoded::new(&[1, 5, 4], &[14, 15, 16, 17], 2)),
        ];
        let batch = PairBatch::new(&[&pairs[0], &pairs[1]]).unwrap();
        slopes_are_finite_differences(model.vars(), &|| dpo_loss(&model, &reference, &batch, 0.5).unwrap().0);
        // The same through an adapter: its two thin matrices are what is trained.
        let adapter = Adapter::fresh(model.config(), 3, 6.0, 5).unwrap();
        for (i, var) in adapter.vars().values().enumerate() {
            let values = (0..var.elem_count()).map(|n| ((n * 7 + i) % 9) as f32 / 16.0 - 0.25).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let worn = model.with_adapter(&adapter).unwrap();
        slopes_are_finite_differences(worn.trained(), &|| {
            dpo_loss(&worn, &reference, &batch, 0.5).unwrap().0
        });
    }

    /// Checks every variable's gradient against the difference of two losses.
    pub(crate) fn slopes_are_finite_differences(vars: &BTreeMap<String, Var>, loss: &dyn Fn() -> Tensor) {
        let grads = loss().backward().unwrap();
        for (name, var) in vars {
            // Along the gradient's own direction the slope is its length: one difference checks the whole tensor.
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let length = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(length > 1e-5, "{name}: {length}");
            let start = var.as_detached_tensor().copy().unwrap();
            let step = 0.01f64;
            let along = (grad / f64::from(length)).unwrap();
            let at = |amount: f64| {
                var.set(&(&start + (&along * amount).unwrap()).unwrap()).unwrap();
                f64::from(loss().to_scalar::<f32>().unwrap())
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            var.set(&start).unwrap();
            let error = (slope - f64::from(length)).abs();
            assert!(error < 0.01 * f64::from(length) + 2e-5, "{name}: slope {slope}, gradient {length}");
        }
    }

    #[test]
    fn a_model_that_is_its_reference_loses_log_two() {
        let model = tiny(3);
        let pair = (Encoded::new(&[1, 4], &[7], 2), Encoded::new(&[1, 4], &[8, 9], 2));
        let batch = PairBatch::new(&[&pair]).unwrap();
        let (loss, margins, _) = dpo_loss(&model, &model, &batch, 0.1).unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() - std::f32::consts::LN_2).abs() < 1e-6);
        assert_eq!(margins.to_vec1::<f32>().unwrap(), [0.0]);
        // The slope at the start is not zero: training can leave it.
        assert!(
            !loss
                .backward()
                .unwrap()
                .get(&model.vars()["model.norm.weight"])
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
                .is_nan()
        );
    }
}
