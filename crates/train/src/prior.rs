//! The prior of fitted weights, learned once for a frozen PersRM: along which directions people differ.
//!
//! Many synthetic people each compare answers. From some of one person's comparisons the fit of
//! `attune_profiles` is made, with the directions as they are so far, and the weights that come out must make the
//! person's *other* comparisons come out right, by exact log-probabilities. So the directions are those along
//! which a fit to a few comparisons, linear as it is, carries over: model-agnostic meta-learning (Finn et al.,
//! arXiv 1703.03400) through a convex inner problem, whose minimum is differentiated implicitly (Rajeswaran et
//! al., arXiv 1909.04630).
//!
//! With `g` the gradients by `w` at ones, `y` the minimum of `sum softplus(-beta (m + g . L y)) + |y|^2 / (2 s^2)`
//! and `q` the gradient of what is asked of `w = 1 + L y`: `H u = L^T q`, `H` the inner problem's Hessian, and the
//! gradient by `L` is `q y^T + beta sum_i g_i ((1 - p_i) u - beta p_i (1 - p_i) (u . L^T g_i) y)^T`. The width `s` is
//! held.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use attune_engine::{PersRmSettings, PriorShape, WeightPrior};
use attune_profiles::fit::WEIGHTS_SPREAD;
use attune_profiles::fit::cholesky::{Symmetric, dot};
use attune_profiles::fit::logistic::{Observation, Problem, Verdict, sigmoid};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::log_softmax;
use tokenizers::Tokenizer;

use crate::comparisons::{Read, Rows, read, rows};
use crate::export::{write_json, write_vars};
use crate::model::Llama;
use crate::optimizer::{AdamW, Schedule};
use crate::progress::Progress;
use crate::world::dice::Dice;
use crate::world::{pairs, preference};

/// How to learn the directions.
#[derive(Debug, Clone)]
pub struct PriorOptions {
    /// Directions.
    pub rank: usize,
    /// Synthetic people.
    pub people: usize,
    /// Comparisons of each.
    pub pairs: usize,
    /// Steps.
    pub steps: usize,
    /// People a step.
    pub batch: usize,
    /// The fewest and the most comparisons that a fit is made to; each draws a number.
    pub support: (usize, usize),
    /// Comparisons of the same person that the fit is tried on.
    pub queries: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// The PersRM's own.
    pub beta: f64,
    /// How much the chosen answers' own loss a token counts, so that sentences stay whole.
    pub anchor: f64,
}

impl Default for PriorOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            people: 96,
            pairs: 30,
            steps: 600,
            batch: 6,
            support: (5, 20),
            queries: 4,
            rate: 2e-2,
            beta: 0.3,
            anchor: 0.3,
        }
    }
}

impl PriorOptions {
    /// Made in seconds, having learned nothing, for tests.
    pub fn tiny() -> Self {
        Self { people: 3, pairs: 6, steps: 2, batch: 2, support: (2, 4), queries: 2, ..Self::default() }
    }
}

/// What learning ended with, over the last tenth of the steps.
#[derive(Debug, Clone, Copy)]
pub struct PriorOutcome {
    /// Share of the tried comparisons that come out right.
    pub accuracy: f64,
}

/// The directions.
#[derive(Debug)]
pub struct Directions {
    /// `L^T`, `[rank, d]`, by its name in the file.
    vars: BTreeMap<String, Var>,
}

impl Directions {
    /// Random ones.
    fn fresh(rank: usize, d: usize, dice: &mut Dice) -> candle_core::Result<Self> {
        let values: Vec<f32> = (0..rank * d).map(|_| (0.3 * dice.normal()) as f32).collect();
        let var = Var::from_vec(values, (rank, d), &Device::Cpu)?;
        Ok(Self { vars: BTreeMap::from([(WeightPrior::TENSOR.to_owned(), var)]) })
    }

    fn var(&self) -> &Tensor {
        // The name is that of `fresh`.
        self.vars[WeightPrior::TENSOR].as_tensor()
    }

    /// As the fit takes them.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn prior(&self) -> candle_core::Result<WeightPrior> {
        let values = self.var().flatten_all()?.to_vec1::<f32>()?;
        Ok(WeightPrior::new(values.into_iter().map(f64::from).collect(), self.var().dim(1)?))
    }

    /// Writes `weight_prior.safetensors` (bf16) into a PersRM's folder, and its size into `attune.json`.
    ///
    /// # Errors
    /// A file that cannot be written or read, named.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_vars(&folder.join(WeightPrior::FILE), &self.vars)?;
        let mut settings = PersRmSettings::load(folder)?;
        settings.prior = Some(PriorShape { rank: self.var().dim(0)? });
        write_json(&folder.join(PersRmSettings::FILE), &serde_json::to_value(settings)?)
    }
}

/// One comparison of a person.
struct Compared {
    read: (Read, Read),
    /// The chosen answer's log-probability under the base model less the rejected one's, in nats.
    base: f64,
    /// The exact margin at ones, and its gradient by `w` there, `[d]`.
    at_ones: Observation,
}

/// Learns the directions for a frozen PersRM, against the base model as it is (reference GENERATOR).
///
/// # Errors
/// Numbers that are not finite; what the libraries report.
pub fn train(
    persrm: &Llama,
    base: &Llama,
    tokenizer: &Tokenizer,
    options: &PriorOptions,
    seed: u64,
    quiet: bool,
) -> Result<(Directions, PriorOutcome)> {
    let mut dice = Dice::new(seed, 72);
    let embedding = persrm.output(true)?;
    let reading = Progress::new("people", options.people, quiet);
    let mut people = Vec::with_capacity(options.people);
    for person in 0..options.people {
        let asked = preference::draw_traits(&mut dice);
        let stream = seed.wrapping_add(5_000 + person as u64);
        let said: Vec<_> = pairs::pairs_of(asked, pairs::training_topics(), options.pairs, stream).collect();
        let theirs = read(base, tokenizer, &said)?;
        let base = theirs.iter().map(|(chosen, rejected)| chosen.log_prob - rejected.log_prob);
        people.push(compared(read(persrm, tokenizer, &said)?, base, &embedding)?);
        reading.step(person, "");
    }
    drop(reading);
    let directions = Directions::fresh(options.rank, persrm.config().hidden_size, &mut dice)?;
    let schedule =
        Schedule { peak: options.rate, warm_up: (options.steps / 20).max(1), steps: options.steps };
    let mut optimizer = AdamW::new(0.0, 1.0);
    let progress = Progress::new("directions", options.steps, quiet);
    let (mut shown, mut right, mut tried) = (0.5, 0usize, 0usize);
    for step in 0..options.steps {
        let chosen: Vec<(Vec<&Compared>, Vec<&Compared>)> = (0..options.batch)
            .map(|_| {
                let person: &Vec<Compared> = &people[dice.below(people.len())];
                let mut order: Vec<&Compared> = person.iter().collect();
                dice.shuffle(&mut order);
                let (least, most) = options.support;
                let support = least + dice.below(most - least + 1);
                let queries = order.split_off(order.len().saturating_sub(options.queries));
                order.truncate(support);
                (order, queries)
            })
            .collect();
        let (gradient, of_step) = gradient(&directions.prior()?, &chosen, &embedding, options)?;
        let gradient = Tensor::from_vec(gradient, directions.var().shape(), &Device::Cpu)?;
        // The optimizer takes gradients as they come out of a backward pass.
        let surrogate = (directions.var() * gradient)?.sum_all()?;
        optimizer.update(&directions.vars, &surrogate.backward()?, schedule.rate(step))?;
        let of = options.batch * options.queries;
        shown = 0.97 * shown + 0.03 * of_step as f64 / of as f64;
        if step * 10 >= options.steps * 9 {
            (right, tried) = (right + of_step, tried + of);
        }
        progress.step(step, &format!("accuracy {shown:.3}"));
    }
    Ok((directions, PriorOutcome { accuracy: right as f64 / tried.max(1) as f64 }))
}

/// What the fit takes of comparisons: margins at ones, and their gradients.
fn compared(
    person: Vec<(Read, Read)>,
    base: impl Iterator<Item = f64>,
    embedding: &Tensor,
) -> Result<Vec<Compared>> {
    let queries: Vec<_> = person.iter().map(|pair| (0, pair)).collect();
    let ones = Tensor::ones((1, embedding.dim(1)?), DType::F32, &Device::Cpu)?;
    let exact = Exact::of(&rows(&queries)?, &ones, embedding, person.len())?;
    let compared = |(index, (read, base)): (usize, ((Read, Read), f64))| {
        let (margin, gradient) = exact.margin(index);
        if !margin.is_finite() {
            bail!("the model's numbers of an answer are not finite");
        }
        let at_ones = Observation { margin: margin - base, gradient, verdict: Verdict::Chosen };
        Ok(Compared { read, base, at_ones })
    };
    person.into_iter().zip(base).enumerate().map(compared).collect()
}

/// Exact log-probabilities of comparisons' answers, and their gradients by `w`.
struct Exact {
    pairs: usize,
    /// `[2 pairs]`, the chosen answers first.
    log_probs: Vec<f32>,
    /// `[2 pairs][d]`.
    gradients: Vec<Vec<f32>>,
}

impl Exact {
    /// `weights`, `[people, d]`, are those of the people that the rows name. The gradient is
    /// `sum_t h_t * (E[a_t] - E_{a ~ pi_w} E[a])`.
    fn of(rows: &Rows, weights: &Tensor, embedding: &Tensor, pairs: usize) -> candle_core::Result<Self> {
        let weighted = (&rows.hidden * weights.index_select(&rows.people, 0)?)?;
        let log_probs = log_softmax(&weighted.matmul(&embedding.t()?)?, D::Minus1)?;
        let said = log_probs.gather(&rows.tokens.unsqueeze(1)?, 1)?.squeeze(1)?;
        let expected = log_probs.exp()?.matmul(embedding)?;
        let pulls = (&rows.hidden * (embedding.index_select(&rows.tokens, 0)? - expected)?)?;
        let sums = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        Ok(Self {
            pairs,
            log_probs: sums(&[2 * pairs])?.index_add(&rows.answers, &said, 0)?.to_vec1()?,
            gradients: sums(&[2 * pairs, embedding.dim(1)?])?
                .index_add(&rows.answers, &pulls, 0)?
                .to_vec2()?,
        })
    }

    /// The chosen answer's log-probability less the rejected one's, and its gradient.
    fn margin(&self, index: usize) -> (f64, Vec<f64>) {
        let (chosen, rejected) = (index, self.pairs + index);
        let margin = f64::from(self.log_probs[chosen]) - f64::from(self.log_probs[rejected]);
        let (c, r) = (&self.gradients[chosen], &self.gradients[rejected]);
        (margin, c.iter().zip(r).map(|(c, r)| f64::from(*c) - f64::from(*r)).collect())
    }
}

/// The gradient of a step by the directions, `[rank, d]`, and how many of the tried comparisons come out right.
/// By person: the comparisons that the fit is made to, and those that it is tried on.
fn gradient(
    prior: &WeightPrior,
    people: &[(Vec<&Compared>, Vec<&Compared>)],
    embedding: &Tensor,
    options: &PriorOptions,
) -> Result<(Vec<f32>, usize)> {
    let d = embedding.dim(1)?;
    let fits: Vec<Inner> =
        people.iter().map(|(support, _)| Inner::solve(prior, support, options.beta)).collect();
    let weights: Vec<f32> =
        fits.iter().flat_map(|fit| prior.step(&fit.y)).map(|step| (1.0 + step) as f32).collect();
    let weights = Tensor::from_vec(weights, (people.len(), d), &Device::Cpu)?;
    let queries: Vec<_> = people
        .iter()
        .enumerate()
        .flat_map(|(person, (_, queries))| queries.iter().map(move |query| (person, &query.read)))
        .collect();
    let exact = Exact::of(&rows(&queries)?, &weights, embedding, queries.len())?;
    let tokens: usize = queries.iter().map(|(_, read)| read.0.tokens.len()).sum();
    let mut total = vec![0f64; prior.rank() * d];
    let (mut right, mut index) = (0, 0);
    for ((support, tried), fit) in people.iter().zip(&fits) {
        let mut asked = vec![0f64; d];
        for query in tried {
            let (margin, by_w) = exact.margin(index);
            let margin = margin - query.base;
            right += usize::from(margin > 0.0);
            let pull = -options.beta * sigmoid(-options.beta * margin) / queries.len() as f64;
            let own = &exact.gradients[index];
            for ((a, m), c) in asked.iter_mut().zip(by_w).zip(own) {
                *a += pull * m - options.anchor * f64::from(*c) / tokens.max(1) as f64;
            }
            index += 1;
        }
        fit.backward(prior, support, &asked, options.beta, &mut total)?;
    }
    if total.iter().any(|g| !g.is_finite()) {
        bail!("a gradient is not finite");
    }
    Ok((total.into_iter().map(|g| g as f32).collect(), right))
}

/// The inner problem's minimum.
struct Inner {
    y: Vec<f64>,
    /// `L^T g` of each comparison.
    along: Vec<Vec<f64>>,
    /// `1 - p` of each comparison.
    wrong: Vec<f64>,
    /// `1 / s^2`.
    stiffness: f64,
}

impl Inner {
    fn solve(prior: &WeightPrior, support: &[&Compared], beta: f64) -> Self {
        let observations: Vec<Observation> = support
            .iter()
            .map(|one| Observation { gradient: prior.along(&one.at_ones.gradient), ..one.at_ones.clone() })
            .collect();
        let problem = Problem::new(&observations, beta, WEIGHTS_SPREAD);
        let all: Vec<usize> = (0..observations.len()).collect();
        let y = problem.step(&problem.minimise(&all));
        let wrong = |o: &Observation| sigmoid(-beta * (o.margin + dot(&o.gradient, &y)));
        let wrong = observations.iter().map(wrong).collect();
        let stiffness = 1.0 / problem.feature_variance().max(f64::MIN_POSITIVE);
        Self { y, along: observations.into_iter().map(|o| o.gradient).collect(), wrong, stiffness }
    }

    /// Adds the gradient by the directions of something whose gradient by `w` is `asked`.
    fn backward(
        &self,
        prior: &WeightPrior,
        support: &[&Compared],
        asked: &[f64],
        beta: f64,
        total: &mut [f64],
    ) -> Result<()> {
        let hessian = Symmetric::from_fn(self.y.len(), |i, j| {
            let curved = |(g, p): (&Vec<f64>, &f64)| beta * beta * p * (1.0 - p) * g[i] * g[j];
            self.along.iter().zip(&self.wrong).map(curved).sum::<f64>()
                + if i == j { self.stiffness } else { 0.0 }
        });
        let Some(hessian) = hessian.cholesky() else { bail!("a fit's curvature is not finite") };
        let u = hessian.solve(&prior.along(asked));
        let mut add = |by_y: &dyn Fn(usize) -> f64, by_w: &[f64]| {
            for (k, row) in total.chunks_exact_mut(by_w.len()).enumerate() {
                let share = by_y(k);
                row.iter_mut().zip(by_w).for_each(|(t, g)| *t += share * g);
            }
        };
        add(&|k| self.y[k], asked);
        for ((one, along), p) in support.iter().zip(&self.along).zip(&self.wrong) {
            let bent = beta * p * (1.0 - p) * dot(along, &u);
            add(&|k| beta * (p * u[k] - bent * self.y[k]), &one.at_ones.gradient);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "prior_tests.rs"]
mod tests;
