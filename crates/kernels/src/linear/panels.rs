//! How weights lie in memory: panels of 32 output columns, input-major, zero padded.
//!
//! A panel is read from its first byte to its last by one pass, which is what memory is fastest at.
//! In lines of 64 bytes, for every input `k` (or block of 32 inputs):
//!
//! | format | lines | content |
//! | --- | --- | --- |
//! | f32 | 2 | columns 0 to 15, 16 to 31 |
//! | bf16 | 1 | columns `c` in the low halves, `c + 16` in the high halves |
//! | f16 | 1 | columns 0 to 31 in order |
//! | q8 | 17 | for every 4 inputs 2 lines: column `c` in lane `c`, one byte an input; then 32 scales |

use half::{bf16, f16};

use super::Format;

/// Output columns of a panel.
pub(crate) const COLUMNS: usize = 32;
/// Inputs that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Lines of a block of 8-bit weights.
pub(crate) const BLOCK_LINES: usize = 17;

/// A cache line of weights.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 16]);
}

/// Lines of one panel.
pub(crate) fn panel_lines(format: Format, n_in: usize) -> usize {
    match format {
        Format::F32 => 2 * n_in,
        Format::Bf16 | Format::F16 => n_in,
        Format::Q8 => n_in.div_ceil(BLOCK) * BLOCK_LINES,
    }
}

/// Packs up to 32 rows of weights, `[rows, n_in]`, into a zeroed panel.
pub(crate) fn pack_panel(format: Format, rows: &[f32], n_in: usize, panel: &mut [Line]) {
    if format == Format::Q8 {
        // An unused column holds zeros too, and a zero is stored as 128.
        let zeros = vec![0.0; n_in];
        for column in 0..COLUMNS {
            let row = rows.get(column * n_in..(column + 1) * n_in).unwrap_or(&zeros);
            for (block, lines) in row.chunks(BLOCK).zip(panel.chunks_exact_mut(BLOCK_LINES)) {
                let (scale, weights) = q8_block(block);
                set_block(lines, column, scale, &weights);
            }
        }
        return;
    }
    for (column, row) in rows.chunks_exact(n_in).enumerate() {
        for (k, &w) in row.iter().enumerate() {
            match format {
                Format::F32 => panel[2 * k + column / 16].0[column % 16] = w.to_bits(),
                Format::Bf16 => {
                    let bits = u32::from(bf16::from_f32(w).to_bits());
                    panel[k].0[column % 16] |= bits << (16 * (column / 16));
                }
                _ => {
                    let bits = u32::from(f16::from_f32(w).to_bits());
                    panel[k].0[column / 2] |= bits << (16 * (column % 2));
                }
            }
        }
    }
}

/// Up to 32 weights as signed bytes and the scale that gives them back, as half precision.
pub(crate) fn q8_block(weights: &[f32]) -> (f16, [i8; BLOCK]) {
    let largest = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
    let mut bytes = [0; BLOCK];
    for (byte, w) in bytes.iter_mut().zip(weights) {
        *byte = (w * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    (scale, bytes)
}

/// Sets one column of a block of 17 lines.
pub(crate) fn set_block(lines: &mut [Line], column: usize, scale: f16, weights: &[i8; BLOCK]) {
    for (group, four) in weights.chunks_exact(4).enumerate() {
        // The product of VNNI takes one side unsigned: weights are stored plus 128.
        let bytes = std::array::from_fn(|i| (four[i] as u8) ^ 0x80);
        lines[2 * group + column / 16].0[column % 16] = u32::from_le_bytes(bytes);
    }
    let (lane, shift) = (column / 2, 16 * (column % 2));
    let scales = &mut lines[BLOCK_LINES - 1].0[lane];
    *scales = *scales & !(0xffff << shift) | u32::from(scale.to_bits()) << shift;
}

/// One column of a panel in single precision.
pub(crate) fn column_into(format: Format, panel: &[Line], column: usize, out: &mut [f32]) {
    match format {
        Format::F32 => {
            for (out, lines) in out.iter_mut().zip(panel.chunks_exact(2)) {
                *out = f32::from_bits(lines[column / 16].0[column % 16]);
            }
        }
        Format::Bf16 => {
            for (out, line) in out.iter_mut().zip(panel) {
                *out = f32::from_bits(line.0[column % 16] >> (16 * (column / 16)) << 16);
            }
        }
        Format::F16 => {
            for (out, line) in out.iter_mut().zip(panel) {
                *out = half_lane(line, column);
            }
        }
        Format::Q8 => {
            for (out, lines) in out.chunks_mut(BLOCK).zip(panel.chunks_exact(BLOCK_LINES)) {
                let scale = half_lane(&lines[BLOCK_LINES - 1], column);
                for (i, out) in out.iter_mut().enumerate() {
                    let four = lines[i / 4 * 2 + column / 16].0[column % 16].to_le_bytes();
                    *out = scale * f32::from((four[i % 4] ^ 0x80) as i8);
                }
            }
        }
    }
}

fn half_lane(line: &Line, i: usize) -> f32 {
    f16::from_bits((line.0[i / 2] >> (16 * (i % 2))) as u16).to_f32()
}
