//! `y = x W^T + b` with weights packed once.
//!
//! Every output is one sum over `k` in ascending order, by fused multiply-adds (for 8 bits: block
//! by block), whatever the number of rows, the threads and the width of SIMD: a row's bits are the
//! same alone or in company. Parallel work is split over output columns, never over a sum.

mod float;
mod panels;
mod q8;
mod store;

use half::{bf16, f16};

use crate::disjoint::Disjoint;
use crate::error::check_len;
use crate::simd::Isa;
use crate::{KernelError, Threads};
pub(crate) use panels::{BLOCK, Line, q8_block};
use panels::{BLOCK_LINES, COLUMNS, column_into, pack_panel, panel_lines, set_block};
pub(crate) use store::Store;

/// How a linear layer keeps its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 8-bit integers in blocks of 32 along the input, each block with a half-precision scale
    /// (GGUF's Q8_0).
    Q8,
}

/// A linear layer: weights `[n_out, n_in]` and an optional bias `[n_out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    store: Store,
    bias: Option<Vec<f32>>,
    n_out: usize,
    n_in: usize,
    format: Format,
}

impl Linear {
    /// Packs row-major `weights`, `[n_out, n_in]`.
    ///
    /// # Errors
    /// A slice does not have the length of its shape.
    pub fn pack(
        weights: &[f32],
        n_out: usize,
        n_in: usize,
        bias: Option<&[f32]>,
        format: Format,
    ) -> Result<Self, KernelError> {
        check_len("a weight matrix", weights.len(), n_out * n_in)?;
        Self::pack_with(n_out, n_in, bias, format, |row, out| {
            out.copy_from_slice(&weights[row * n_in..][..n_in]);
        })
    }

    /// As [`Linear::pack`], from bfloat16, without a full copy in single precision.
    ///
    /// # Errors
    /// A slice does not have the length of its shape.
    pub fn pack_bf16(
        weights: &[bf16],
        n_out: usize,
        n_in: usize,
        bias: Option<&[f32]>,
        format: Format,
    ) -> Result<Self, KernelError> {
        check_len("a weight matrix", weights.len(), n_out * n_in)?;
        Self::pack_with(n_out, n_in, bias, format, |row, out| {
            out.iter_mut().zip(&weights[row * n_in..]).for_each(|(o, w)| *o = w.to_f32());
        })
    }

    /// As [`Linear::pack`], from half precision, without a full copy in single precision.
    ///
    /// # Errors
    /// A slice does not have the length of its shape.
    pub fn pack_f16(
        weights: &[f16],
        n_out: usize,
        n_in: usize,
        bias: Option<&[f32]>,
        format: Format,
    ) -> Result<Self, KernelError> {
        check_len("a weight matrix", weights.len(), n_out * n_in)?;
        Self::pack_with(n_out, n_in, bias, format, |row, out| {
            out.iter_mut().zip(&weights[row * n_in..]).for_each(|(o, w)| *o = w.to_f32());
        })
    }

    /// Packs rows as `fill` gives them: it is called once for every row below `n_out`, in order,
    /// and writes that row's `n_in` weights. Several matrices become one layer this way.
    ///
    /// # Errors
    /// The bias does not have `n_out` values.
    pub fn pack_with(
        n_out: usize,
        n_in: usize,
        bias: Option<&[f32]>,
        format: Format,
        mut fill: impl FnMut(usize, &mut [f32]),
    ) -> Result<Self, KernelError> {
        if let Some(bias) = bias {
            check_len("a bias", bias.len(), n_out)?;
        }
        let per_panel = panel_lines(format, n_in);
        let mut store = Store::zeroed(n_out.div_ceil(COLUMNS) * per_panel);
        let mut rows = vec![0.0; COLUMNS * n_in];
        for (p, panel) in store.lines_mut().chunks_exact_mut(per_panel.max(1)).enumerate() {
            let height = (n_out - p * COLUMNS).min(COLUMNS);
            let rows = &mut rows[..height * n_in];
            for (i, row) in rows.chunks_exact_mut(n_in).enumerate() {
                fill(p * COLUMNS + i, row);
            }
            pack_panel(format, rows, n_in, panel);
        }
        Ok(Self { store, bias: bias.map(<[f32]>::to_vec), n_out, n_in, format })
    }

    /// Loads GGUF Q8_0 without loss: `blocks` is `[n_out, n_in / 32]` blocks of 34 bytes, a
    /// half-precision scale (little endian) and 32 signed bytes along the input.
    ///
    /// # Errors
    /// `n_in` is no multiple of 32, or a slice does not have the length of its shape.
    pub fn from_q8_blocks(
        blocks: &[u8],
        n_out: usize,
        n_in: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self, KernelError> {
        if !n_in.is_multiple_of(BLOCK) {
            return Err(KernelError::Multiple { what: "the input of a Q8_0 matrix", of: 32, got: n_in });
        }
        check_len("a Q8_0 matrix (bytes)", blocks.len(), n_out * n_in / 32 * 34)?;
        let mut layer = Self::pack_with(n_out, n_in, bias, Format::Q8, |_, row| row.fill(0.0))?;
        let per_panel = panel_lines(Format::Q8, n_in);
        for (row, blocks) in blocks.chunks_exact((n_in / BLOCK * 34).max(1)).enumerate() {
            let panel = &mut layer.store.lines_mut()[row / COLUMNS * per_panel..][..per_panel];
            for (block, lines) in blocks.chunks_exact(34).zip(panel.chunks_exact_mut(BLOCK_LINES)) {
                let scale = f16::from_le_bytes([block[0], block[1]]);
                let weights = std::array::from_fn(|i| block[2 + i] as i8);
                set_block(lines, row % COLUMNS, scale, &weights);
            }
        }
        Ok(layer)
    }

    /// The width of an input row.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// The width of an output row.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// How the weights are kept.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The bytes that one forward pass reads of the layer.
    pub fn bytes(&self) -> usize {
        size_of_val(self.store.lines())
    }

    /// Row `row` of the weights in single precision, `[n_in]`: an embedding whose head is tied.
    ///
    /// # Panics
    /// `row` is not below `n_out`, or `out` not `n_in` long.
    pub fn weight_row_into(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n_out && out.len() == self.n_in, "a row of the weights and room for it");
        column_into(self.format, self.layer().panel(row / COLUMNS), row % COLUMNS, out);
    }

    /// `out = x W^T + b`: `x` is `[m, n_in]`, `out` `[m, n_out]`, for any `m`.
    ///
    /// Each number is one sum in a fixed order, whatever `m` and the threads.
    ///
    /// # Panics
    /// The slices do not hold the same whole number of rows.
    pub fn forward(&self, x: &[f32], out: &mut [f32], threads: &Threads) {
        self.forward_as(Isa::best(), x, out, threads);
    }

    fn forward_as(&self, isa: Isa, x: &[f32], out: &mut [f32], threads: &Threads) {
        if self.n_in == 0 || self.n_out == 0 || x.is_empty() {
            return;
        }
        let m = x.len() / self.n_in;
        assert_eq!(x.len(), m * self.n_in, "an input holds whole rows");
        assert_eq!(out.len(), m * self.n_out, "an output has a row for every input row");
        let panels = self.n_out.div_ceil(COLUMNS);
        let chunk = self.panels_per_task(panels, m, threads);
        let layer = self.layer();
        let out = Disjoint::new(out);
        let inputs = if self.format == Format::Q8 { q8::quantize(isa, x, self.n_in) } else { Vec::new() };
        threads.for_each(panels.div_ceil(chunk), |task| {
            let (from, to) = (task * chunk, (task * chunk + chunk).min(panels));
            match self.format {
                Format::F32 => float::f32_panels(isa, &layer, x, from, to, &out),
                Format::Bf16 => float::bf16_panels(isa, &layer, x, from, to, &out),
                Format::F16 => float::f16_panels(isa, &layer, x, from, to, &out),
                Format::Q8 => q8::q8_panels(isa, &layer, &inputs, from, to, &out),
            }
        });
    }

    /// Small tasks, so that a thread that is held up delays the end little; one task where a thread
    /// would come too late to help.
    fn panels_per_task(&self, panels: usize, m: usize, threads: &Threads) -> usize {
        const SMALL: usize = 128 * 1024;
        const TASK_BYTES: usize = 64 * 1024;
        if threads.count() == 1 || self.n_in * self.n_out * m < SMALL {
            return panels;
        }
        let panel = panel_lines(self.format, self.n_in) * size_of::<Line>();
        (TASK_BYTES / panel).clamp(1, panels.div_ceil(4 * threads.count()))
    }

    fn layer(&self) -> Layer<'_> {
        Layer {
            lines: self.store.lines(),
            per_panel: panel_lines(self.format, self.n_in),
            bias: self.bias.as_deref(),
            n_in: self.n_in,
            n_out: self.n_out,
        }
    }
}

/// What the kernels see of a layer.
struct Layer<'a> {
    lines: &'a [Line],
    per_panel: usize,
    bias: Option<&'a [f32]>,
    n_in: usize,
    n_out: usize,
}

impl Layer<'_> {
    #[inline(always)]
    fn panel(&self, p: usize) -> &[Line] {
        &self.lines[p * self.per_panel..][..self.per_panel]
    }

    /// Puts the sums of row `row` in panel `p` to their place, the bias added last.
    #[inline(always)]
    fn write(&self, p: usize, row: usize, sums: &[f32], out: &Disjoint<'_>) {
        let column = p * COLUMNS;
        let len = (self.n_out - column).min(COLUMNS);
        // SAFETY: no other task has this panel, and no part outlives this call.
        #[allow(unsafe_code)]
        let out = unsafe { out.part(row * self.n_out + column, len) };
        match self.bias {
            Some(bias) => {
                let bias = &bias[column..][..len];
                out.iter_mut().zip(sums).zip(bias).for_each(|((o, s), b)| *o = s + b);
            }
            None => out.copy_from_slice(&sums[..len]),
        }
    }
}

#[cfg(test)]
mod tests;
