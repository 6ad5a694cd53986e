//! The pieces of one step, each by itself, beside the floor of the same run.

use std::{
    fmt::Write as _,
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use attune_guidance::{Candidates, Sampling, Term};
use attune_kernels::{Format, FuseRow, fuse_sample};
use serde::Serialize;

use crate::{
    floor::{Bandwidth, Role, step_bytes},
    report::median,
    solo::{Found, K, Solo, SoloStep},
    timed::{TimedConfig, TimedWorker},
    wire::{self, Exchange},
};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// The base model's folder.
    pub base: &'a Path,
    /// The PersRM's folder.
    pub persrm: &'a Path,
    /// How weights are stored. `None`: as in the checkpoint.
    pub format: Option<Format>,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Steps of each model.
    pub steps: usize,
}

/// Medians of one run, in seconds, for one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PieceTimes {
    /// The generator's layers and output head.
    pub generator_forward: f64,
    /// Top-k and log-sum-exp over the vocabulary.
    pub select: f64,
    /// The reward model's layers and value head.
    pub reward_forward: f64,
    /// The candidates' rewards.
    pub score: f64,
    /// Fusion and choice.
    pub fuse: f64,
    /// From `Candidates` sent to `Rewards` received on loopback, where nothing is computed.
    pub wire: f64,
    /// Bytes a second that all threads read from memory in this run.
    pub bandwidth: f64,
    /// Bytes of weights that the generator's forward reads.
    pub generator_bytes: f64,
    /// Bytes of weights that the reward model's forward reads.
    pub reward_bytes: f64,
}

/// Measures the pieces, the two models in turn, the bandwidth in between.
///
/// # Errors
/// A checkpoint cannot be loaded, or a step failed.
///
/// # Panics
/// Within a runtime of tokio: it blocks.
pub fn measure(pieces: &Pieces<'_>, on_step: impl Fn()) -> Result<PieceTimes> {
    let Pieces { base, persrm, format, threads, prompt, steps } = *pieces;
    let load = |folder, role| Solo::load(folder, role, format, threads, prompt);
    let (mut generator, mut reward) = (load(base, Role::Base)?, load(persrm, Role::Reward)?);
    let bandwidth = Bandwidth::new(threads)?;
    let (mut generator_steps, mut reward_steps) = (Vec::new(), Vec::new());
    let (mut fuse, mut read) = (Vec::new(), Vec::new());
    for i in 0..steps {
        if i % steps.div_ceil(4) == 0 {
            read.push(bandwidth.measure());
        }
        // Both models go through the caches in each round, as in the pair.
        let ours = generator.step()?;
        let theirs = reward.step()?;
        if let (Found::Candidates(candidates), Found::Rewards(rewards)) = (&ours.found, &theirs.found) {
            fuse.push(fused(candidates, rewards));
        }
        generator_steps.push(ours);
        reward_steps.push(theirs);
        on_step();
    }
    let exchanges = tokio::runtime::Runtime::new()?.block_on(round_trips(steps.clamp(10, 200)))?;
    let of = |steps: &[SoloStep], part: fn(&SoloStep) -> Duration| {
        middle(steps.iter().map(|s| part(s).as_secs_f64()))
    };
    Ok(PieceTimes {
        generator_forward: of(&generator_steps, |s| s.forward),
        select: of(&generator_steps, |s| s.choose),
        reward_forward: of(&reward_steps, |s| s.forward),
        score: of(&reward_steps, |s| s.choose),
        fuse: middle(fuse),
        wire: middle(exchanges.iter().map(|e| e.added().as_secs_f64())),
        bandwidth: middle(read),
        generator_bytes: step_bytes(base, Role::Base, generator.format(), K)?,
        reward_bytes: step_bytes(persrm, Role::Reward, reward.format(), K)?,
    })
}

/// Exchanges with a worker that computes nothing.
async fn round_trips(count: usize) -> Result<Vec<Exchange>> {
    let worker = TimedWorker::start(TimedConfig {
        slots: 1,
        forward: Duration::ZERO,
        on_card: false,
        fingerprint: String::new(),
        vocab: u32::MAX,
        model_id: "timed".to_owned(),
    })?;
    wire::probe(&worker.endpoint(), 1, K, count).await
}

fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    median(values).unwrap_or(f64::NAN)
}

fn fused(candidates: &Candidates, rewards: &[f32]) -> f64 {
    let terms = [Term { strength: 0.8, clip: None, rewards }];
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, index: 0 };
    let row = FuseRow { candidates, terms: &terms, min_p: 0.0, sampling };
    let start = Instant::now();
    // The result is of no interest, but must be made.
    let _ = black_box(fuse_sample(&[row]));
    start.elapsed().as_secs_f64()
}

impl PieceTimes {
    /// A table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let floor = |bytes: f64| bytes / self.bandwidth;
        let mut line = |name: &str, seconds: f64, bytes: Option<f64>| {
            let beside = bytes.map_or(String::new(), |bytes| {
                let (mb, ms) = (bytes / 1e6, floor(bytes) * 1e3);
                format!("   {:.2} times its floor ({mb:.0} MB, {ms:.2} ms)", seconds / floor(bytes))
            });
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<20} {:9.3} ms{beside}", seconds * 1e3);
        };
        line("generator forward", self.generator_forward, Some(self.generator_bytes));
        line("select", self.select, None);
        line("reward forward", self.reward_forward, Some(self.reward_bytes));
        line("score", self.score, None);
        line("fuse", self.fuse, None);
        line("wire round trip", self.wire, None);
        let _ = writeln!(out, "{:<20} {:9.2} GB/s", "read bandwidth", self.bandwidth / 1e9);
        out
    }
}

#[cfg(test)]
mod tests {
    use attune_engine::random_checkpoint::{self, Family, Kind, Shape};

    use super::*;

    #[test]
    fn every_piece_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let kind = Kind::PersRm { value_head: true };
        random_checkpoint::write(folder.path(), &Shape::tiny(Family::Llama), 1, kind).unwrap();
        let path = folder.path();
        let pieces = Pieces { base: path, persrm: path, format: None, threads: 1, prompt: 16, steps: 4 };
        let times = measure(&pieces, || ()).unwrap();
        let PieceTimes { generator_forward, select, reward_forward, score, fuse, wire, bandwidth, .. } =
            times;
        for seconds in [generator_forward, select, reward_forward, score, fuse, wire] {
            assert!(seconds > 0.0 && seconds < 1.0, "{times:?}");
        }
        assert!(bandwidth > 1e8 && times.generator_bytes > times.reward_bytes, "{times:?}");
        assert!(times.table().contains("times its floor"));
    }
}
