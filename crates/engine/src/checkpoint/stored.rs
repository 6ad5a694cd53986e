//! One tensor as it lies in its file, and its way into packed form, row by row.

use std::borrow::Cow;

use attune_kernels::{Format, cuda};
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

/// Numbers of a block of Q8_0, and its bytes: a scale in half precision, and 32 signed bytes.
const Q8_BLOCK: (usize, usize) = (32, 34);

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
    /// ggml's Q8_0.
    Q8,
    /// Another of ggml's quantised types, which candle reads.
    Quantized(GgmlDType),
}

impl Element {
    /// The packed form that is as near as any. What is quantised otherwise than Q8_0 goes to that form
    /// too: its steps are finer than those of every such type, at about a quarter of f32's size.
    pub(crate) fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::F16 => Format::F16,
            Self::Q8 | Self::Quantized(_) => Format::Q8,
        }
    }

    /// Whether a card stores such numbers with the same bytes.
    pub(crate) fn is(self, element: cuda::Element) -> bool {
        matches!(
            (self, element),
            (Self::F32, cuda::Element::F32)
                | (Self::F16, cuda::Element::F16)
                | (Self::Bf16, cuda::Element::Bf16)
        )
    }

    /// Numbers of a block and its bytes.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Bf16 | Self::F16 => (1, 2),
            Self::Q8 => Q8_BLOCK,
            Self::Quantized(dtype) => (dtype.block_size(), dtype.type_size()),
        }
    }
}

/// A tensor of rank 1 or 2 as it lies in its file.
pub(crate) struct Stored<'a> {
    element: Element,
    data: &'a [u8],
    rows: usize,
    row_bytes: usize,
    /// The width of the heads whose rows lie in pairs.
    paired: Option<usize>,
}

impl<'a> Stored<'a> {
    /// A tensor of this shape, row-major; a vector is rows of one number.
    ///
    /// # Errors
    /// The bytes are not as many as the shape asks for, or a row is no whole number of blocks.
    pub(crate) fn new(element: Element, data: &'a [u8], shape: &[usize]) -> Result<Self, String> {
        let (rows, width) = match *shape {
            [rows] => (rows, 1),
            [rows, width] => (rows, width),
            _ => return Err(format!("has the rank {}; it must be 1 or 2", shape.len())),
        };
        let (block, bytes) = element.block();
        if !width.is_multiple_of(block) {
            return Err(format!("is stored in blocks of {block}, of which a row of {width} is no multiple"));
        }
        let row_bytes = width / block * bytes;
        if rows.checked_mul(row_bytes) != Some(data.len()) {
            return Err(format!("has {} bytes, too few or too many for its shape {shape:?}", data.len()));
        }
        Ok(Self { element, data, rows, row_bytes, paired: None })
    }

    /// The same tensor, told that its rows are those of rotated heads as llama.cpp keeps them: row `2 i`
    /// of a head belongs to its first half, row `2 i + 1` to its second.
    pub(crate) fn in_pairs(self, head_dim: usize) -> Self {
        Self { paired: Some(head_dim), ..self }
    }

    pub(crate) fn element(&self) -> Element {
        self.element
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes of a row.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        let at = match self.paired {
            Some(head_dim) => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (within % half) + within / half
            }
            None => row,
        };
        &self.data[at * self.row_bytes..][..self.row_bytes]
    }

    /// The numbers of a row, widened to single precision; exact but for types that candle reads.
    ///
    /// # Errors
    /// candle refuses the row.
    pub(crate) fn row_into(&self, row: usize, out: &mut [f32]) -> Result<(), candle_core::Error> {
        let bytes = self.row(row);
        match self.element {
            Element::F32 => put(bytes, out, f32::from_le_bytes),
            Element::Bf16 => put(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Element::F16 => put(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Element::Q8 => {
                let (numbers, size) = Q8_BLOCK;
                for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(numbers)) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    out.iter_mut().zip(&block[2..]).for_each(|(o, &w)| *o = scale * f32::from(w as i8));
                }
            }
            Element::Quantized(dtype) => {
                let row = dtype.from_data(Cow::Borrowed(bytes)).dequantize(out.len())?;
                out.copy_from_slice(row.as_slice()?);
            }
        }
        Ok(())
    }

    /// All numbers, `count` of them, row-major, widened to single precision.
    ///
    /// # Errors
    /// As `row_into`.
    pub(crate) fn f32(&self, count: usize) -> Result<Vec<f32>, candle_core::Error> {
        let mut values = vec![0.0; count];
        let width = (count / self.rows.max(1)).max(1);
        for (row, out) in values.chunks_exact_mut(width).enumerate() {
            self.row_into(row, out)?;
        }
        Ok(values)
    }
}

fn put<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(numbers).for_each(|(o, &b)| *o = number(b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_pairs_come_back_in_halves() {
        // Two heads of 4 rows; the file has rows 0, 2, 1, 3 of each.
        let data: Vec<u8> = [0.0f32, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0].map(f32::to_le_bytes).concat();
        let stored = Stored::new(Element::F32, &data, &[8]).unwrap().in_pairs(4);
        let mut out = [0.0];
        for row in 0..8 {
            stored.row_into(row, &mut out).unwrap();
            assert_eq!(out, [row as f32]);
        }
    }

    #[test]
    fn bytes_must_fit_the_shape() {
        let new = |element, bytes: usize, shape: &[usize]| {
            Stored::new(element, &vec![0; bytes], shape).map(|s| s.rows()).map_err(|e| e.to_string())
        };
        assert_eq!(new(Element::Q8, 2 * 34, &[2, 32]), Ok(2));
        assert!(new(Element::Q8, 34, &[2, 16]).is_err());
        assert!(new(Element::F32, 12, &[2, 2]).is_err());
        assert!(new(Element::F32, 16, &[1, 2, 2]).is_err());
        assert!(new(Element::F16, usize::MAX % 7, &[usize::MAX, 2]).is_err());
    }
}
