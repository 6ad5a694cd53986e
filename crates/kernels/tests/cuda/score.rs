//! `score` against dot products and log-softmax in double precision.

use attune_guidance::{RowError, against_model, log_softmax};
use attune_kernels::cuda::{Element, Program, pack};
use rand::RngExt;

use crate::emulator::{Arg, Emulator, Launch};
use crate::{ensure, left_out, numbers, rng, stored};

const B: usize = 5;
const VOCAB: usize = 300;

fn check_shape(emulator: &Emulator, element: Element, d: usize, gap: usize) -> Result<(), String> {
    let mut rng = rng(d as u64);
    let stride = d + gap;
    let [table, ref_table] = [(); 2].map(|()| stored(&numbers(&mut rng, VOCAB * stride, 1.0), element));
    let [mut hidden, ref_hidden] = [(); 2].map(|()| numbers(&mut rng, B * stride, 1.0));
    // The fourth row's model is damaged, and the fifth is asked about an id outside the vocabulary.
    hidden[3 * stride + d / 2] = f32::NAN;
    let (hidden, ref_hidden) = (stored(&hidden, element), stored(&ref_hidden, element));
    let weights = numbers(&mut rng, 2 * d, 1.5);
    let weight_rows = [0, u32::MAX, 1, 0, 0];
    let references = [1, 1, 0, 1, 0];
    // The third row is normalised over the vocabulary, whose sum the host brings.
    let normalisers =
        [f32::NAN, f32::NAN, f32::NAN, f32::NAN, 4.5, 0.0, f32::NAN, f32::NAN, f32::NAN, f32::NAN];
    let lists: Vec<Vec<u32>> = [64, 1, 10, 33, 10]
        .into_iter()
        .enumerate()
        .map(|(row, k)| {
            (0..k).map(|i| if (row, i) == (4, 9) { VOCAB as u32 } else { rng.random_range(0..300) }).collect()
        })
        .collect();
    let (ids, counts) = pack::id_columns(lists.iter().map(Vec::as_slice));
    let number = |n: usize| Arg::Number(n as u64);
    let places = |arg: usize| -> Vec<Option<(usize, usize)>> {
        (0..B).map(|row| Some((arg, row * stride * element.bytes()))).collect()
    };
    let ref_places = places(15).into_iter().zip(references).map(|(at, on)| at.filter(|_| on == 1)).collect();
    let weight_places = weight_rows.iter().map(|&row| (row != u32::MAX).then(|| (16, row as usize * d * 4)));
    let launch = Launch {
        program: Program::Score(element),
        grid: [B, 1, 1],
        args: vec![
            Arg::Buffer(table.0),
            number(stride),
            number(VOCAB),
            number(d),
            Arg::Buffer(ref_table.0),
            number(stride),
            Arg::Places(places(14)),
            Arg::Places(ref_places),
            Arg::Places(weight_places.collect()),
            Arg::f32s(&normalisers),
            Arg::u32s(&ids),
            Arg::u32s(&counts),
            Arg::room(B * 64 * 4),
            Arg::room(B * 4),
            // Where hidden states and weights lie; the kernel knows of them by their places alone.
            Arg::Buffer(hidden.0),
            Arg::Buffer(ref_hidden.0),
            Arg::f32s(&weights),
        ],
    };
    let buffers = emulator.run(&[launch])?.remove(0);
    let dots = |table: &[f32], hidden: &[f32], row: usize| -> Vec<f32> {
        let dot = |&id: &u32| {
            let products = (0..d).map(|i| {
                let w = if weight_rows[row] == u32::MAX {
                    1.0
                } else {
                    weights[weight_rows[row] as usize * d + i]
                };
                f64::from(table[id as usize * stride + i])
                    * f64::from(hidden[row * stride + i])
                    * f64::from(w)
            });
            products.sum::<f64>() as f32
        };
        lists[row].iter().map(dot).collect()
    };
    for (row, got) in pack::score_rows(&buffers.f32s(12), &counts, &buffers.u32s(13)).into_iter().enumerate()
    {
        let what = format!("{element:?} d {d} row {row}");
        if row > 2 {
            ensure(got == Err(RowError::Reward), || format!("{what}: {got:?}"))?;
            continue;
        }
        let policy = dots(&table.1, &hidden.1, row);
        let want = match (row, references[row]) {
            (2, _) => policy.iter().map(|&dot| f64::from(dot) - 4.5).collect(),
            (_, 1) => against_model(&policy, &dots(&ref_table.1, &ref_hidden.1, row)),
            _ => log_softmax(&policy),
        };
        for (got, want) in got.map_err(|e| format!("{what}: {e}"))?.into_iter().zip(want) {
            ensure((f64::from(got) - want).abs() < 3e-5, || format!("{what}: {got} for {want}"))?;
        }
    }
    Ok(())
}

/// Single precision, a width with a remainder.
pub(crate) fn check(emulator: &Emulator) -> Result<(), String> {
    check_shape(emulator, Element::F32, 600, 0)?;
    check_shape(emulator, Element::F32, 77, 3)
}

#[test]
fn score_gives_the_values_of_the_specification() {
    let Some(emulator) = Emulator::of("score") else { return left_out("CUDA sources on a CPU: no c++") };
    check(&emulator).unwrap();
    for element in Element::ALL {
        for (d, gap) in [(1, 0), (64, 0), (70, 1), (512, 8), (4104, 0), (4099, 6)] {
            check_shape(&emulator, element, d, gap).unwrap();
        }
    }
}
