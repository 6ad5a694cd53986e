//! The kernels' times on a card, and decoding there.

use std::{path::Path, time::Duration};

use anyhow::Result;
use attune_engine::{
    Tokenizer,
    random_checkpoint::{Family, Shape},
};
use attune_kernels::cuda::Gpu;
use serde::Serialize;

use super::{
    Extent,
    kernel_speed::{SELECT_IN_A_STEP, time_kernels},
    models::random_base,
    pair::{guided, plain},
};
use crate::{
    load::{Arrivals, Load, drive},
    prompts,
    report::Report,
    service::Service,
    timed::{TimedConfig, TimedWorker},
};

/// One kernel at one size.
#[derive(Debug, Clone, Serialize)]
pub struct KernelTime {
    /// The kernel.
    pub kernel: &'static str,
    /// Rows.
    pub rows: usize,
    /// Columns: the vocabulary, or `d`.
    pub columns: usize,
    /// The median of the card's own clock, in microseconds.
    pub microseconds: f64,
    /// Bytes that it has to move over that time, as a share of the measured bandwidth of a copy.
    pub of_copy_bandwidth: f64,
}

/// What the fusion of a step takes, in microseconds, candidates being on the host.
#[derive(Debug, Clone, Serialize)]
pub struct FuseTime {
    /// Rows.
    pub rows: usize,
    /// On the host.
    pub host: f64,
    /// There and back, with the kernel.
    pub device: f64,
}

/// Decoding of one model at one batch.
#[derive(Debug, Clone, Serialize)]
pub struct DecodeTime {
    /// The model's shape.
    pub model: &'static str,
    /// Streams at once.
    pub streams: usize,
    /// Tokens a second without guidance.
    pub plain: f64,
    /// With guidance, the reward side a timed wait as long as a plain step.
    pub guided: f64,
    /// The median plain step, in milliseconds.
    pub step_ms: f64,
    /// Share of the guided time that was spent waiting for rewards.
    pub reward_wait: f64,
    /// The same with a reward side that computes nothing: the wire.
    pub wire: f64,
    /// `select` and `fuse_sample` at this batch, and `score`, over the plain step, where they were measured.
    pub kernels: Option<f64>,
}

/// Everything that is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Speeds {
    /// The card.
    pub card: String,
    /// Bytes a second of a copy on the card, read and written.
    pub copy_bandwidth: f64,
    /// Each kernel at each size.
    pub kernels: Vec<KernelTime>,
    /// Fusion on the host and on the card.
    pub fuse: Vec<FuseTime>,
    /// Decoding.
    pub decode: Vec<DecodeTime>,
}

/// A random model whose decoding is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Two small layers.
    Tiny,
    /// As Llama 3.2 of a billion weights.
    OneBillion,
    /// As Llama 3.1 of eight.
    EightBillion,
}

impl Model {
    fn shape(self) -> (&'static str, Shape) {
        match self {
            Self::Tiny => ("tiny", Shape::tiny(Family::Llama)),
            Self::OneBillion => ("1b", Shape::one_billion()),
            Self::EightBillion => ("8b", Shape::eight_billion()),
        }
    }
}

/// Measures kernels and decoding, or decoding `only` with these models; `say` hears what is under way.
///
/// # Errors
/// The card or a service failed.
pub async fn measure(gpu: &Gpu, extent: &Extent, only: &[Model], say: impl Fn(&str)) -> Result<Speeds> {
    let (copy_bandwidth, kernels, fuse) = if only.is_empty() {
        time_kernels(gpu, extent.quick, &say)?
    } else {
        (f64::NAN, Vec::new(), Vec::new())
    };
    let card = gpu.name();
    let models: &[Model] = match only {
        [] if extent.quick => &[Model::Tiny],
        [] => &[Model::OneBillion, Model::EightBillion],
        only => only,
    };
    let mut decode = Vec::new();
    for (name, shape) in models.iter().map(|model| model.shape()) {
        say(&format!("writing a random checkpoint of shape {name}"));
        let folder = random_base(&extent.work, name, &shape)?;
        decode.extend(decoding(gpu.ordinal(), extent, name, &shape, &folder, &kernels, &say).await?);
    }
    Ok(Speeds { card, copy_bandwidth, kernels, fuse, decode })
}

async fn decoding(
    ordinal: usize,
    extent: &Extent,
    model: &'static str,
    shape: &Shape,
    folder: &Path,
    kernels: &[KernelTime],
    say: &impl Fn(&str),
) -> Result<Vec<DecodeTime>> {
    let tokenizer = Tokenizer::load(folder)?;
    let worker = TimedWorker::start(TimedConfig {
        slots: 256,
        forward: Duration::ZERO,
        on_card: true,
        fingerprint: tokenizer.fingerprint(tokenizer.size() as u32),
        vocab: shape.vocab as u32,
        model_id: "timed".into(),
    })?;
    say(&format!("a generator on {model}"));
    let args = [
        "--model",
        &folder.to_string_lossy(),
        "--device",
        &format!("cuda:{ordinal}"),
        "--context",
        "512",
        "--cache-mib",
        if extent.quick { "64" } else { "8192" },
        "--reward",
        &worker.endpoint(),
        // Every text reads its prompt, in each run.
        "--set",
        "prefix_cache=false",
    ]
    .map(str::to_owned);
    let generator = Service::start(&extent.binaries, "attune-generator", &args).await?;
    let client = generator.client().await?;
    let (length, tokens) = if extent.quick { (8, 4) } else { (128, 128) };
    let ids = prompts::random_ids(64, length, shape.vocab, 3);
    let mut times = Vec::new();
    for &streams in if extent.quick { &[1usize, 2][..] } else { &[1, 16, 64] } {
        say(&format!("{model}, {streams} streams"));
        let texts = if extent.quick { streams } else { 4 * streams };
        let load = Load { streams, texts, warmup: streams, arrivals: Arrivals::Closed, seed: 0 };
        let run = async |request: fn(Vec<u32>, usize, f32) -> _| -> Result<Report> {
            let requests: Vec<_> = ids.iter().map(|ids| request(ids.clone(), tokens, 0.0)).collect();
            Ok(Report::new(&drive(&client, &requests, &load, || ()).await?))
        };
        let without = run(plain).await?;
        let step = without.time_per_output_token.map_or(f64::NAN, |p| p.p50);
        worker.set_forward(Duration::ZERO);
        let wire = run(guided).await?.reward_wait_share.unwrap_or(f64::NAN);
        worker.set_forward(Duration::from_secs_f64(if step.is_finite() { step } else { 0.0 }));
        let with = run(guided).await?;
        times.push(DecodeTime {
            model,
            streams,
            plain: without.tokens_per_second,
            guided: with.tokens_per_second,
            step_ms: step * 1e3,
            reward_wait: with.reward_wait_share.unwrap_or(f64::NAN),
            wire,
            kernels: share(kernels, streams, step),
        });
    }
    Ok(times)
}

/// The kernels of a step at the nearest batch that was measured, over the step.
fn share(kernels: &[KernelTime], streams: usize, step: f64) -> Option<f64> {
    let at = |kernel: &str| {
        let own = kernels.iter().filter(|k| k.kernel == kernel && k.rows >= streams);
        own.map(|k| (k.rows, k.columns, k.microseconds))
            .min_by_key(|k| (k.0, usize::MAX - k.1))
            .map(|k| k.2 * 1e-6)
    };
    Some((at(SELECT_IN_A_STEP)? + at("score")? + at("fuse_sample")?) / step)
}

impl Speeds {
    /// The tables, for people.
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut out = format!("{}\n", self.card);
        if !self.kernels.is_empty() {
            self.kernel_table(&mut out);
        }
        let _ = writeln!(
            out,
            "\n{:<6} {:>7} {:>10} {:>10} {:>7} {:>8} {:>7} {:>6} {:>8}",
            "model", "streams", "plain/s", "guided/s", "ratio", "step ms", "reward", "wire", "kernels"
        );
        for d in &self.decode {
            let _ = writeln!(
                out,
                "{:<6} {:>7} {:>10.0} {:>10.0} {:>7.2} {:>8.2} {:>6.1}% {:>5.1}% {:>8}",
                d.model,
                d.streams,
                d.plain,
                d.guided,
                d.guided / d.plain,
                d.step_ms,
                100.0 * d.reward_wait,
                100.0 * d.wire,
                d.kernels.map_or("-".into(), |share| format!("{:.1}%", 100.0 * share))
            );
        }
        out
    }

    fn kernel_table(&self, out: &mut String) {
        use std::fmt::Write as _;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "a copy moves {:.0} GB/s\n", self.copy_bandwidth / 1e9);
        let _ =
            writeln!(out, "{:<12} {:>5} {:>8} {:>10} {:>9}", "kernel", "rows", "columns", "us", "of copy");
        for k in &self.kernels {
            let share = 100.0 * k.of_copy_bandwidth;
            let _ = writeln!(
                out,
                "{:<12} {:>5} {:>8} {:>10.1} {:>8.0}%",
                k.kernel, k.rows, k.columns, k.microseconds, share
            );
        }
        let _ = writeln!(out, "\n{:<12} {:>5} {:>10} {:>10}", "fusion", "rows", "host us", "card us");
        for f in &self.fuse {
            let _ = writeln!(out, "{:<12} {:>5} {:>10.1} {:>10.1}", "", f.rows, f.host, f.device);
        }
    }
}
