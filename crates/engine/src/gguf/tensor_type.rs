//! The number types of ggml's tensors.

use std::fmt;

use candle_core::quantized::GgmlDType;

use crate::checkpoint::stored::Element;

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorType(GgmlDType);

impl TensorType {
    /// The type with ggml's number.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        Ok(Self(match id {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            30 => GgmlDType::BF16,
            _ => {
                return Err(format!(
                    "is of ggml's type {id}, which is not supported; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K"
                ));
            }
        }))
    }

    /// What the rest of the engine knows it as.
    pub(super) fn element(self) -> Element {
        match self.0 {
            GgmlDType::F32 => Element::F32,
            GgmlDType::F16 => Element::F16,
            GgmlDType::BF16 => Element::Bf16,
            GgmlDType::Q8_0 => Element::Q8,
            other => Element::Quantized(other),
        }
    }

    /// Numbers of one block.
    pub(super) fn block(self) -> usize {
        self.0.block_size()
    }

    /// Bytes of one block.
    pub(super) fn block_bytes(self) -> usize {
        self.0.type_size()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
