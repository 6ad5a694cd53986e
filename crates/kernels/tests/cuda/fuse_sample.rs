//! `fuse_sample` against the specification: the same tokens, drawn with the same noise.

use attune_guidance::{Candidates, Sampling, Term};
use attune_kernels::cuda::{Program, pack};
use attune_kernels::{FuseRow, fuse_sample};
use rand::RngExt;

use crate::emulator::{Arg, Emulator, Launch};
use crate::{ensure, left_out, numbers, rng};

fn launch(rows: &[FuseRow<'_>]) -> (pack::FuseInput, Launch) {
    let input = pack::FuseInput::new(rows);
    let b = rows.len();
    let args = vec![
        Arg::u32s(&input.ids),
        Arg::f32s(&input.logits),
        Arg::u32s(&input.counts),
        Arg::f32s(&input.sums),
        Arg::u32s(&input.term_start),
        Arg::f32s(&input.strengths),
        Arg::f32s(&input.clips),
        Arg::f32s(&input.rewards),
        Arg::f32s(&input.min_ps),
        Arg::f32s(&input.temperatures),
        Arg::f32s(&input.top_ps),
        Arg::u64s(&input.seeds),
        Arg::u32s(&input.indices),
        Arg::room(b * 3 * 4),
        Arg::room(b * 2 * 4),
        Arg::room(b * 4),
    ];
    (input, Launch { program: Program::FuseSample, grid: [b, 1, 1], args })
}

/// 300 random rows.
pub(crate) fn check(emulator: &Emulator) -> Result<(), String> {
    let mut rng = rng(11);
    let candidates: Vec<Candidates> = (0..300)
        .map(|i| {
            let k = [1, 2, 10, 33, 64][i % 5];
            let mut logits = numbers(&mut rng, k, 3.0);
            if i % 3 == 0 {
                logits.iter_mut().for_each(|x| *x = x.round());
            }
            logits.sort_by(|a, b| b.total_cmp(a));
            if i % 50 == 49 {
                logits[k / 2] = f32::NAN;
            }
            Candidates {
                ids: (0..k).map(|_| rng.random_range(0..200_000)).collect(),
                raw_logits: logits.clone(),
                logits,
                log_sum_exp: rng.random_range(3.0..5.0),
                raw_log_sum_exp: 4.0,
            }
        })
        .collect();
    let rewards: Vec<Vec<Vec<f32>>> = candidates
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let mut rewards: Vec<Vec<f32>> = (0..i % 4).map(|_| numbers(&mut rng, c.len(), 2.0)).collect();
            match i % 40 {
                2 => rewards[0][0] = f32::INFINITY,
                3 => rewards[1].push(0.0),
                _ => {}
            }
            rewards
        })
        .collect();
    let terms: Vec<Vec<Term<'_>>> = rewards
        .iter()
        .map(|rewards| {
            let clips = [None, Some(0.5), Some(1.5)];
            rewards
                .iter()
                .enumerate()
                .map(|(j, rewards)| Term { strength: [1.0, -0.7, 2.5][j], clip: clips[j], rewards })
                .collect()
        })
        .collect();
    let rows: Vec<FuseRow<'_>> = candidates
        .iter()
        .zip(&terms)
        .enumerate()
        .map(|(i, (candidates, terms))| FuseRow {
            candidates,
            terms,
            min_p: [0.0, 0.05, 0.3][i % 3],
            sampling: Sampling {
                temperature: [0.0, 0.7, 1.0, 1.9][i / 2 % 4],
                top_p: [1.0, 0.9, 0.5][i / 3 % 3],
                seed: rng.random(),
                index: i as u32,
            },
        })
        .collect();
    let (input, launch) = launch(&rows);
    let buffers = emulator.run(&[launch])?.remove(0);
    let got = input.rows(&buffers.u32s(13), &buffers.f32s(14), &buffers.u32s(15));
    for (i, (got, want)) in got.into_iter().zip(fuse_sample(&rows)).enumerate() {
        match (got, want) {
            (Ok(got), Ok(want)) => {
                let same = |c: attune_kernels::Chosen| (c.index, c.id, c.unguided_id, c.base_log_prob);
                ensure(same(got) == same(want), || format!("row {i}: {got:?} for {want:?}"))?;
                let near = (got.fused_log_prob - want.fused_log_prob).abs() < 1e-6;
                ensure(near, || format!("row {i}: {got:?} for {want:?}"))?;
            }
            (got, want) => ensure(got == want, || format!("row {i}: {got:?} for {want:?}"))?,
        }
    }
    Ok(())
}

#[test]
fn fuse_sample_draws_what_the_specification_draws() {
    let Some(emulator) = Emulator::of("fuse_sample") else {
        return left_out("CUDA sources on a CPU: no c++");
    };
    check(&emulator).unwrap();
}
