//! The latent form of a person (CLaP, arXiv 2412.20834): an adapter on the frozen features that a small
//! vector steers, and the encoder that says which vector an answer speaks for.
//!
//! `h' = h + U (tanh(G z) * silu(D h + b))`: of low rank, after all layers, so that a row costs two thin
//! products and a batch may hold any number of people. At `z = 0` it changes nothing.
//!
//! `e(y) = sum_t O silu(H h_t + T E[a_t] + c)`: a latent that is a sum over the answer's tokens, so that the
//! difference of two answers is that of what differs in them.

use attune_kernels::EmbeddingTable;
use serde::{Deserialize, Serialize};

use crate::{Checkpoint, LoadError};

/// The adapter and its encoder, in single precision.
#[derive(Debug, Clone)]
pub struct LatentAdapter {
    /// The width of the latent, `z`.
    size: usize,
    /// `G`, `[rank, size]`.
    gate: Matrix,
    /// `D`, `[rank, d]`.
    down: Matrix,
    /// `b`, `[rank]`.
    bias: Vec<f32>,
    /// `U`, `[d, rank]`.
    up: Matrix,
    /// `H`, `[m, d]`.
    hidden: Matrix,
    /// `T`, `[m, d]`.
    token: Matrix,
    /// `c`, `[m]`.
    encoder_bias: Vec<f32>,
    /// `O`, `[size, m]`.
    out: Matrix,
}

/// The sizes of an adapter, as `attune.json` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentShape {
    /// The width of a latent.
    pub size: usize,
    /// The rank of the adapter.
    pub rank: usize,
    /// The inner width of the encoder, `m`.
    pub inner: usize,
}

/// Row-major.
#[derive(Debug, Clone)]
struct Matrix {
    columns: usize,
    values: Vec<f32>,
}

/// What an adapter needs to know of one person: `tanh(G z)`, `[rank]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gates(Vec<f32>);

impl LatentAdapter {
    /// Reads an adapter for features of width `d`.
    ///
    /// # Errors
    /// Names the tensor that is missing or of another shape.
    pub(crate) fn load(tensors: &Checkpoint, shape: &LatentShape, d: usize) -> Result<Self, LoadError> {
        let &LatentShape { size, rank, inner } = shape;
        let matrix = |name: &str, rows: usize, columns: usize| {
            Ok::<_, LoadError>(Matrix { columns, values: tensors.f32(name, &[rows, columns])? })
        };
        Ok(Self {
            size,
            gate: matrix("adapter.gate", rank, size)?,
            down: matrix("adapter.down", rank, d)?,
            bias: tensors.f32("adapter.bias", &[rank])?,
            up: matrix("adapter.up", d, rank)?,
            hidden: matrix("encoder.hidden", inner, d)?,
            token: matrix("encoder.token", inner, d)?,
            encoder_bias: tensors.f32("encoder.bias", &[inner])?,
            out: matrix("encoder.out", size, inner)?,
        })
    }

    /// The width of a latent.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What a person's latent, `[size]`, makes of the adapter.
    pub fn gates(&self, latent: &[f32]) -> Gates {
        Gates(self.gate.times(latent).into_iter().map(f32::tanh).collect())
    }

    /// Adapts the features of one row, `[d]`, in place.
    pub fn apply(&self, gates: &Gates, features: &mut [f32]) {
        let mut inner = self.down.times(features);
        for ((x, b), gate) in inner.iter_mut().zip(&self.bias).zip(&gates.0) {
            *x = gate * silu(*x + b);
        }
        features.iter_mut().zip(self.up.times(&inner)).for_each(|(f, x)| *f += x);
    }

    /// The latent that an answer speaks for, `[size]`: of its tokens and the features before each of them.
    pub fn encode(&self, features: &[Vec<f32>], tokens: &[u32], embedding: &EmbeddingTable) -> Vec<f64> {
        let mut sum = vec![0.0f64; self.encoder_bias.len()];
        let mut row = vec![0.0; embedding.d()];
        for (features, &token) in features.iter().zip(tokens) {
            embedding.row_into(token, &mut row);
            let (of_hidden, of_token) = (self.hidden.times(features), self.token.times(&row));
            let inner = of_hidden.iter().zip(&of_token).zip(&self.encoder_bias);
            sum.iter_mut().zip(inner).for_each(|(s, ((h, t), c))| *s += f64::from(silu(h + t + c)));
        }
        let rows = self.out.values.chunks_exact(self.out.columns);
        rows.map(|row| row.iter().zip(&sum).map(|(o, s)| f64::from(*o) * s).sum()).collect()
    }
}

impl Matrix {
    fn times(&self, x: &[f32]) -> Vec<f32> {
        debug_assert_eq!(x.len(), self.columns);
        self.values.chunks_exact(self.columns).map(|row| dot(row, x)).collect()
    }
}

/// Eight sums side by side, in a fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: usize = 11;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    fn matrix(rows: usize, columns: usize, seed: u32) -> Matrix {
        Matrix { columns, values: numbers(rows * columns, seed) }
    }

    fn adapter() -> LatentAdapter {
        LatentAdapter {
            size: 3,
            gate: matrix(5, 3, 1),
            down: matrix(5, D, 2),
            bias: numbers(5, 3),
            up: matrix(D, 5, 4),
            hidden: matrix(4, D, 5),
            token: matrix(4, D, 6),
            encoder_bias: numbers(4, 7),
            out: matrix(3, 4, 8),
        }
    }

    /// The product in double precision, written down once more.
    fn times(matrix: &Matrix, x: &[f64]) -> Vec<f64> {
        let rows = matrix.values.chunks_exact(matrix.columns);
        rows.map(|row| row.iter().zip(x).map(|(a, b)| f64::from(*a) * b).sum()).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    fn silu64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    #[test]
    fn no_latent_changes_nothing_and_a_latent_is_the_formula() {
        let adapter = adapter();
        let before = numbers(D, 9);
        let mut features = before.clone();
        adapter.apply(&adapter.gates(&[0.0; 3]), &mut features);
        assert_eq!(features, before);
        let latent = [1.5f32, -2.0, 0.5];
        adapter.apply(&adapter.gates(&latent), &mut features);
        let gates = times(&adapter.gate, &wide(&latent));
        let inner: Vec<f64> = times(&adapter.down, &wide(&before))
            .iter()
            .zip(&adapter.bias)
            .zip(gates)
            .map(|((x, b), g)| g.tanh() * silu64(x + f64::from(*b)))
            .collect();
        for ((got, start), moved) in features.iter().zip(&before).zip(times(&adapter.up, &inner)) {
            assert!((f64::from(*got) - f64::from(*start) - moved).abs() < 1e-5);
        }
    }

    #[test]
    fn an_answers_latent_is_the_sum_of_its_tokens() {
        let adapter = adapter();
        let embedding = EmbeddingTable::from_f32(numbers(6 * D, 10), 6, D).unwrap();
        let features: Vec<Vec<f32>> = (0..3).map(|i| numbers(D, 20 + i)).collect();
        let all = adapter.encode(&features, &[4, 0, 5], &embedding);
        let mut sum = vec![0.0; 3];
        for (features, token) in features.iter().zip([4usize, 0, 5]) {
            let row = &numbers(6 * D, 10)[token * D..][..D];
            let (h, t) = (times(&adapter.hidden, &wide(features)), times(&adapter.token, &wide(row)));
            let inner: Vec<f64> = h
                .iter()
                .zip(&t)
                .zip(&adapter.encoder_bias)
                .map(|((h, t), c)| silu64(h + t + f64::from(*c)))
                .collect();
            sum.iter_mut().zip(times(&adapter.out, &inner)).for_each(|(s, x)| *s += x);
        }
        for (got, want) in all.iter().zip(sum) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        assert_eq!(adapter.encode(&[], &[], &embedding), [0.0; 3]);
    }
}
