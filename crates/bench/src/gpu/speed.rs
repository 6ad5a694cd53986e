//! The kernels' times on a card, and decoding there.

use std::{
    cell::RefCell,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use attune_engine::{
    Tokenizer,
    random_checkpoint::{Family, Shape},
};
use attune_kernels::{
    Edits, SelectRow,
    cuda::{CardRow, CardScore, CudaError, Element, Gpu, Matrix},
    fuse_sample,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{
    Extent,
    kernels::{Fusable, numbers},
    models::random_base,
    pair::{guided, plain},
};
use crate::{
    load::{Arrivals, Load, drive},
    prompts,
    report::{Report, median},
    service::Service,
    timed::{TimedConfig, TimedWorker},
};

/// Candidates of a step.
const K: usize = 10;
/// The selection as a step makes it: a product leaves logits in single precision.
const SELECT_IN_A_STEP: &str = "select_f32";
/// Bytes that no card's cache holds: written before every measured launch.
const FLUSH: usize = 256 << 20;

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

struct Bench<'a> {
    gpu: &'a Gpu,
    flush: RefCell<Matrix>,
    copy_bandwidth: f64,
    rounds: usize,
}

/// Measures kernels and decoding; `say` hears what is under way.
///
/// # Errors
/// The card or a service failed.
pub async fn measure(gpu: &Gpu, extent: &Extent, say: impl Fn(&str)) -> Result<Speeds> {
    let mut bench = Bench {
        gpu,
        flush: RefCell::new(gpu.zero_matrix(Element::F32, 1, if extent.quick { 1024 } else { FLUSH / 4 })?),
        copy_bandwidth: f64::NAN,
        rounds: if extent.quick { 2 } else { 30 },
    };
    bench.copy_bandwidth = bench.copy()?;
    let batches: &[usize] = if extent.quick { &[1, 3] } else { &[1, 8, 64, 256] };
    let vocabularies: &[usize] = if extent.quick { &[3000] } else { &[32_000, 128_256, 151_936] };
    let d = if extent.quick { 128 } else { 4096 };
    let mut kernels = Vec::new();
    for &rows in batches {
        say(&format!("kernels, {rows} rows"));
        for &vocab in vocabularies {
            kernels.push(bench.select("select", Element::Bf16, rows, vocab)?);
            kernels.push(bench.select(SELECT_IN_A_STEP, Element::F32, rows, vocab)?);
        }
        kernels.push(bench.score(rows, d)?);
        kernels.push(bench.fuse(rows)?);
    }
    let fuse = batches.iter().map(|&rows| bench.fusions(rows)).collect::<Result<_>>()?;
    let (card, copy_bandwidth) = (gpu.name(), bench.copy_bandwidth);
    let sizes = if extent.quick {
        vec![("tiny", Shape::tiny(Family::Llama))]
    } else {
        vec![("1b", Shape::one_billion()), ("8b", Shape::eight_billion())]
    };
    drop(bench);
    let mut decode = Vec::new();
    for (name, shape) in sizes {
        say(&format!("writing a random checkpoint of shape {name}"));
        let folder = random_base(&extent.work, name, &shape)?;
        decode.extend(decoding(gpu.ordinal(), extent, name, &shape, &folder, &kernels, &say).await?);
    }
    Ok(Speeds { card, copy_bandwidth, kernels, fuse, decode })
}

impl Bench<'_> {
    /// The median of the launches, in seconds, nothing of their input in the card's cache.
    fn time(&self, launch: impl Fn() -> Result<(), CudaError>) -> Result<f64> {
        let mut times = Vec::new();
        for round in 0..self.rounds + 3 {
            // It keeps the card busy while the host hands over what is measured.
            self.gpu.clear(&mut self.flush.borrow_mut())?;
            let time = self.gpu.time(&launch)?;
            if round >= 3 {
                times.push(time);
            }
        }
        Ok(median(times).unwrap_or(f64::NAN))
    }

    fn copy(&self) -> Result<f64> {
        let bytes = self.flush.borrow().bytes();
        let seconds = self.time(|| self.gpu.copy(&self.flush.borrow()).map(drop))?;
        Ok(2.0 * bytes as f64 / seconds)
    }

    fn of(
        &self,
        kernel: &'static str,
        rows: usize,
        columns: usize,
        bytes: usize,
        seconds: f64,
    ) -> KernelTime {
        let of_copy_bandwidth = bytes as f64 / seconds / self.copy_bandwidth;
        KernelTime { kernel, rows, columns, microseconds: seconds * 1e6, of_copy_bandwidth }
    }

    fn select(&self, name: &'static str, element: Element, rows: usize, vocab: usize) -> Result<KernelTime> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // As good as normal: equal numbers would have many more ties at the top than logits have.
        let mut row = vec![0.0; vocab];
        for _ in 0..8 {
            row.iter_mut().zip(numbers(&mut rng, vocab, 2.0)).for_each(|(sum, x)| *sum += x);
        }
        // One row's numbers do for all.
        let logits = self.gpu.upload_numbers(element, rows, vocab, &row.repeat(rows))?;
        let selection = vec![SelectRow { k: K, edits: Edits::NONE }; rows];
        let select = self.gpu.lay_out_select(&logits, &selection)?;
        let seconds = self.time(|| select.launch())?;
        select.read()?;
        Ok(self.of(name, rows, vocab, rows * vocab * element.bytes(), seconds))
    }

    fn score(&self, rows: usize, d: usize) -> Result<KernelTime> {
        let (gpu, vocab) = (self.gpu, if self.rounds < 10 { 500 } else { 32_000 });
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let row = numbers(&mut rng, d, 1.0);
        let head = gpu.upload_numbers(Element::Bf16, vocab, d, &row.repeat(vocab))?;
        let hidden = CardRow::all(gpu.upload_numbers(Element::Bf16, rows, d, &row.repeat(rows))?);
        let weights = gpu.upload(&row)?;
        let lists: Vec<Vec<u32>> =
            (0..rows).map(|i| (0..K).map(|j| ((i * 977 + j * 131) % vocab) as u32).collect()).collect();
        let asked: Vec<CardScore<'_>> = hidden
            .iter()
            .zip(&lists)
            .map(|(hidden, ids)| CardScore {
                hidden,
                reference: None,
                weights: Some(&weights),
                ids,
                normalisers: None,
            })
            .collect();
        let score = gpu.lay_out_score((&head, &head), &asked)?;
        let seconds = self.time(|| score.launch())?;
        score.read()?;
        Ok(self.of("score", rows, d, rows * (K + 1) * d * 2, seconds))
    }

    fn fuse(&self, rows: usize) -> Result<KernelTime> {
        let fusable = Fusable::new(rows, K);
        let terms = fusable.terms();
        let fuse = self.gpu.lay_out_fuse_sample(&fusable.rows(&terms))?;
        let seconds = self.time(|| fuse.launch())?;
        fuse.read()?;
        Ok(self.of("fuse_sample", rows, K, rows * K * 16, seconds))
    }

    /// Both ways of fusing a step, as the service meets them.
    fn fusions(&self, rows: usize) -> Result<FuseTime> {
        let fusable = Fusable::new(rows, K);
        let terms = fusable.terms();
        let asked = fusable.rows(&terms);
        let (mut host, mut device) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let start = Instant::now();
            std::hint::black_box(fuse_sample(&asked));
            host.push(start.elapsed().as_secs_f64() * 1e6);
            let start = Instant::now();
            std::hint::black_box(self.gpu.fuse_sample(&asked)?);
            device.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let middle = |times| median(times).unwrap_or(f64::NAN);
        Ok(FuseTime { rows, host: middle(host), device: middle(device) })
    }
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
