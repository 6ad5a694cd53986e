//! The convex problem of a fit, and its minimum.
//!
//! `P(as said) = sigmoid(beta * y * (m + x . g - t * b))`: `m` the exact margin where the fit starts, `g` the
//! margin's gradient there, `y` 1 or -1, `t` 1 for a thumb and 0 for a pair, `b` the threshold of thumbs. The
//! loss is the negative log-likelihood and, for the regularisation, `|x|^2 / (2 s^2) + (b - c)^2 / (2 r^2)`.
//!
//! There are few observations and many features, so Newton's method runs in as many dimensions as there are
//! observations: with the kernel `K = s^2 G G^T + r^2 t t^T` the minimum is `x = s^2 G^T a`, where `a` solves
//! `a = -dL/du` at `u = u_0 + K a`. The step is the numerically stable one of Rasmussen and Williams,
//! 'Gaussian Processes for Machine Learning', algorithm 3.1: the matrix `I + W^(1/2) K W^(1/2)` has no
//! eigenvalue below 1.

use super::cholesky::{Symmetric, dot};

/// The most Newton steps; the problem is convex and takes about six.
const STEPS: usize = 100;
/// A step that lowers the loss by less ends the search, in nats.
const ENOUGH: f64 = 1e-12;

/// What was said of one observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A pair: the first answer was preferred.
    Chosen,
    /// A thumb up.
    Up,
    /// A thumb down.
    Down,
}

impl Verdict {
    fn sign(self) -> f64 {
        if self == Self::Down { -1.0 } else { 1.0 }
    }

    /// Whether it is a thumb, which is measured against the threshold.
    pub fn is_thumb(self) -> bool {
        self != Self::Chosen
    }
}

/// One piece of feedback as numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The log-ratio of policy and reference where the fit starts, in nats: of a pair the chosen answer's less
    /// the rejected one's, of a thumb its answer's.
    pub margin: f64,
    /// The margin's gradient there, one number for each feature.
    pub gradient: Vec<f64>,
    /// What was said.
    pub verdict: Verdict,
}

/// The problem of some observations, in its dual form.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    observations: &'a [Observation],
    beta: f64,
    /// `s^2`.
    feature_variance: f64,
    /// `r^2`.
    threshold_variance: f64,
    /// `c`.
    threshold: f64,
    kernel: Symmetric,
}

/// The minimum of a problem.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// One number for each observation that was fitted to: `a`.
    dual: Vec<f64>,
    /// The observations that was fitted to.
    rows: Vec<usize>,
    /// Newton steps that it took.
    pub steps: usize,
}

impl<'a> Problem<'a> {
    /// A problem whose prior lets the margins move by about `spread / beta` nats: `s = spread / (beta * root
    /// mean square of |g|)`, so that one number suits models of any width and answers of any length.
    pub fn new(observations: &'a [Observation], beta: f64, spread: f64) -> Self {
        let n = observations.len().max(1) as f64;
        let squares: f64 = observations.iter().map(|o| dot(&o.gradient, &o.gradient)).sum::<f64>() / n;
        let feature_variance = if squares > 0.0 { (spread / beta).powi(2) / squares } else { 0.0 };
        // A thumb's margin has no zero of its own: its threshold starts at the mean, and is hardly held there.
        let thumbs: Vec<f64> =
            observations.iter().filter(|o| o.verdict.is_thumb()).map(|o| o.margin).collect();
        let count = thumbs.len().max(1) as f64;
        let threshold = thumbs.iter().sum::<f64>() / count;
        let scatter = thumbs.iter().map(|m| (m - threshold).powi(2)).sum::<f64>() / count;
        let threshold_variance = scatter + (spread / beta).powi(2);
        let kernel = Symmetric::from_fn(observations.len(), |i, j| {
            let (a, b) = (&observations[i], &observations[j]);
            let both = a.verdict.is_thumb() && b.verdict.is_thumb();
            feature_variance * dot(&a.gradient, &b.gradient) + if both { threshold_variance } else { 0.0 }
        });
        Self { observations, beta, feature_variance, threshold_variance, threshold, kernel }
    }

    /// `s^2`, the variance of the prior in every direction.
    pub fn feature_variance(&self) -> f64 {
        self.feature_variance
    }

    /// The minimum over these observations.
    pub fn minimise(&self, rows: &[usize]) -> Solution {
        let kernel = Symmetric::from_fn(rows.len(), |i, j| self.kernel.row(rows[i])[rows[j]]);
        let n = rows.len();
        let (mut dual, mut fitted) = (vec![0.0; n], vec![0.0; n]);
        let mut loss = self.loss(rows, &dual, &fitted);
        for steps in 1..=STEPS {
            let slopes: Vec<(f64, f64)> =
                rows.iter().zip(&fitted).map(|(&row, &f)| self.slope(row, f)).collect();
            let root: Vec<f64> = slopes.iter().map(|s| s.1.sqrt()).collect();
            let system = Symmetric::from_fn(n, |i, j| {
                f64::from(u8::from(i == j)) + root[i] * kernel.row(i)[j] * root[j]
            });
            // It is positive definite by construction: only numbers that are not finite break it.
            let Some(system) = system.cholesky() else {
                return Solution { dual, rows: rows.to_vec(), steps };
            };
            let b: Vec<f64> = slopes.iter().zip(&fitted).map(|(s, f)| s.1 * f - s.0).collect();
            let pulled: Vec<f64> = kernel.times(&b).iter().zip(&root).map(|(x, r)| x * r).collect();
            let solved = system.solve(&pulled);
            let target: Vec<f64> = b.iter().zip(&root).zip(&solved).map(|((b, r), x)| b - r * x).collect();
            // Newton's step, halved until the loss falls: far from the minimum it can overshoot.
            let mut share = 1.0;
            let next = loop {
                let dual_at: Vec<f64> = dual.iter().zip(&target).map(|(a, t)| a + share * (t - a)).collect();
                let fitted_at = kernel.times(&dual_at);
                let loss_at = self.loss(rows, &dual_at, &fitted_at);
                if loss_at < loss {
                    break Some((dual_at, fitted_at, loss_at));
                }
                share /= 2.0;
                if share < 1e-10 {
                    break None;
                }
            };
            let Some((dual_at, fitted_at, loss_at)) = next else {
                return Solution { dual, rows: rows.to_vec(), steps };
            };
            let gain = loss - loss_at;
            (dual, fitted, loss) = (dual_at, fitted_at, loss_at);
            if gain < ENOUGH {
                return Solution { dual, rows: rows.to_vec(), steps };
            }
        }
        Solution { dual, rows: rows.to_vec(), steps: STEPS }
    }

    /// The step `x` of a solution, one number for each feature.
    pub fn step(&self, solution: &Solution) -> Vec<f64> {
        let width = self.observations.first().map_or(0, |o| o.gradient.len());
        let mut step = vec![0.0; width];
        for (&row, a) in solution.rows.iter().zip(&solution.dual) {
            let pull = self.feature_variance * a;
            step.iter_mut().zip(&self.observations[row].gradient).for_each(|(x, g)| *x += pull * g);
        }
        step
    }

    /// The threshold of thumbs of a solution.
    pub fn threshold(&self, solution: &Solution) -> f64 {
        let thumbs = solution.rows.iter().zip(&solution.dual);
        let pull: f64 =
            thumbs.filter(|(row, _)| self.observations[**row].verdict.is_thumb()).map(|(_, a)| a).sum();
        // The threshold enters margins with a minus sign.
        self.threshold - self.threshold_variance * pull
    }

    /// How surely a solution orders observation `row` as it was said: `y * u`, wrong below 0.
    pub fn certainty(&self, solution: &Solution, row: usize) -> f64 {
        let kernel = self.kernel.row(row);
        let moved: f64 = solution.rows.iter().zip(&solution.dual).map(|(&at, a)| kernel[at] * a).sum();
        self.observations[row].verdict.sign() * (self.start(row) + moved)
    }

    /// As [`Self::certainty`], where the fit starts.
    pub fn certainty_at_start(&self, row: usize) -> f64 {
        self.observations[row].verdict.sign() * self.start(row)
    }

    fn start(&self, row: usize) -> f64 {
        let observation = &self.observations[row];
        observation.margin - if observation.verdict.is_thumb() { self.threshold } else { 0.0 }
    }

    /// The loss with its regularisation, which is `a . K a / 2`.
    fn loss(&self, rows: &[usize], dual: &[f64], fitted: &[f64]) -> f64 {
        let likelihood: f64 = rows
            .iter()
            .zip(fitted)
            .map(|(&row, f)| {
                let sign = self.observations[row].verdict.sign();
                softplus(-self.beta * sign * (self.start(row) + f))
            })
            .sum();
        likelihood + 0.5 * dot(dual, fitted)
    }

    /// The loss's first and second derivative by the margin, where it has moved by `f`.
    fn slope(&self, row: usize, f: f64) -> (f64, f64) {
        let sign = self.observations[row].verdict.sign();
        let wrong = sigmoid(-self.beta * sign * (self.start(row) + f));
        (-self.beta * sign * wrong, self.beta * self.beta * wrong * (1.0 - wrong))
    }
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// `log(1 + exp(x))`, the negative log-likelihood of `sigmoid(-x)`.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
#[path = "logistic_tests.rs"]
mod tests;
