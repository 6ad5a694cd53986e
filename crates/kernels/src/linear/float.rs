//! The product with weights of 32 or 16 bits.

use super::Layer;
use super::panels::{COLUMNS, Line};
use crate::disjoint::Disjoint;
use crate::simd::{LANES, Lanes, simd_fn};

/// Inputs whose weights stay in the first-level cache while all rows pass over them, beside those
/// of the next block, which are fetched meanwhile.
const K_BLOCK: usize = 128;
/// The highest tile of any form.
const MOST_ROWS: usize = 8;
/// Rows for which a panel is read from memory once.
const ROW_BLOCK: usize = 64;

/// How many lines ahead of the sums memory is asked for: the processor's own prefetch stops at
/// every page.
const AHEAD: usize = 48;

/// 32 numbers: one row's sums in one panel.
type Sums = [[f32; LANES]; 2];

/// How a format's weights of one input become two vectors. Widening is exact.
trait Decode {
    /// Lines for every input.
    const LINES: usize;
    fn columns<L: Lanes>(l: L, lines: &[Line]) -> (L::V, L::V);
}

struct AsF32;
struct AsBf16;
struct AsF16;

impl Decode for AsF32 {
    const LINES: usize = 2;
    #[inline(always)]
    fn columns<L: Lanes>(l: L, lines: &[Line]) -> (L::V, L::V) {
        (l.bits(&lines[0].0), l.bits(&lines[1].0))
    }
}

impl Decode for AsBf16 {
    const LINES: usize = 1;
    #[inline(always)]
    fn columns<L: Lanes>(l: L, lines: &[Line]) -> (L::V, L::V) {
        l.bf16_pair(&lines[0].0)
    }
}

impl Decode for AsF16 {
    const LINES: usize = 1;
    #[inline(always)]
    fn columns<L: Lanes>(l: L, lines: &[Line]) -> (L::V, L::V) {
        l.f16_pair(&lines[0].0)
    }
}

simd_fn!(
    /// All rows of `x` times panels `from..to` of f32 weights.
    pub(super) fn f32_panels(layer: &Layer<'_>, x: &[f32], from: usize, to: usize, out: &Disjoint<'_>) = panels_f32
);
simd_fn!(
    /// All rows of `x` times panels `from..to` of bf16 weights.
    pub(super) fn bf16_panels(layer: &Layer<'_>, x: &[f32], from: usize, to: usize, out: &Disjoint<'_>) = panels_bf16
);
simd_fn!(
    /// All rows of `x` times panels `from..to` of f16 weights.
    pub(super) fn f16_panels(layer: &Layer<'_>, x: &[f32], from: usize, to: usize, out: &Disjoint<'_>) = panels_f16
);

#[inline(always)]
fn panels_f32<L: Lanes>(l: L, layer: &Layer<'_>, x: &[f32], from: usize, to: usize, out: &Disjoint<'_>) {
    panels::<L, AsF32>(l, layer, x, from, to, out);
}

#[inline(always)]
fn panels_bf16<L: Lanes>(l: L, layer: &Layer<'_>, x: &[f32], from: usize, to: usize, out: &Disjoint<'_>) {
    panels::<L, AsBf16>(l, layer, x, from, to, out);
}

#[inline(always)]
fn panels_f16<L: Lanes>(l: L, layer: &Layer<'_>, x: &[f32], from: usize, to: usize, out: &Disjoint<'_>) {
    panels::<L, AsF16>(l, layer, x, from, to, out);
}

#[inline(always)]
fn panels<L: Lanes, D: Decode>(
    l: L,
    layer: &Layer<'_>,
    x: &[f32],
    from: usize,
    to: usize,
    out: &Disjoint<'_>,
) {
    if x.len() <= L::TILE_ROWS * layer.n_in {
        few_rows::<L, D>(l, layer, x, from, to, out);
    } else {
        many_rows::<L, D>(l, layer, x, from, to, out);
    }
}

/// One pass over each panel, straight from memory.
#[inline(always)]
fn few_rows<L: Lanes, D: Decode>(
    l: L,
    layer: &Layer<'_>,
    x: &[f32],
    from: usize,
    to: usize,
    out: &Disjoint<'_>,
) {
    let mut sums = [Sums::default(); MOST_ROWS];
    let sums = &mut sums[..x.len() / layer.n_in];
    for p in from..to {
        sums.fill(Sums::default());
        tiles::<L, D>(l, layer.panel(p), x, layer.n_in, 0, Fetch::Stream, sums);
        for (row, sums) in sums.iter().enumerate() {
            layer.write(p, row, sums.as_flattened(), out);
        }
    }
}

/// The same sums, their order over `k` included, block by block of inputs; where the rows are many,
/// a block's weights are widened once for all.
#[inline(always)]
fn many_rows<L: Lanes, D: Decode>(
    l: L,
    layer: &Layer<'_>,
    x: &[f32],
    from: usize,
    to: usize,
    out: &Disjoint<'_>,
) {
    let n_in = layer.n_in;
    let mut wide = [[Line::ZERO; 2]; K_BLOCK];
    let mut sums = [Sums::default(); ROW_BLOCK];
    for p in from..to {
        for (block, x) in x.chunks(ROW_BLOCK * n_in).enumerate() {
            let sums = &mut sums[..x.len() / n_in];
            sums.fill(Sums::default());
            for (i, part) in layer.panel(p).chunks(K_BLOCK * D::LINES).enumerate() {
                if D::LINES == AsF32::LINES || sums.len() <= 2 * L::TILE_ROWS {
                    tiles::<L, D>(l, part, x, n_in, i * K_BLOCK, Fetch::NextBlock, sums);
                } else {
                    let wide = &mut wide[..part.len() / D::LINES];
                    for (lines, wide) in part.chunks_exact(D::LINES).zip(wide.iter_mut()) {
                        l.prefetch(lines.as_ptr().wrapping_add(part.len()));
                        let (a, b) = D::columns(l, lines);
                        l.store_bits(&mut wide[0].0, a);
                        l.store_bits(&mut wide[1].0, b);
                    }
                    tiles::<L, AsF32>(l, wide.as_flattened(), x, n_in, i * K_BLOCK, Fetch::Nothing, sums);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                layer.write(p, block * ROW_BLOCK + r, sums.as_flattened(), out);
            }
        }
    }
}

/// What a pass over weights asks memory for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fetch {
    /// What comes [`AHEAD`] lines later in the same pass.
    Stream,
    /// The block behind this one, spread over the passes: the first alone would wait for memory,
    /// and the others leave memory idle.
    NextBlock,
    Nothing,
}

/// Adds the products with inputs `k0..` to every row's sums, as many rows at once as registers hold.
#[inline(always)]
fn tiles<L: Lanes, D: Decode>(
    l: L,
    panel: &[Line],
    x: &[f32],
    n_in: usize,
    k0: usize,
    fetch: Fetch,
    sums: &mut [Sums],
) {
    let (mut row, rows) = (0, sums.len());
    let passes = rows.div_ceil(L::TILE_ROWS);
    // Lines to fetch for every input, and how far on the first of them is.
    let per_input = D::LINES.div_ceil(passes);
    let mut pass = 0;
    while row < rows {
        // Even tiles: 9 rows are 5 and 4, not 8 and 1.
        let left = rows - row;
        let height = left.div_ceil(left.div_ceil(L::TILE_ROWS));
        let (x, sums) = (&x[row * n_in..], &mut sums[row..row + height]);
        let fetch = match fetch {
            Fetch::Stream => (AHEAD, D::LINES),
            Fetch::NextBlock if pass * per_input < D::LINES => {
                (panel.len() + pass * per_input * (panel.len() / D::LINES), per_input)
            }
            Fetch::NextBlock | Fetch::Nothing => (0, 0),
        };
        pass += 1;
        match height {
            1 => tile::<L, D, 1>(l, panel, x, n_in, k0, fetch, sums),
            2 => tile::<L, D, 2>(l, panel, x, n_in, k0, fetch, sums),
            3 if L::TILE_ROWS >= 3 => tile::<L, D, 3>(l, panel, x, n_in, k0, fetch, sums),
            4 if L::TILE_ROWS >= 4 => tile::<L, D, 4>(l, panel, x, n_in, k0, fetch, sums),
            5 if L::TILE_ROWS >= 5 => tile::<L, D, 5>(l, panel, x, n_in, k0, fetch, sums),
            6 if L::TILE_ROWS >= 6 => tile::<L, D, 6>(l, panel, x, n_in, k0, fetch, sums),
            7 if L::TILE_ROWS >= 7 => tile::<L, D, 7>(l, panel, x, n_in, k0, fetch, sums),
            8 if L::TILE_ROWS >= 8 => tile::<L, D, 8>(l, panel, x, n_in, k0, fetch, sums),
            _ => unreachable!("no tile is higher than the registers allow"),
        }
        row += height;
    }
}

#[inline(always)]
fn tile<L: Lanes, D: Decode, const R: usize>(
    l: L,
    panel: &[Line],
    x: &[f32],
    n_in: usize,
    k0: usize,
    (ahead, per_input): (usize, usize),
    sums: &mut [Sums],
) {
    let len = panel.len() / D::LINES;
    let mut rows: [&[f32]; R] = [&[]; R];
    let mut acc = [(l.splat(0.0), l.splat(0.0)); R];
    for r in 0..R {
        rows[r] = &x[r * n_in + k0..][..len];
        acc[r] = (l.load(&sums[r][0]), l.load(&sums[r][1]));
    }
    for (k, lines) in panel.chunks_exact(D::LINES).enumerate() {
        for i in 0..per_input {
            l.prefetch(panel.as_ptr().wrapping_add(ahead + k * per_input + i));
        }
        let (w0, w1) = D::columns(l, lines);
        for r in 0..R {
            // SAFETY: every row was cut to `len`, the number of chunks. The check costs a quarter
            // of the speed here.
            #[allow(unsafe_code)]
            let x = l.splat(unsafe { *rows[r].get_unchecked(k) });
            acc[r] = (l.fma(x, w0, acc[r].0), l.fma(x, w1, acc[r].1));
        }
    }
    for r in 0..R {
        l.store(&mut sums[r][0], acc[r].0);
        l.store(&mut sums[r][1], acc[r].1);
    }
}

const _: () = assert!(COLUMNS == 2 * LANES);
