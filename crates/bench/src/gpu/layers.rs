//! The model's kernels and cuBLAS's products on a card, in every number format, against loops in double
//! precision and the attention of a CPU, on the numbers as the card has rounded them.

use anyhow::{Result, ensure};
use attune_engine::kv::{BLOCK_SIZE, blocks_for};
use attune_kernels::{
    AttentionRow, AttentionShape, Threads,
    cuda::{CardLinear, CardRope, CardRow, Element, Gpu, Matrix, PassRows},
    paged_attention,
};
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::{
    Findings,
    kernels::{ELEMENTS, numbers, rounded},
};

pub(super) fn check(gpu: &Gpu, quick: bool, findings: &mut Findings<'_>) {
    let widths: &[usize] = if quick { &[96] } else { &[100, 4096, 14_336] };
    let length = if quick { 300 } else { 3000 };
    let heads: &[(usize, usize, usize)] = if quick {
        &[(4, 2, 32), (4, 1, 128)]
    } else {
        &[(32, 8, 128), (14, 2, 64), (8, 8, 80), (16, 2, 256)]
    };
    for (element, name) in ELEMENTS {
        for &d in widths {
            findings.take(&format!("product {name} d={d}"), product(gpu, element, d));
            findings.take(&format!("rows {name} d={d}"), rows(gpu, element, d));
        }
        for &(heads, kv_heads, dim) in heads {
            for window in [None, Some(length / 3)] {
                let shape = AttentionShape { heads, kv_heads, head_dim: dim, block_size: BLOCK_SIZE, window };
                let what = format!(
                    "attention {name} heads {heads}/{kv_heads} of {dim}{}",
                    if window.is_some() { ", a window" } else { "" }
                );
                findings.take(&what, attention(gpu, element, &shape, length));
            }
        }
    }
}

/// How far a number may be from its value in double precision, where a result of size 1 is rounded once.
fn tolerance(element: Element) -> f64 {
    match element {
        Element::F32 => 2e-5,
        Element::F16 => 2e-3,
        Element::Bf16 => 1.6e-2,
    }
}

/// The largest difference, relative to a number's own size where that is above 1.
fn close(what: &str, element: Element, got: &[f32], want: impl IntoIterator<Item = f64>) -> Result<f64> {
    let want: Vec<f64> = want.into_iter().collect();
    ensure!(got.len() == want.len(), "{what}: {} numbers for {}", got.len(), want.len());
    let mut largest = 0.0;
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let far = (f64::from(got) - want).abs() / want.abs().max(1.0);
        // Also where it is NaN.
        ensure!(far <= tolerance(element), "{what}: number {i} is {got} for {want}");
        largest = f64::max(largest, far);
    }
    Ok(largest)
}

fn uploaded(
    gpu: &Gpu,
    element: Element,
    rng: &mut ChaCha8Rng,
    rows: usize,
    width: usize,
) -> Result<(Matrix, Vec<f32>)> {
    let numbers = rounded(element, &numbers(rng, rows * width, 2.0));
    Ok((gpu.upload_numbers(element, rows, width, &numbers)?, numbers))
}

/// `x w^T + b` in single precision and in the format itself, and added to what stands there.
fn product(gpu: &Gpu, element: Element, d: usize) -> Result<String> {
    let (rows, n) = (7, 50);
    let mut rng = ChaCha8Rng::seed_from_u64(d as u64);
    let (x, xs) = uploaded(gpu, element, &mut rng, rows, d)?;
    // So that a sum has the size of 1.
    let size = 1.0 / (d as f32).sqrt();
    let ws = rounded(element, &numbers(&mut rng, n * d, size));
    let bias = numbers(&mut rng, n, 1.0);
    let linear =
        CardLinear { weight: gpu.upload_numbers(element, n, d, &ws)?, bias: Some(gpu.upload(&bias)?) };
    let sums = |i: usize| -> f64 {
        let (x, w) = (&xs[i / n * d..][..d], &ws[i % n * d..][..d]);
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
    };
    let want: Vec<f64> = (0..rows * n).map(|i| sums(i) + f64::from(bias[i % n])).collect();
    let single = gpu.numbers(&gpu.linear(&x, &linear, Element::F32)?)?;
    // Sums of thousands of numbers, in another order.
    let mut largest = close("in single precision", Element::F32, &single, want.iter().copied())?;
    let narrow = gpu.numbers(&gpu.linear(&x, &linear, element)?)?;
    largest = largest.max(close("narrow", element, &narrow, want.iter().copied())?);
    let before = numbers(&mut rng, rows * n, 2.0);
    let mut sum = gpu.upload_numbers(Element::F32, rows, n, &before)?;
    gpu.linear_add(&x, &linear, &mut sum)?;
    let added = want.iter().zip(&before).map(|(want, before)| want + f64::from(*before));
    largest = largest.max(close("added", Element::F32, &gpu.numbers(&sum)?, added)?);
    Ok(format!("largest difference {largest:.1e}"))
}

/// Embedding, norm, gate, and rows that are gathered.
fn rows(gpu: &Gpu, element: Element, d: usize) -> Result<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(d as u64 + 1);
    let (table, tables) = uploaded(gpu, element, &mut rng, 9, d)?;
    let tokens = [8, 0, 3, 3, 1];
    let table_blocks = [0u32];
    let places: Vec<AttentionRow<'_>> =
        (0..tokens.len()).map(|position| AttentionRow { position, blocks: &table_blocks }).collect();
    let slots: Vec<usize> = (0..tokens.len()).collect();
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 8, block_size: BLOCK_SIZE, window: None };
    let pass = PassRows { tokens: &tokens, rows: &places, slots: &slots, outputs: &[4, 1] };
    let pass = gpu.pass(&pass, &shape, element)?;
    let embedded = gpu.embed(&table, &pass)?;
    let x = gpu.numbers(&embedded)?;
    let own = |token: u32| &tables[token as usize * d..][..d];
    ensure!(x.iter().eq(tokens.iter().flat_map(|&token| own(token))), "embed: other numbers");

    let weights = numbers(&mut rng, d, 1.5);
    let weight = gpu.upload(&weights)?;
    let norm = |row: usize| {
        let x = &x[row * d..][..d];
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d as f64;
        let scale = 1.0 / (mean + 1e-5).sqrt();
        x.iter().zip(&weights).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect::<Vec<f64>>()
    };
    let all = gpu.numbers(&gpu.rms_norm(&embedded, &weight, 1e-5, None, element)?)?;
    let mut largest = close("rms_norm", element, &all, (0..tokens.len()).flat_map(norm))?;
    let two = gpu.numbers(&gpu.rms_norm(&embedded, &weight, 1e-5, Some(&pass), element)?)?;
    largest = largest.max(close("rms_norm of outputs", element, &two, [4, 1].into_iter().flat_map(norm))?);

    let (gate_up, both) = uploaded(gpu, Element::F32, &mut rng, 3, 2 * d)?;
    let gated = gpu.numbers(&gpu.silu_gate(&gate_up, element)?)?;
    let gate = |i: usize| {
        let at = i / d * 2 * d + i % d;
        let gate = f64::from(both[at]);
        gate / (1.0 + (-gate).exp()) * f64::from(both[at + d])
    };
    largest = largest.max(close("silu_gate", element, &gated, (0..3 * d).map(gate))?);

    let from = CardRow::all(table);
    let gathered = gpu.gather(element, d, &[(&from[7], None), (&from[2], Some(&weight))])?;
    let weighed = own(2).iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
    let want = own(7).iter().map(|&x| f64::from(x)).chain(weighed);
    largest = largest.max(close("copy_rows", element, &gpu.numbers(&gathered)?, want)?);
    Ok(format!("largest difference {largest:.1e}"))
}

/// Rotation into the cache, and attention over it: a text being decoded, one that begins, and a chunk of a
/// prefill.
fn attention(gpu: &Gpu, element: Element, shape: &AttentionShape, length: usize) -> Result<String> {
    let &AttentionShape { heads, kv_heads, head_dim: dim, .. } = shape;
    let mut rng = ChaCha8Rng::seed_from_u64((heads * dim) as u64);
    let each = blocks_for(length);
    let mut blocks: Vec<u32> = (0..2 * each as u32 + 1).collect();
    blocks.shuffle(&mut rng);
    let (long, rest) = blocks.split_at(each);
    let (chunked, short) = rest.split_at(each);
    let chunk = length - 70..length - 1;
    let mut rows = vec![AttentionRow { position: length - 1, blocks: long }];
    rows.push(AttentionRow { position: 0, blocks: short });
    rows.extend(chunk.map(|position| AttentionRow { position, blocks: chunked }));
    let slot = |row: &AttentionRow<'_>| {
        row.blocks[row.position / BLOCK_SIZE] as usize * BLOCK_SIZE + row.position % BLOCK_SIZE
    };
    let slots: Vec<usize> = rows.iter().map(slot).collect();
    let tokens = vec![0; rows.len()];
    let pass = PassRows { tokens: &tokens, rows: &rows, slots: &slots, outputs: &[] };
    let pass = gpu.pass(&pass, shape, element)?;

    // What stands in the cache already.
    let width = kv_heads * dim;
    let (keys, before) = uploaded(gpu, element, &mut rng, blocks.len() * BLOCK_SIZE, width)?;
    let (values, _) = uploaded(gpu, element, &mut rng, blocks.len() * BLOCK_SIZE, width)?;
    let (qkv, column) = uploaded(gpu, Element::F32, &mut rng, rows.len(), (heads + 2 * kv_heads) * dim)?;
    let angles: Vec<f64> = (0..length * dim / 2).map(|_| rng.random_range(-3.0..3.0)).collect();
    let rope = CardRope {
        cos: gpu.upload(&angles.iter().map(|a| a.cos() as f32).collect::<Vec<f32>>())?,
        sin: gpu.upload(&angles.iter().map(|a| a.sin() as f32).collect::<Vec<f32>>())?,
    };
    let q = gpu.rotate(&qkv, None, None, &rope, shape, &pass, (&keys, &values))?;
    let turned = |row: usize, head: usize, i: usize| {
        let own = &column[(row * (heads + 2 * kv_heads) + head) * dim..][..dim];
        let pair = i % (dim / 2);
        let (sin, cos) = angles[rows[row].position * dim / 2 + pair].sin_cos();
        let (a, b) = (f64::from(own[pair]), f64::from(own[pair + dim / 2]));
        if i < dim / 2 { a * cos - b * sin } else { b * cos + a * sin }
    };
    let queries = gpu.numbers(&q)?;
    let want = (0..rows.len() * heads * dim).map(|at| turned(at / (heads * dim), at / dim % heads, at % dim));
    let mut largest = close("queries", element, &queries, want)?;
    let kept = gpu.numbers(&keys)?;
    let mut cached: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
    for (row, slot) in slots.iter().enumerate() {
        for at in 0..width {
            cached[slot * width + at] = turned(row, heads + at / dim, at % dim);
        }
    }
    largest = largest.max(close("keys", element, &kept, cached)?);

    let got = gpu.numbers(&gpu.attend(&q, (&keys, &values), shape, &pass)?)?;
    let mut out = vec![0.0; got.len()];
    let threads = Threads::new(std::thread::available_parallelism().map_or(1, usize::from))?;
    paged_attention(&queries, &kept, &gpu.numbers(&values)?, &rows, shape, &mut out, &threads);
    largest = largest.max(close("attention", element, &got, out.into_iter().map(f64::from))?);
    Ok(format!("largest difference {largest:.1e}"))
}
