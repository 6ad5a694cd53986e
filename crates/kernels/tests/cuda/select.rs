//! `select` against a sort in double precision.

use attune_guidance::{Candidates, RowError};
use attune_kernels::cuda::{Element, Program, pack};
use attune_kernels::{Edits, SelectRow};
use rand::RngExt;

use crate::emulator::{Arg, Emulator, Launch};
use crate::{ensure, left_out, numbers, rng, stored};

/// Rows of one launch, as the card has them.
struct Case {
    element: Element,
    vocab: usize,
    stride: usize,
    logits: Vec<f32>,
    bytes: Vec<u8>,
    rows: Vec<Row>,
    blocks: usize,
}

#[derive(Default)]
struct Row {
    k: usize,
    bias: Vec<(u32, f32)>,
    banned: Vec<u32>,
    penalty: f32,
    seen: Vec<u32>,
}

impl Row {
    fn edits(&self) -> Edits<'_> {
        Edits { bias: &self.bias, banned: &self.banned, penalty: self.penalty, seen: &self.seen }
    }
}

impl Case {
    fn new(seed: u64, element: Element, vocab: usize, gap: usize, count: usize, blocks: usize) -> Self {
        let mut rng = rng(seed);
        let stride = vocab + gap;
        let mut logits = numbers(&mut rng, count * stride, 12.0);
        let mut rows = Vec::new();
        for (i, row) in logits.chunks_exact_mut(stride).enumerate() {
            match rng.random_range(0..6) {
                // Ties in plenty.
                0 => row.iter_mut().for_each(|x| *x = x.round()),
                // One value.
                1 => row.fill(1.5),
                // Everything enters the pool as late as it can.
                2 => row.sort_by(f32::total_cmp),
                // Masked by the model already.
                3 => row.iter_mut().skip(1).step_by(3).for_each(|x| *x = f32::NEG_INFINITY),
                _ => {}
            }
            let at = rng.random_range(0..vocab);
            match rng.random_range(0..16) {
                0 => row[at] = f32::NAN,
                1 => row[at] = f32::INFINITY,
                2 => row.fill(f32::NEG_INFINITY),
                _ => {}
            }
            // What lies between the rows is not read.
            row[vocab..].fill(f32::NAN);
            let id = |rng: &mut rand_chacha::ChaCha8Rng| rng.random_range(0..vocab as u32 + 3);
            let many = if (i + seed as usize).is_multiple_of(2) { vocab.min(40) } else { 0 };
            let mut seen: Vec<u32> = (0..many).map(|_| id(&mut rng)).collect();
            seen.sort_unstable();
            seen.dedup();
            rows.push(Row {
                k: [1, 10, 64][rng.random_range(0..3)],
                bias: (0..many).map(|_| (id(&mut rng), rng.random_range(-20.0f32..20.0))).collect(),
                banned: (0..many).map(|_| id(&mut rng)).collect(),
                penalty: if many > 20 { 1.3 } else { 1.0 },
                seen,
            });
        }
        let (bytes, logits) = stored(&logits, element);
        Self { element, vocab, stride, logits, bytes, rows, blocks }
    }

    fn launch(&self) -> Launch {
        let rows: Vec<SelectRow<'_>> =
            self.rows.iter().map(|row| SelectRow { k: row.k, edits: row.edits() }).collect();
        let input = pack::SelectInput::new(&rows);
        let (chunk, parts) = pack::chunks(self.vocab, rows.len(), self.blocks);
        let b = rows.len();
        let edits =
            |numbers: &[u32]| if input.edit_start.is_empty() { Arg::Null } else { Arg::u32s(numbers) };
        Launch {
            program: Program::Select(self.element),
            grid: [parts, b, 1],
            args: vec![
                Arg::Buffer(self.bytes.clone()),
                Arg::Number(self.stride as u64),
                Arg::Number(self.vocab as u64),
                Arg::Number(chunk as u64),
                Arg::u32s(&input.ks),
                edits(&input.edit_start),
                edits(&input.edit_ids),
                edits(&input.edit_kinds),
                if input.edit_start.is_empty() { Arg::Null } else { Arg::f32s(&input.edit_values) },
                Arg::room(b * parts * 64 * 8),
                Arg::room(b * parts * 4 * 4),
                Arg::zeros(b * 4),
                Arg::room(b * 64 * 4),
                Arg::room(b * 64 * 4),
                Arg::room(b * 64 * 4),
                Arg::room(b * 2 * 4),
                Arg::room(b * 4),
                Arg::room(b * 4),
            ],
        }
    }

    fn expected(&self, index: usize) -> Result<Candidates, RowError> {
        let (raw, row) = (&self.logits[index * self.stride..][..self.vocab], &self.rows[index]);
        let mut edited = raw.to_vec();
        if row.penalty != 1.0 {
            for &id in row.seen.iter().filter(|&&id| (id as usize) < self.vocab) {
                let x = &mut edited[id as usize];
                *x = if *x < 0.0 { *x * row.penalty } else { *x / row.penalty };
            }
        }
        row.bias.iter().filter(|b| (b.0 as usize) < self.vocab).for_each(|b| edited[b.0 as usize] += b.1);
        let banned = row.banned.iter().filter(|&&id| (id as usize) < self.vocab);
        banned.for_each(|&id| edited[id as usize] = f32::NEG_INFINITY);
        let mut ids: Vec<u32> =
            (0..self.vocab as u32).filter(|&id| edited[id as usize].is_finite()).collect();
        let value = |id: u32| edited[id as usize];
        ids.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).unwrap().then(a.cmp(&b)));
        ids.truncate(row.k);
        if ids.is_empty() || raw.iter().chain(&edited).any(|x| x.is_nan() || *x == f32::INFINITY) {
            return Err(RowError::Logits);
        }
        let sum = |row: &[f32]| {
            let max = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
            (max + row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()) as f32
        };
        Ok(Candidates {
            logits: ids.iter().map(|&id| edited[id as usize]).collect(),
            raw_logits: ids.iter().map(|&id| raw[id as usize]).collect(),
            log_sum_exp: sum(&edited),
            raw_log_sum_exp: sum(raw),
            ids,
        })
    }
}

fn cases(element: Element) -> Vec<Case> {
    let shapes =
        [(1, 0, 1), (7, 1, 4), (64, 0, 1), (4095, 1, 1), (4096, 8, 3), (9000, 3, 8), (20_345, 0, 16)];
    let small = shapes.into_iter().enumerate();
    small.map(|(i, (vocab, gap, blocks))| Case::new(7 + i as u64, element, vocab, gap, 3, blocks)).collect()
}

fn check_cases(emulator: &Emulator, cases: &[Case]) -> Result<(), String> {
    let launches: Vec<Launch> = cases.iter().map(Case::launch).collect();
    for (case, buffers) in cases.iter().zip(emulator.run(&launches)?) {
        ensure(buffers.u32s(11).iter().all(|&done| done == 0), || "the counters are not 0 again".into())?;
        let output = pack::SelectOutput {
            ids: buffers.u32s(12),
            logits: buffers.f32s(13),
            raw_logits: buffers.f32s(14),
            sums: buffers.f32s(15),
            counts: buffers.u32s(16),
            status: buffers.u32s(17),
        };
        for (i, got) in output.rows().into_iter().enumerate() {
            let what = format!("{:?} vocab {} row {i} k {}", case.element, case.vocab, case.rows[i].k);
            match (got, case.expected(i)) {
                (Ok(got), Ok(want)) => {
                    ensure(got.ids == want.ids, || format!("{what}: {:?} for {:?}", got.ids, want.ids))?;
                    ensure(got.logits == want.logits && got.raw_logits == want.raw_logits, || what.clone())?;
                    for (got, want) in
                        [(got.log_sum_exp, want.log_sum_exp), (got.raw_log_sum_exp, want.raw_log_sum_exp)]
                    {
                        let near = (got - want).abs() < 3e-6 * want.abs().max(1.0);
                        ensure(near, || format!("{what}: log-sum-exp {got} for {want}"))?;
                    }
                }
                (got, want) => {
                    ensure(got == want, || format!("{what}: {got:?} for {want:?}"))?;
                }
            }
        }
    }
    Ok(())
}

/// The small cases in single precision.
pub(crate) fn check(emulator: &Emulator) -> Result<(), String> {
    check_cases(emulator, &cases(Element::F32))
}

#[test]
fn select_finds_what_a_sort_finds() {
    let Some(emulator) = Emulator::of("select") else { return left_out("CUDA sources on a CPU: no c++") };
    for element in Element::ALL {
        check_cases(&emulator, &cases(element)).unwrap();
    }
    // A whole vocabulary, in one block and in many.
    let whole = [1, 16].map(|blocks| Case::new(3, Element::Bf16, 151_936, 0, 2, blocks));
    check_cases(&emulator, &whole).unwrap();
}
