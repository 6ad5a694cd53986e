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
    /// `select` and `fuse_sample` at this batch, and `score`, over the plain step.
    pub kernels: f64,
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

/// Measures kernels and decoding; `say` hears what is under way.
///
/// # Errors
/// The card or a service failed.
pub async fn measure(gpu: &Gpu, extent: &Extent, say: impl Fn(&str)) -> Result<Speeds> {
    let (copy_bandwidth, kernels, fuse) = time_kernels(gpu, extent.quick, &say)?;
    let card = gpu.name();
    let sizes = if extent.quick {
        vec![("tiny", Shape::tiny(Family::Llama))]
    } else {
        vec![("1b", Shape::one_billion()), ("8b", Shape::eight_billion())]
    };
    let mut decode = Vec::new();
    for (name, shape) in sizes {
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
        grace: Duration::ZERO,
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
    ]
    .map(str::to_owned);
    let generator = Service::start(&extent.binaries, "attune-generator", &args).await?;
    let client = generator.client().await?;
    let (length, tokens) = if extent.quick { (8, 4) } else { (128, 64) };
    let ids = prompts::random_ids(64, length, shape.vocab, 3);
    let mut times = Vec::new();
    for &streams in if extent.quick { &[1usize, 2][..] } else { &[1, 16, 64] } {
        say(&format!("{model}, {streams} streams"));
        let load = Load { streams, texts: streams, warmup: streams, arrivals: Arrivals::Closed, seed: 0 };
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
fn share(kernels: &[KernelTime], streams: usize, step: f64) -> f64 {
    let at = |kernel: &str| {
        let own = kernels.iter().filter(|k| k.kernel == kernel && k.rows >= streams);
        own.map(|k| (k.rows, k.columns, k.microseconds))
            .min_by_key(|k| (k.0, usize::MAX - k.1))
            .map_or(f64::NAN, |k| k.2)
    };
    (at(SELECT_IN_A_STEP) + at("score") + at("fuse_sample")) * 1e-6 / step
}

impl Speeds {
    /// The tables, for people.
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut out = format!("{}: a copy moves {:.0} GB/s\n\n", self.card, self.copy_bandwidth / 1e9);
        // Writing to a string cannot fail.
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
        let _ = writeln!(
            out,
            "\n{:<6} {:>7} {:>10} {:>10} {:>7} {:>8} {:>7} {:>6} {:>8}",
            "model", "streams", "plain/s", "guided/s", "ratio", "step ms", "reward", "wire", "kernels"
        );
        for d in &self.decode {
            let _ = writeln!(
                out,
                "{:<6} {:>7} {:>10.0} {:>10.0} {:>7.2} {:>8.2} {:>6.1}% {:>5.1}% {:>7.1}%",
                d.model,
                d.streams,
                d.plain,
                d.guided,
                d.guided / d.plain,
                d.step_ms,
                100.0 * d.reward_wait,
                100.0 * d.wire,
                100.0 * d.kernels
            );
        }
        out
    }
}
