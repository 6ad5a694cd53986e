//! One model that decodes by itself, without any service: what the pair's coupling is measured against,
//! and where the pieces of a step are taken apart.

use std::{
    io::{BufRead, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use attune_engine::{
    BaseModel, DecoderConfig, LoadOptions, Output, PersRm, SequenceRows, Side,
    kv::{KvCache, blocks_for},
};
use attune_guidance::Candidates;
use attune_kernels::{Edits, Format, ScoreJob, Threads, score, select_row};
use serde::{Deserialize, Serialize};

use crate::{floor::Role, prompts};

/// Candidates of a step.
pub const K: usize = 10;
/// Tokens that are decoded behind the prompt before decoding goes back to the prompt's end.
const TOKENS: usize = 64;

enum Model {
    Base(Box<BaseModel>),
    Reward(Box<PersRm>),
}

/// One model with a cache, behind a prompt of random ids.
pub struct Solo {
    model: Model,
    cache: KvCache,
    blocks: Vec<u32>,
    prompt: usize,
    position: usize,
    token: u32,
    threads: Threads,
}

/// What one step took.
#[derive(Debug, Clone)]
pub struct SoloStep {
    /// The layers: for the base model with the output head, for the reward model with the value head.
    pub forward: Duration,
    /// Base: top-k and log-sum-exp. Reward: the dot products of the candidates' rows.
    pub choose: Duration,
    /// What was found; the reward model's candidates are fixed ids.
    pub found: Found,
}

/// The result of a step.
#[derive(Debug, Clone)]
pub enum Found {
    /// The base model's candidates.
    Candidates(Candidates),
    /// The candidates' rewards.
    Rewards(Vec<f32>),
}

impl Solo {
    /// Loads a checkpoint and reads a prompt of `prompt` random ids.
    ///
    /// # Errors
    /// What the folder, the memory or the context has wrong.
    pub fn load(
        folder: &Path,
        role: Role,
        format: Option<Format>,
        threads: usize,
        prompt: usize,
    ) -> Result<Self> {
        let threads = Threads::new(threads)?;
        let options = LoadOptions { format, context: None, threads: threads.clone() };
        let model = match role {
            Role::Base => Model::Base(Box::new(BaseModel::load(folder, "base", &options)?)),
            Role::Reward => Model::Reward(Box::new(PersRm::load(folder, "reward", &options)?)),
        };
        let config = model.config();
        let length = prompt + TOKENS;
        ensure!(
            prompt > 0 && length <= config.context,
            "a prompt of {prompt} tokens does not fit the context"
        );
        let blocks = blocks_for(length);
        let cache = KvCache::new(config, blocks, &candle_core::Device::Cpu)?;
        let ids = prompts::random_ids(1, prompt, config.vocab, 7).remove(0);
        let mut solo = Self {
            model,
            cache,
            blocks: (0..blocks as u32).collect(),
            prompt,
            position: 0,
            token: 0,
            threads,
        };
        for chunk in ids.chunks(64) {
            solo.read(chunk, Output::Nothing)?;
            solo.position += chunk.len();
        }
        solo.token = ids[prompt - 1];
        Ok(solo)
    }

    /// How its weights are stored.
    pub fn format(&self) -> Format {
        match &self.model {
            Model::Base(model) => model.assets.format,
            Model::Reward(model) => model.assets.format,
        }
    }

    /// Decodes one token.
    ///
    /// # Errors
    /// The forward pass failed, or its numbers are not finite.
    pub fn step(&mut self) -> Result<SoloStep> {
        if self.position == self.prompt + TOKENS {
            self.position = self.prompt;
        }
        let start = Instant::now();
        let numbers = self.read(&[self.token], Output::Last)?;
        let forward = start.elapsed();
        self.position += 1;
        let start = Instant::now();
        let found = match &self.model {
            Model::Base(_) => Found::Candidates(select_row(&numbers, K, &Edits::NONE)?),
            Model::Reward(model) => {
                let vocab = model.assets.config.vocab as u32;
                let ids: Vec<u32> = (0..K as u32).map(|i| (self.token + i * 3001) % vocab).collect();
                let job = ScoreJob {
                    table: model.head(Side::Policy),
                    features: &numbers,
                    ids: &ids,
                    reference: None,
                    over_vocabulary: false,
                };
                Found::Rewards(score(&[job], &self.threads).remove(0)?)
            }
        };
        let choose = start.elapsed();
        self.token = match &found {
            Found::Candidates(candidates) => candidates.ids[0],
            Found::Rewards(_) => (self.token + 17) % self.model.config().vocab as u32,
        };
        Ok(SoloStep { forward, choose, found })
    }

    /// Reads tokens; gives the logits, or the features, of the last where they are wanted.
    fn read(&self, tokens: &[u32], output: Output) -> Result<Vec<f32>> {
        let rows = [SequenceRows { tokens, start: self.position, blocks: &self.blocks, output }];
        Ok(match &self.model {
            Model::Base(model) => model.logits(&model.decoder.forward(&rows, &self.cache)?)?,
            Model::Reward(model) => {
                model.features(Side::Policy, &rows, &self.cache)?.into_iter().next().unwrap_or_default()
            }
        })
    }
}

impl Model {
    fn config(&self) -> &DecoderConfig {
        match self {
            Self::Base(model) => &model.assets.config,
            Self::Reward(model) => &model.assets.config,
        }
    }
}

/// What a child process is asked: decode for this long.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ask {
    /// Seconds.
    pub seconds: f64,
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Milliseconds of each step.
    pub step_ms: Vec<f64>,
}

/// Decodes on demand, as a child process: one JSON object a line on stdin, one on stdout. The first
/// line on stdout says that the model is loaded.
///
/// # Errors
/// A line is no [`Ask`], the pipe broke, or a step failed.
pub fn serve(mut solo: Solo, asks: impl BufRead, mut answers: impl Write) -> Result<()> {
    writeln!(answers, "{{\"ready\": true}}")?;
    answers.flush()?;
    for line in asks.lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let end = Instant::now() + Duration::try_from_secs_f64(ask.seconds)?;
        let mut step_ms = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            solo.step()?;
            step_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        writeln!(answers, "{}", serde_json::to_string(&Answer { step_ms })?)?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use attune_engine::random_checkpoint::{self, Family, Kind, Shape};

    use super::*;

    #[test]
    fn both_models_decode_on_demand() {
        let folder = tempfile::tempdir().unwrap();
        let kind = Kind::PersRm { value_head: true };
        random_checkpoint::write(folder.path(), &Shape::tiny(Family::Llama), 1, kind).unwrap();
        for role in [Role::Base, Role::Reward] {
            let mut solo = Solo::load(folder.path(), role, None, 1, 20).unwrap();
            for _ in 0..TOKENS + 5 {
                match (role, solo.step().unwrap().found) {
                    (Role::Base, Found::Candidates(candidates)) => assert_eq!(candidates.len(), K),
                    (Role::Reward, Found::Rewards(rewards)) => assert_eq!(rewards.len(), K),
                    (_, found) => panic!("{role:?} found {found:?}"),
                }
            }
            let mut out = Vec::new();
            serve(solo, &b"{\"seconds\": 0.01}\n"[..], &mut out).unwrap();
            let lines: Vec<&str> = std::str::from_utf8(&out).unwrap().lines().collect();
            let answer: Answer = serde_json::from_str(lines[1]).unwrap();
            assert!(!answer.step_ms.is_empty() && lines.len() == 2, "{lines:?}");
        }
    }

    #[test]
    fn a_prompt_longer_than_the_context_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        random_checkpoint::write(folder.path(), &Shape::tiny(Family::Llama), 1, Kind::Base).unwrap();
        assert!(Solo::load(folder.path(), Role::Base, None, 1, 500).is_err());
    }
}
