//! The kernels of a step on a card against the forms for a CPU, which tests hold against the specification
//! in double precision.

use anyhow::{Result, bail, ensure};
use attune_guidance::{Candidates, Sampling, Term};
use attune_kernels::{
    Edits, EmbeddingTable, FuseRow, Reference, ScoreJob, SelectRow, Threads,
    cuda::{CardRow, CardScore, Element, Gpu},
    fuse_sample, score, select,
};
use half::{bf16, f16};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::Findings;

pub(super) const ELEMENTS: [(Element, &str); 3] =
    [(Element::F32, "f32"), (Element::F16, "f16"), (Element::Bf16, "bf16")];

pub(super) fn check(gpu: &Gpu, quick: bool, findings: &mut Findings<'_>) {
    let vocabularies: &[usize] = if quick { &[300, 5000] } else { &[300, 32_000, 128_256, 151_936, 262_144] };
    let batches: &[usize] = if quick { &[1, 3] } else { &[1, 8, 64, 256, 1024] };
    for (element, name) in ELEMENTS {
        for &vocab in vocabularies {
            for &rows in batches {
                // A gigabyte of logits is enough.
                if rows * vocab <= 1 << 28 {
                    let what = format!("select {name} B={rows} V={vocab}");
                    findings.take(&what, selected(gpu, element, rows, vocab));
                }
            }
        }
        for &(rows, d) in if quick { &[(3, 96)][..] } else { &[(1, 2048), (64, 4096), (1024, 100)] } {
            findings.take(&format!("score {name} B={rows} d={d}"), scored(gpu, element, rows, d));
        }
    }
    for &rows in batches {
        findings.take(&format!("fuse_sample B={rows}"), fused(gpu, rows));
    }
}

/// The numbers as a card rounds them.
pub(super) fn rounded(element: Element, numbers: &[f32]) -> Vec<f32> {
    let round = |&x: &f32| match element {
        Element::F32 => x,
        Element::F16 => f16::from_f32(x).to_f32(),
        Element::Bf16 => bf16::from_f32(x).to_f32(),
    };
    numbers.iter().map(round).collect()
}

pub(super) fn numbers(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

fn selected(gpu: &Gpu, element: Element, rows: usize, vocab: usize) -> Result<String> {
    let mut rng = ChaCha8Rng::seed_from_u64((rows * vocab) as u64);
    let mut logits = numbers(&mut rng, rows * vocab, 12.0);
    let last = (rows - 1) * vocab;
    // Ties, in the first row; in the last of several a number that is none.
    logits[3..60].fill(11.5);
    if rows > 1 {
        logits[last + vocab / 2] = f32::NAN;
    }
    let logits = rounded(element, &logits);
    let bias: Vec<(u32, f32)> = (0..20).map(|i| (i * 7, 3.0)).collect();
    let banned: Vec<u32> = (30..40).collect();
    let seen: Vec<u32> = (0..vocab as u32).step_by(11).collect();
    let edits = Edits { bias: &bias, banned: &banned, penalty: 1.3, seen: &seen };
    let selection: Vec<SelectRow<'_>> = (0..rows)
        .map(|i| SelectRow { k: [10, 64, 1, 40][i % 4], edits: if i % 3 == 0 { edits } else { Edits::NONE } })
        .collect();
    let want = select(&logits, vocab, &selection, &Threads::new(1)?);
    let on_card = gpu.upload_numbers(element, rows, vocab, &logits)?;
    let got = gpu.select(&on_card, &selection)?;
    ensure!(got.len() == rows, "{} rows came back", got.len());
    let mut largest = 0.0f32;
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        match (got, want) {
            (Ok(got), Ok(want)) => {
                ensure!(got.ids == want.ids, "row {i}: {:?} for {:?}", got.ids, want.ids);
                ensure!(got.raw_logits == want.raw_logits, "row {i}: other logits");
                let far = got.logits.iter().zip(&want.logits).map(|(a, b)| (a - b).abs());
                let sums = [
                    (got.log_sum_exp - want.log_sum_exp).abs(),
                    (got.raw_log_sum_exp - want.raw_log_sum_exp).abs(),
                ];
                largest = far.chain(sums).fold(largest, f32::max);
            }
            (Err(got), Err(want)) if got == want => {}
            _ => bail!("row {i}: {got:?} for {want:?}"),
        }
    }
    ensure!(largest < 1e-4, "a number is {largest:e} away");
    Ok(format!("largest difference {largest:.1e}"))
}

fn scored(gpu: &Gpu, element: Element, rows: usize, d: usize) -> Result<String> {
    const VOCAB: usize = 500;
    let mut rng = ChaCha8Rng::seed_from_u64(d as u64);
    let size = (3.0 / d as f32).sqrt();
    let [table, ref_table] = [(); 2].map(|()| rounded(element, &numbers(&mut rng, VOCAB * d, size)));
    let [hidden, ref_hidden] = [(); 2].map(|()| rounded(element, &numbers(&mut rng, rows * d, 2.0)));
    let weights = numbers(&mut rng, d, 1.5);
    let lists: Vec<Vec<u32>> = (0..rows)
        .map(|i| (0..[10, 64, 1][i % 3]).map(|_| rng.random_range(0..VOCAB as u32)).collect())
        .collect();
    let row = |all: &[f32], i: usize, weighed: bool| -> Vec<f32> {
        let own = &all[i * d..][..d];
        if weighed { own.iter().zip(&weights).map(|(h, w)| h * w).collect() } else { own.to_vec() }
    };
    let (weighed, against) = (|i: usize| i.is_multiple_of(2), |i: usize| i % 3 != 1);
    let tables = [
        EmbeddingTable::from_f32(table.clone(), VOCAB, d)?,
        EmbeddingTable::from_f32(ref_table.clone(), VOCAB, d)?,
    ];
    let features: Vec<[Vec<f32>; 2]> =
        (0..rows).map(|i| [row(&hidden, i, weighed(i)), row(&ref_hidden, i, weighed(i))]).collect();
    let jobs: Vec<ScoreJob<'_>> = (0..rows)
        .map(|i| ScoreJob {
            table: &tables[0],
            features: &features[i][0],
            ids: &lists[i],
            reference: against(i).then(|| Reference { table: &tables[1], features: &features[i][1] }),
            over_vocabulary: false,
        })
        .collect();
    let want = score(&jobs, &Threads::new(1)?);
    let heads = [&table, &ref_table].map(|t| gpu.upload_numbers(element, VOCAB, d, t));
    let [head, ref_head] = heads;
    let (head, ref_head) = (head?, ref_head?);
    let states = CardRow::all(gpu.upload_numbers(element, rows, d, &hidden)?);
    let ref_states = CardRow::all(gpu.upload_numbers(element, rows, d, &ref_hidden)?);
    let on_card = gpu.upload(&weights)?;
    let asked: Vec<CardScore<'_>> = (0..rows)
        .map(|i| CardScore {
            hidden: &states[i],
            reference: against(i).then(|| &ref_states[i]),
            weights: weighed(i).then_some(&on_card),
            ids: &lists[i],
            normalisers: None,
        })
        .collect();
    let mut largest = 0.0f32;
    for (i, (got, want)) in gpu.score((&head, &ref_head), &asked)?.iter().zip(&want).enumerate() {
        let (Ok(got), Ok(want)) = (got, want) else { bail!("row {i}: {got:?} for {want:?}") };
        ensure!(got.len() == want.len(), "row {i}: {} values", got.len());
        largest = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    ensure!(largest < 2e-4, "a value is {largest:e} away");
    Ok(format!("largest difference {largest:.1e}"))
}

/// Rows as a step has them.
pub(super) struct Fusable {
    pub(super) candidates: Vec<Candidates>,
    pub(super) rewards: Vec<[Vec<f32>; 2]>,
}

impl Fusable {
    pub(super) fn new(rows: usize, k: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
        let candidates = (0..rows).map(|_| {
            let mut logits = numbers(&mut rng, k, 6.0);
            logits.sort_by(|a, b| b.total_cmp(a));
            let sum = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32 + 0.3;
            Candidates {
                ids: (0..k as u32).map(|i| i * 31 + 5).collect(),
                raw_logits: logits.clone(),
                logits,
                log_sum_exp: sum,
                raw_log_sum_exp: sum,
            }
        });
        let candidates = candidates.collect();
        let rewards = (0..rows).map(|_| [numbers(&mut rng, k, 2.0), numbers(&mut rng, k, 2.0)]).collect();
        Self { candidates, rewards }
    }

    pub(super) fn terms(&self) -> Vec<[Term<'_>; 2]> {
        let term = |rewards, clip| Term { strength: 0.8, clip, rewards };
        self.rewards.iter().map(|[a, b]| [term(&a[..], None), term(&b[..], Some(1.0))]).collect()
    }

    pub(super) fn rows<'a>(&'a self, terms: &'a [[Term<'a>; 2]]) -> Vec<FuseRow<'a>> {
        let row = |(i, candidates): (usize, &'a Candidates)| FuseRow {
            candidates,
            terms: &terms[i][..i % 3],
            min_p: [0.0, 0.02][i % 2],
            sampling: Sampling {
                temperature: [0.0, 0.7, 1.0][i % 3],
                top_p: [1.0, 0.9][i % 2],
                seed: 17 * i as u64,
                index: i as u32,
            },
        };
        self.candidates.iter().enumerate().map(row).collect()
    }
}

fn fused(gpu: &Gpu, rows: usize) -> Result<String> {
    let fusable = Fusable::new(rows, 10);
    let terms = fusable.terms();
    let rows = fusable.rows(&terms);
    let mut largest = 0.0f32;
    for (i, (got, want)) in gpu.fuse_sample(&rows)?.iter().zip(fuse_sample(&rows)).enumerate() {
        let (Ok(got), Ok(want)) = (got, &want) else { bail!("row {i}: {got:?} for {want:?}") };
        ensure!(
            (got.index, got.id, got.unguided_id) == (want.index, want.id, want.unguided_id),
            "row {i}: {got:?} for {want:?}"
        );
        let far = [
            (got.base_log_prob - want.base_log_prob).abs(),
            (got.fused_log_prob - want.fused_log_prob).abs(),
        ];
        largest = far.into_iter().fold(largest, f32::max);
    }
    ensure!(largest < 1e-5, "a log-probability is {largest:e} away");
    Ok(format!("the same tokens; largest difference {largest:.1e}"))
}
