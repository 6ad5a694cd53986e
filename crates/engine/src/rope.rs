//! Tables of the rotary position embedding (Su et al., arXiv 2104.09864).

use std::f32::consts::PI;

use crate::config::{Rope, RopeScaling};

/// Cosines and sines of every position and frequency, `[context, head_dim / 2]` each.
pub(crate) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    pub(crate) fn new(rope: &Rope, head_dim: usize, context: usize) -> Self {
        let frequencies = rope.frequencies(head_dim);
        let half = frequencies.len();
        let mut table = Self { cos: vec![0.0; context * half], sin: vec![0.0; context * half] };
        for position in 0..context {
            for (i, frequency) in frequencies.iter().enumerate() {
                // In single precision, as the models were trained.
                let angle = position as f32 * frequency;
                table.cos[position * half + i] = angle.cos();
                table.sin[position * half + i] = angle.sin();
            }
        }
        table
    }

    pub(crate) fn cos(&self) -> &[f32] {
        &self.cos
    }

    pub(crate) fn sin(&self) -> &[f32] {
        &self.sin
    }
}

impl Rope {
    /// By how much each pair of a head turns a position, `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain =
            (0..head_dim / 2).map(|i| 1.0 / (self.theta as f32).powf((2 * i) as f32 / head_dim as f32));
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / *factor as f32).collect(),
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, factor)| f / factor).collect(),
            // Llama 3.1's rule, as in the model's reference implementation.
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let [factor, low, high, original] =
                    [factor, low_freq_factor, high_freq_factor, original].map(|v| *v as f32);
                plain
                    .map(|frequency| {
                        let wavelength = 2.0 * PI / frequency;
                        if wavelength < original / high {
                            frequency
                        } else if wavelength > original / low {
                            frequency / factor
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            (1.0 - smooth) * frequency / factor + smooth * frequency
                        }
                    })
                    .collect()
            }
        }
    }
}
