//! `paged_attention` against a softmax in double precision.

use attune_kernels::AttentionRow;
use attune_kernels::cuda::{Element, HeadSize, Program, pack};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::emulator::{Arg, Emulator, Launch};
use crate::{ensure, left_out, loaded, numbers, rng, stored};

const BLOCK: usize = 16;

struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
}

fn check_shape(emulator: &Emulator, element: Element, shape: &Shape) -> Result<(), String> {
    let &Shape { heads, kv_heads, dim, window } = shape;
    let mut rng = rng((heads * dim) as u64);
    let mut blocks: Vec<u32> = (0..60).collect();
    blocks.shuffle(&mut rng);
    let (long, short) = blocks.split_at(40);
    // A text that needs several spans, one of a few tokens, and a chunk of a prefill.
    let mut rows =
        vec![AttentionRow { position: 600, blocks: long }, AttentionRow { position: 0, blocks: short }];
    rows.extend((253..259).map(|position| AttentionRow { position, blocks: short }));
    let stride = (heads + 2 * kv_heads) * dim;
    let width = heads * dim;
    let slots = 60 * BLOCK;
    let q = stored(&numbers(&mut rng, rows.len() * stride, 1.5), element);
    let [keys, values] = [(); 2].map(|()| {
        let size = rng.random_range(1.0..2.0);
        stored(&numbers(&mut rng, slots * kv_heads * dim, size), element)
    });
    let input = pack::AttentionInput::new(&rows, window);
    let spans = input.spans as usize;
    let number = |n: usize| Arg::Number(n as u64);
    let launch = Launch {
        program: Program::PagedAttention(element, HeadSize::of(dim).unwrap()),
        grid: [rows.len(), kv_heads, spans],
        args: vec![
            Arg::Buffer(q.0),
            number(stride),
            Arg::Buffer(keys.0),
            Arg::Buffer(values.0),
            number(heads),
            number(kv_heads),
            number(dim),
            number(BLOCK),
            number(window.unwrap_or(0)),
            Arg::u32s(&input.positions),
            Arg::u32s(&input.table_start),
            Arg::u32s(&input.tables),
            Arg::room(rows.len() * heads * spans * (dim + 2) * 4),
            Arg::zeros(rows.len() * kv_heads * 4),
            Arg::room(rows.len() * width * element.bytes()),
            number(width),
        ],
    };
    let buffers = emulator.run(&[launch])?.remove(0);
    ensure(buffers.u32s(13).iter().all(|&done| done == 0), || "the counters are not 0 again".into())?;
    let got = loaded(&buffers.0[14], element);
    let tolerance = match element {
        Element::F32 => 2e-6,
        Element::F16 => 1.5e-3,
        Element::Bf16 => 1e-2,
    };
    for (i, row) in rows.iter().enumerate() {
        for head in 0..heads {
            let query = &q.1[i * stride + head * dim..][..dim];
            let first = window.map_or(0, |w| (row.position + 1).saturating_sub(w));
            let places: Vec<usize> = (first..=row.position)
                .map(|p| {
                    let slot = row.blocks[p / BLOCK] as usize * BLOCK + p % BLOCK;
                    (slot * kv_heads + head / (heads / kv_heads)) * dim
                })
                .collect();
            let scores: Vec<f64> = places
                .iter()
                .map(|&at| {
                    let products =
                        query.iter().zip(&keys.1[at..]).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    products.sum::<f64>() / (dim as f64).sqrt()
                })
                .collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let sum: f64 =
                    weights.iter().zip(&places).map(|(w, &at)| w * f64::from(values.1[at + d])).sum();
                let (got, want) = (f64::from(got[i * width + head * dim + d]), sum / total);
                ensure((got - want).abs() < tolerance, || {
                    format!(
                        "{element:?} heads {heads}/{kv_heads} dim {dim} row {i} head {head}: {got} for {want}"
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// Single precision, a group of five heads.
pub(crate) fn check(emulator: &Emulator) -> Result<(), String> {
    check_shape(emulator, Element::F32, &Shape { heads: 5, kv_heads: 1, dim: 64, window: None })
}

#[test]
fn paged_attention_is_a_softmax() {
    let Some(emulator) = Emulator::of("paged_attention") else {
        return left_out("CUDA sources on a CPU: no c++");
    };
    check(&emulator).unwrap();
    for element in Element::ALL {
        for shape in [
            Shape { heads: 2, kv_heads: 2, dim: 20, window: None },
            Shape { heads: 7, kv_heads: 1, dim: 80, window: None },
            Shape { heads: 4, kv_heads: 2, dim: 64, window: Some(300) },
            Shape { heads: 4, kv_heads: 1, dim: 128, window: None },
            Shape { heads: 3, kv_heads: 1, dim: 192, window: Some(5) },
            Shape { heads: 2, kv_heads: 1, dim: 256, window: None },
        ] {
            check_shape(&emulator, element, &shape).unwrap();
        }
    }
}
