//! The kernels' times on a card, by its own clock.

use std::{cell::RefCell, time::Instant};

use anyhow::Result;
use attune_engine::kv::{BLOCK_SIZE, blocks_for};
use attune_kernels::{
    AttentionRow, AttentionShape, Edits, SelectRow,
    cuda::{CardRow, CardScore, CudaError, Element, Gpu, Matrix, PassRows},
    fuse_sample,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{
    kernels::{Fusable, numbers},
    speed::{FuseTime, KernelTime},
};
use crate::report::median;

/// Candidates of a step.
const K: usize = 10;
/// The selection as a step makes it: a product leaves logits in single precision.
pub(super) const SELECT_IN_A_STEP: &str = "select_f32";
/// Query heads, key-value heads, and the numbers of a head.
const HEADS: (usize, usize, usize) = (32, 8, 128);
/// Bytes that no card's cache holds: written before every measured launch.
const FLUSH: usize = 256 << 20;

/// The bandwidth of a copy, in bytes a second, every kernel at every size, and both ways of fusing.
///
/// # Errors
/// The card failed.
pub(super) fn time_kernels(
    gpu: &Gpu,
    quick: bool,
    say: &impl Fn(&str),
) -> Result<(f64, Vec<KernelTime>, Vec<FuseTime>)> {
    let mut bench = Bench {
        gpu,
        flush: RefCell::new(gpu.zero_matrix(Element::F32, 1, if quick { 1024 } else { FLUSH / 4 })?),
        copy_bandwidth: f64::NAN,
        rounds: if quick { 2 } else { 30 },
    };
    bench.copy_bandwidth = bench.copy()?;
    let batches: &[usize] = if quick { &[1, 3] } else { &[1, 8, 64, 256] };
    let vocabularies: &[usize] = if quick { &[3000] } else { &[32_000, 128_256, 151_936] };
    let d = if quick { 128 } else { 4096 };
    let mut kernels = Vec::new();
    for &rows in batches {
        say(&format!("kernels, {rows} rows"));
        for &vocab in vocabularies {
            kernels.push(bench.select("select", Element::Bf16, rows, vocab)?);
            kernels.push(bench.select(SELECT_IN_A_STEP, Element::F32, rows, vocab)?);
        }
        kernels.push(bench.score(rows, d)?);
        kernels.push(bench.fuse(rows)?);
        kernels.push(bench.decoding_attention(rows, if quick { 40 } else { 1024 })?);
    }
    kernels.push(bench.prompt_attention(if quick { 40 } else { 4096 })?);
    let fuse = batches.iter().map(|&rows| bench.fusions(rows)).collect::<Result<_>>()?;
    Ok((bench.copy_bandwidth, kernels, fuse))
}

struct Bench<'a> {
    gpu: &'a Gpu,
    flush: RefCell<Matrix>,
    copy_bandwidth: f64,
    rounds: usize,
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

    /// Rows of as many texts, each at its last position; heads as an 8B Llama has them.
    fn decoding_attention(&self, rows: usize, length: usize) -> Result<KernelTime> {
        let each = blocks_for(length) as u32;
        let blocks: Vec<u32> = (0..rows as u32 * each).collect();
        let places: Vec<AttentionRow<'_>> = blocks
            .chunks_exact(each as usize)
            .map(|blocks| AttentionRow { position: length - 1, blocks })
            .collect();
        let seconds = self.attention(&places, blocks.len())?;
        Ok(self.of("attention", rows, length, rows * length * 2 * HEADS.1 * HEADS.2 * 2, seconds))
    }

    /// A whole prompt at once.
    fn prompt_attention(&self, length: usize) -> Result<KernelTime> {
        let blocks: Vec<u32> = (0..blocks_for(length) as u32).collect();
        let places: Vec<AttentionRow<'_>> =
            (0..length).map(|position| AttentionRow { position, blocks: &blocks }).collect();
        let seconds = self.attention(&places, blocks.len())?;
        Ok(self.of("prompt", length, length, length * 2 * (HEADS.0 + HEADS.1) * HEADS.2 * 2, seconds))
    }

    fn attention(&self, places: &[AttentionRow<'_>], blocks: usize) -> Result<f64> {
        let (heads, kv_heads, head_dim) = HEADS;
        let (gpu, element) = (self.gpu, Element::Bf16);
        let shape = AttentionShape { heads, kv_heads, head_dim, block_size: BLOCK_SIZE, window: None };
        let tokens = vec![0; places.len()];
        let slots = vec![0; places.len()];
        let pass = PassRows { tokens: &tokens, rows: places, slots: &slots, outputs: &[] };
        let pass = gpu.pass(&pass, &shape, element)?;
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut filled = |rows: usize, width: usize| {
            let row = numbers(&mut rng, width, 1.0);
            gpu.upload_numbers(element, rows, width, &row.repeat(rows))
        };
        let q = filled(places.len(), heads * head_dim)?;
        let cache = (
            filled(blocks * BLOCK_SIZE, kv_heads * head_dim)?,
            filled(blocks * BLOCK_SIZE, kv_heads * head_dim)?,
        );
        self.time(|| gpu.attend(&q, (&cache.0, &cache.1), &shape, &pass).map(drop))
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
