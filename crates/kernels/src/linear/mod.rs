//! `y = x W^T + b` with weights packed once.

use half::{bf16, f16};

use crate::error::check_len;
use crate::{KernelError, Threads};

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
    weights: Vec<f32>,
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
        let mut weights = vec![0.0; n_out * n_in];
        for row in 0..n_out {
            fill(row, &mut weights[row * n_in..][..n_in]);
        }
        Ok(Self { weights, bias: bias.map(<[f32]>::to_vec), n_out, n_in, format })
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
        if n_in % 32 != 0 {
            return Err(KernelError::Multiple { what: "the input of a Q8_0 matrix", of: 32, got: n_in });
        }
        check_len("a Q8_0 matrix (bytes)", blocks.len(), n_out * n_in / 32 * 34)?;
        let row_bytes = n_in / 32 * 34;
        Self::pack_with(n_out, n_in, bias, Format::Q8, |row, out| {
            for (block, out) in blocks[row * row_bytes..].chunks_exact(34).zip(out.chunks_exact_mut(32)) {
                let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                out.iter_mut().zip(&block[2..]).for_each(|(o, &q)| *o = scale * f32::from(q as i8));
            }
        })
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
        self.weights.len() * 4
    }

    /// Row `row` of the weights in single precision, `[n_in]`: an embedding whose head is tied.
    pub fn weight_row_into(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.weights[row * self.n_in..][..self.n_in]);
    }

    /// `out = x W^T + b`: `x` is `[m, n_in]`, `out` `[m, n_out]`, for any `m`.
    ///
    /// Each number is one sum in a fixed order, whatever `m` and the threads.
    ///
    /// # Panics
    /// The slices do not hold the same whole number of rows.
    pub fn forward(&self, x: &[f32], out: &mut [f32], _threads: &Threads) {
        for (x, out) in x.chunks_exact(self.n_in).zip(out.chunks_exact_mut(self.n_out)) {
            for (j, out) in out.iter_mut().enumerate() {
                let w = &self.weights[j * self.n_in..][..self.n_in];
                *out = x.iter().zip(w).fold(0.0f32, |s, (x, w)| x.mul_add(*w, s));
                if let Some(bias) = &self.bias {
                    *out += bias[j];
                }
            }
        }
    }
}
