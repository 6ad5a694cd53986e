//! Training of language models: the next token of answers.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Var};
use tokenizers::Tokenizer;

use crate::batch::{Batch, Encoded};
use crate::model::{Llama, ModelConfig};
use crate::tokenizer::{END, encode, encode_prompt};
use crate::trainer::{self, Loss, Recipe, Run, Task};
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

/// Texts whose answers are to be foretold.
#[derive(Debug)]
pub struct Texts<'a> {
    model: &'a Llama,
    texts: Vec<Encoded>,
}

impl<'a> Texts<'a> {
    /// For what `model` trains.
    pub fn new(model: &'a Llama, texts: Vec<Encoded>) -> Self {
        Self { model, texts }
    }
}

impl Task for Texts<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.texts.iter().map(|text| text.ids.len()).collect()
    }

    fn weight(&self, examples: &[usize]) -> usize {
        examples.iter().map(|&i| self.texts[i].ids.len() - self.texts[i].answer).sum()
    }

    fn vars(&self) -> &BTreeMap<String, Var> {
        self.model.trained()
    }

    /// The mean negative log-probability of an answer's token.
    fn loss(&self, examples: &[usize]) -> candle_core::Result<Loss> {
        let batch = Batch::new(&examples.iter().map(|&i| &self.texts[i]).collect::<Vec<_>>())?;
        let log_probs = self.model.log_probs(&batch.tokens, &batch.at, &batch.targets, false)?;
        let total = log_probs.mean_all()?.neg()?;
        Ok(Loss { shown: f64::from(total.to_scalar::<f32>()?), total, accuracy: None })
    }
}

/// Trains a base from fresh weights on a device; returns it, on the CPU, with the mean loss (nats a token) of the
/// last tenth of the steps.
///
/// # Errors
/// A loss or gradient that is not finite; what the libraries report.
pub fn train(
    config: ModelConfig,
    tokenizer: &Tokenizer,
    options: &LmOptions,
    seed: u64,
    quiet: bool,
    device: &Device,
) -> Result<(Llama, f64)> {
    let model = Llama::fresh(config, seed)?.on(device)?;
    let mut texts = Vec::with_capacity(options.texts);
    for sample in pairs::samples(options.texts, seed) {
        let prompt = encode_prompt(tokenizer, &sample.prompt, sample.preference.as_deref())?;
        texts.push(Encoded::new(&prompt, &encode(tokenizer, &sample.answer)?, END));
    }
    let recipe =
        Recipe { decay: 0.05, ..Recipe::once(options.batch, options.rate, options.warm_up, (seed, 30)) };
    let run = Run { name: "base", quiet, ..Run::default() };
    let summary = trainer::train(&Texts::new(&model, texts), &recipe, &run)?.done()?;
    Ok((model.on(&Device::Cpu)?, summary.loss))
}
