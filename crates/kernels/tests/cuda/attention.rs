//! `paged_attention` against a softmax in double precision.

use attune_kernels::cuda::{Element, HeadSize, Program, pack};
use attune_kernels::{AttentionRow, AttentionShape};
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

/// `emulators`: of attention row by row, and of chunks.
fn check_shape(emulators: [&Emulator; 2], element: Element, shape: &Shape) -> Result<(), String> {
    let &Shape { heads, kv_heads, dim, window } = shape;
    let mut rng = rng((heads * dim) as u64);
    let mut blocks: Vec<u32> = (0..80).collect();
    blocks.shuffle(&mut rng);
    let (long, rest) = blocks.split_at(40);
    let (short, chunked) = rest.split_at(20);
    // A text that needs several spans, one of a few tokens, and a chunk of a prefill.
    let mut rows =
        vec![AttentionRow { position: 600, blocks: long }, AttentionRow { position: 0, blocks: short }];
    rows.extend((253..259).map(|position| AttentionRow { position, blocks: short }));
    // A longer chunk, by tensor cores where the format has them.
    rows.extend((201..241).map(|position| AttentionRow { position, blocks: chunked }));
    let stride = (heads + 2 * kv_heads) * dim;
    let width = heads * dim;
    let slots = 80 * BLOCK;
    let q = stored(&numbers(&mut rng, rows.len() * stride, 1.5), element);
    let [keys, values] = [(); 2].map(|()| {
        let size = rng.random_range(1.0..2.0);
        stored(&numbers(&mut rng, slots * kv_heads * dim, size), element)
    });
    let shape = AttentionShape { heads, kv_heads, head_dim: dim, block_size: BLOCK, window };
    let input = pack::AttentionInput::new(&rows, &shape, element);
    ensure((input.tiles.is_empty()) == (element == Element::F32), || "chunks without tensor cores".into())?;
    let (spans, singles) = (input.spans as usize, input.singles.len());
    let number = |n: usize| Arg::Number(n as u64);
    let size = HeadSize::of(dim).unwrap();
    let common = || {
        let tensors = vec![
            Arg::Buffer(q.0.clone()),
            number(stride),
            Arg::Buffer(keys.0.clone()),
            Arg::Buffer(values.0.clone()),
        ];
        let sizes = [heads, kv_heads, dim, BLOCK, window.unwrap_or(0)].map(number);
        tensors.into_iter().chain(sizes)
    };
    let places = || [Arg::u32s(&input.positions), Arg::u32s(&input.table_start), Arg::u32s(&input.tables)];
    let out = || [Arg::room(rows.len() * width * element.bytes()), number(width)];
    let parts = [Arg::room(singles * heads * spans * (dim + 2) * 4), Arg::zeros(singles * kv_heads * 4)];
    let one_by_one = Launch {
        program: Program::PagedAttention(element, size),
        grid: [singles, kv_heads, spans],
        args: common().chain([Arg::u32s(&input.singles)]).chain(places()).chain(parts).chain(out()).collect(),
    };
    let buffers = emulators[0].run(&[one_by_one])?.remove(0);
    ensure(buffers.u32s(14).iter().all(|&done| done == 0), || "the counters are not 0 again".into())?;
    let mut got = loaded(&buffers.0[15], element);
    if !input.tiles.is_empty() {
        let tiles: Vec<u32> = input.tiles.iter().flatten().copied().collect();
        let chunks = Launch {
            program: Program::ChunkAttention(element, size),
            grid: [input.tiles.len(), kv_heads, 1],
            args: common().chain(places()).chain([Arg::u32s(&tiles)]).chain(out()).collect(),
        };
        let buffers = emulators[1].run(&[chunks])?.remove(0);
        let from_chunks = loaded(&buffers.0[13], element);
        for &[first, tokens] in &input.tiles {
            let own = first as usize * width..(first + tokens) as usize * width;
            got[own.clone()].copy_from_slice(&from_chunks[own]);
        }
    }
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
    // Single precision has no chunks.
    let shape = Shape { heads: 5, kv_heads: 1, dim: 64, window: None };
    check_shape([emulator, emulator], Element::F32, &shape)
}

/// Half precision, by tensor cores.
pub(crate) fn check_chunks(chunks: &Emulator) -> Result<(), String> {
    let rows = Emulator::of("paged_attention").ok_or("no c++")?;
    let shape = Shape { heads: 5, kv_heads: 1, dim: 64, window: Some(100) };
    check_shape([&rows, chunks], Element::F16, &shape)
}

#[test]
fn paged_attention_is_a_softmax() {
    let Some(emulator) = Emulator::of("paged_attention") else {
        return left_out("CUDA sources on a CPU: no c++");
    };
    let Some(chunks) = Emulator::of("chunk_attention") else { return };
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
            check_shape([&emulator, &chunks], element, &shape).unwrap();
        }
    }
}
