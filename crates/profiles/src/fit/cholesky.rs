//! The one piece of linear algebra that a fit needs: a positive definite system, solved.
//!
//! The crates that offer it bring a dozen versions of one dependency, or a whole library for forty lines.

/// A symmetric matrix of `n` rows, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Symmetric {
    n: usize,
    values: Vec<f64>,
}

impl Symmetric {
    /// The matrix whose entry at `(i, j)`, `j <= i`, is `entry(i, j)`.
    pub fn from_fn(n: usize, entry: impl Fn(usize, usize) -> f64) -> Self {
        let mut values = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let value = entry(i, j);
                (values[i * n + j], values[j * n + i]) = (value, value);
            }
        }
        Self { n, values }
    }

    /// The number of rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.n..][..self.n]
    }

    /// The product with a vector of `n` numbers.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        (0..self.n).map(|i| dot(self.row(i), x)).collect()
    }

    /// The lower triangle `L` with `L L^T` this matrix; `None` where it is not positive definite.
    pub fn cholesky(&self) -> Option<Cholesky> {
        let n = self.n;
        let mut lower = self.values.clone();
        for i in 0..n {
            for j in 0..=i {
                let (before, rest) = lower.split_at(i * n);
                let row_j = if i == j { &rest[..j] } else { &before[j * n..][..j] };
                let left = rest[j] - dot(&rest[..j], row_j);
                let value = if i == j { left.sqrt() } else { left / before[j * n + j] };
                if !value.is_finite() || (i == j && value <= 0.0) {
                    return None;
                }
                lower[i * n + j] = value;
            }
        }
        Some(Cholesky { n, lower })
    }
}

/// A lower triangle that solves systems.
#[derive(Debug, Clone)]
pub struct Cholesky {
    n: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// `x` with `L L^T x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let (n, at) = (self.n, |i: usize, j: usize| self.lower[i * self.n + j]);
        let mut x = b.to_vec();
        for i in 0..n {
            x[i] = (x[i] - dot(&self.lower[i * n..][..i], &x[..i])) / at(i, i);
        }
        for i in (0..n).rev() {
            let below: f64 = (i + 1..n).map(|j| at(j, i) * x[j]).sum();
            x[i] = (x[i] - below) / at(i, i);
        }
        x
    }
}

/// The sum of products; of the shorter length.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_positive_definite_is_told() {
        assert!(Symmetric::from_fn(2, |i, j| if i == j { 1.0 } else { 2.0 }).cholesky().is_none());
        assert!(Symmetric::from_fn(1, |_, _| f64::NAN).cholesky().is_none());
    }

    proptest! {
        #[test]
        fn the_solution_solves(rows in prop::collection::vec(prop::collection::vec(-3.0f64..3.0, 7), 1..7)) {
            let n = rows.len();
            let matrix = Symmetric::from_fn(n, |i, j| dot(&rows[i], &rows[j]) + if i == j { 0.5 } else { 0.0 });
            let b: Vec<f64> = (0..n).map(|i| i as f64 - 1.0).collect();
            let x = matrix.cholesky().unwrap().solve(&b);
            for (got, want) in matrix.times(&x).iter().zip(&b) {
                prop_assert!((got - want).abs() < 1e-8, "{got} {want}");
            }
        }
    }
}
