//! Fits as a reward worker does them, in this process and on one core.

use std::{ops::ControlFlow, path::Path, time::Instant};

use anyhow::Result;
use attune_engine::{BaseModel, LoadOptions, PersRm};
use attune_kernels::Threads;
use attune_profiles::{
    Reference, Vector,
    fit::{Answer, Fitted, Item, Job, Method, Said, fit},
};
use attune_train::{
    export,
    tokenizer::{END, encode, encode_prompt},
    world::Pair,
};
use tokenizers::Tokenizer;

/// A frozen PersRM to fit people on, and the base model for what it says of their answers.
pub struct Fitter {
    persrm: PersRm,
    base: BaseModel,
    tokenizer: Tokenizer,
    threads: Threads,
}

/// How to fit.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// What is fitted.
    pub method: Method,
    /// What it is measured against.
    pub reference: Reference,
    /// As of [`Job::spread`].
    pub spread: Option<f64>,
}

impl Fitter {
    /// Loads both.
    ///
    /// # Errors
    /// A checkpoint cannot be read.
    pub fn open(base: &Path, persrm: &Path) -> Result<Self> {
        let threads = Threads::new(1)?;
        let options = LoadOptions { format: None, context: None, threads: threads.clone() };
        let tokenizer = export::read_tokenizer(base)?;
        let base = BaseModel::load(base, "base", &options)?;
        let persrm = PersRm::load(persrm, "persrm", &options)?;
        Ok(Self { persrm, base, tokenizer, threads })
    }

    /// Whether the model has a latent adapter.
    pub fn has_latents(&self) -> bool {
        self.persrm.latent().is_some()
    }

    /// Fits a person to what they said; gives the seconds that all of it took, encoding and the base model's
    /// share included.
    ///
    /// # Errors
    /// The feedback is refused, or a model failed.
    pub fn fit(&self, said: &[Pair], how: How) -> Result<(Fitted, f64)> {
        let begun = Instant::now();
        let job = Job {
            items: self.items(said, how.reference == Reference::Generator)?,
            reference: how.reference,
            method: how.method,
            start: None,
            spread: how.spread,
        };
        let fitted = fit(&self.persrm, &self.threads, &job, |_| ControlFlow::Continue(()))?;
        Ok((fitted, begun.elapsed().as_secs_f64()))
    }

    /// The share of pairs that a person orders rightly, by exact log-probabilities against the PersRM itself.
    ///
    /// # Errors
    /// A model failed.
    pub fn accuracy(&self, person: &Vector, said: &[Pair], reference: Reference) -> Result<f64> {
        let items = self.items(said, reference == Reference::Generator)?;
        let margins = attune_profiles::fit::margins(&self.persrm, &self.threads, &items, reference, person)?;
        Ok(margins.iter().filter(|m| **m > 0.0).count() as f64 / margins.len().max(1) as f64)
    }

    fn items(&self, said: &[Pair], with_base: bool) -> Result<Vec<Item>> {
        let answer = |prompt: &[u32], text: &str| {
            let mut ids = encode(&self.tokenizer, text)?;
            ids.push(END);
            let log_prob = || self.base.log_prob_on(prompt, &ids, &self.threads);
            let base_log_prob = with_base.then(log_prob).transpose()?;
            Ok::<_, anyhow::Error>(Answer { ids, base_log_prob })
        };
        let item = |pair: &Pair| {
            let prompt = encode_prompt(&self.tokenizer, &pair.prompt, None)?;
            let (chosen, rejected) = (answer(&prompt, &pair.chosen)?, answer(&prompt, &pair.rejected)?);
            Ok(Item { prompt, said: Said::Pair { chosen, rejected } })
        };
        said.iter().map(item).collect()
    }
}
