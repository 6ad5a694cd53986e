//! What is known of people's weights before anybody has spoken: along which directions they differ from ones.
//!
//! `w = 1 + L y`, `y` normal with the same width in every direction: the covariance of `w` is `L L^T` times that
//! width squared. `attune train prior` learns `L`.

use serde::{Deserialize, Serialize};

use crate::{Checkpoint, LoadError};

/// The directions, `L`, of a PersRM.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightPrior {
    /// `L^T`, row-major, `[rank, d]`.
    directions: Vec<f64>,
    d: usize,
}

/// The size of a prior, as `attune.json` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorShape {
    /// How many directions there are.
    pub rank: usize,
}

impl WeightPrior {
    /// The file beside a PersRM's weights.
    pub const FILE: &str = "weight_prior.safetensors";
    /// The one tensor in it, `[rank, d]`.
    pub const TENSOR: &str = "directions";

    /// Directions for features of width `d`, one after the other.
    pub fn new(directions: Vec<f64>, d: usize) -> Self {
        Self { directions, d: d.max(1) }
    }

    /// Reads the directions.
    ///
    /// # Errors
    /// Names the tensor that is missing or of another shape.
    pub(crate) fn load(tensors: &Checkpoint, shape: PriorShape, d: usize) -> Result<Self, LoadError> {
        let directions = tensors.f32(Self::TENSOR, &[shape.rank, d])?;
        Ok(Self::new(directions.into_iter().map(f64::from).collect(), d))
    }

    /// The number of directions.
    pub fn rank(&self) -> usize {
        self.directions.len() / self.d
    }

    /// A gradient by `w`, `[d]`, as one by `y`, `[rank]`: `L^T g`.
    pub fn along(&self, gradient: &[f64]) -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(gradient).map(|(l, g)| l * g).sum();
        self.directions.chunks_exact(self.d).map(dot).collect()
    }

    /// The step of `w` from ones, `[d]`, that `y`, `[rank]`, stands for: `L y`.
    pub fn step(&self, y: &[f64]) -> Vec<f64> {
        let mut step = vec![0.0; self.d];
        for (row, y) in self.directions.chunks_exact(self.d).zip(y) {
            step.iter_mut().zip(row).for_each(|(s, l)| *s += l * y);
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_moves_a_margin_as_its_gradient_says() {
        let prior = WeightPrior::new(vec![1.0, 0.0, 2.0, 0.5, -1.0, 0.0], 3);
        assert_eq!(prior.rank(), 2);
        let (gradient, y) = ([0.3, -0.7, 1.1], [2.0, -3.0]);
        assert_eq!(prior.step(&y), [0.5, 3.0, 4.0]);
        let by_w: f64 = prior.step(&y).iter().zip(gradient).map(|(s, g)| s * g).sum();
        let by_y: f64 = prior.along(&gradient).iter().zip(y).map(|(g, y)| g * y).sum();
        assert!((by_w - by_y).abs() < 1e-12);
    }
}
