//! One fit from end to end: read, hold out, solve, measure exactly.

use std::{ops::ControlFlow, time::Instant};

use attune_engine::{PersRm, Side, WeightPrior};
use attune_kernels::Threads;

use crate::{Reference, Vector};

use super::{
    Item, Method, Refusal, Said,
    feedback::check,
    gradient::{linearised, log_prob},
    job::{FitError, Fitted, Job, Measured, Progress},
    logistic::{Observation, Problem, Solution, Verdict, softplus},
    person::Ready,
    reader::{Features, Reader},
};

/// Folds of the held-out accuracy; with less feedback, each piece is held out in its turn.
const FOLDS: usize = 10;
/// Features that are kept from the first reading to the last one, in bytes; answers beyond are read again.
const KEPT_BYTES: usize = 64 << 20;
/// How far the prior lets margins move, in the units of the loss: chosen on the demo world's people for what the
/// answers gain and stay well formed (`attune eval people`; docs/people.md has the figures).
pub const WEIGHTS_SPREAD: f64 = 4.0;
/// As [`WEIGHTS_SPREAD`], of a latent. Its length is fixed afterwards, so that it matters for the direction alone.
const LATENT_SPREAD: f64 = 4.0;

/// Fits a person to feedback. `on_progress` hears of every step, and may end it.
///
/// # Errors
/// The feedback is refused, the model or the feedback lack something, or `on_progress` ended it.
pub fn fit(
    persrm: &PersRm,
    threads: &Threads,
    job: &Job,
    on_progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Fitted, FitError> {
    let begun = Instant::now();
    check(&job.items)?;
    check_model(persrm, job)?;
    let folds = job.items.len().min(FOLDS);
    let answers = job.items.iter().flat_map(Item::answers).count();
    let mut steps = Steps { done: 0, total: 2 * answers + folds, accuracy: None, on_progress };
    let mut run = Run::new(persrm, threads, job)?;

    let mut readings = Vec::with_capacity(job.items.len());
    for item in &job.items {
        readings.push(run.read(item)?);
        steps.advance(item.answers().count())?;
    }
    let observations: Vec<Observation> =
        job.items.iter().zip(&readings).map(|(item, read)| observation(item, read, persrm, job)).collect();
    if observations.iter().any(|o| !o.margin.is_finite() || o.gradient.iter().any(|g| !g.is_finite())) {
        return Err(FitError::NotFinite);
    }
    let (beta, spread) = match job.method {
        Method::Weights => (persrm.beta, job.spread.unwrap_or(WEIGHTS_SPREAD)),
        Method::Latent => (1.0, job.spread.unwrap_or(LATENT_SPREAD)),
    };
    let problem = Problem::new(&observations, beta, spread);
    let right = held_out(&problem, observations.len(), folds, &mut steps)?;
    let all: Vec<usize> = (0..observations.len()).collect();
    let solution = problem.minimise(&all);
    let person = person(&problem, &solution, persrm, job);

    let exact_before: Vec<f64> =
        readings.iter().map(|read| margin(read.iter().map(|a| a.log_ratio))).collect();
    let mut exact_after = Vec::with_capacity(readings.len());
    let ready =
        Ready::new(&person, persrm).ok_or(FitError::Unfit("the reward model has no latent adapter"))?;
    for (index, item) in job.items.iter().enumerate() {
        exact_after.push(margin(run.exact(index, item, &ready)?.into_iter()));
        steps.advance(item.answers().count())?;
    }
    let (threshold_before, threshold_after) = thresholds(&job.items, &exact_before, &exact_after);
    let loss = |margins: &[f64], threshold: f64| {
        let of_item = |(item, m): (&Item, &f64)| {
            let (sign, offset) = said(item, threshold);
            softplus(-persrm.beta * sign * (m - offset))
        };
        job.items.iter().zip(margins).map(of_item).sum::<f64>() / margins.len() as f64
    };
    let before = job.items.iter().zip(&exact_before).filter(|(item, m)| {
        let (sign, offset) = said(item, threshold_before);
        sign * (**m - offset) > 0.0
    });
    let n = observations.len();
    let measured = Measured {
        feedback: n,
        held_out: n,
        accuracy_before: before.count() as f64 / n as f64,
        accuracy_after: right as f64 / n as f64,
        loss_before: loss(&exact_before, threshold_before),
        loss_after: loss(&exact_after, threshold_after),
        seconds: begun.elapsed().as_secs_f64(),
    };
    if !measured.loss_after.is_finite() {
        return Err(FitError::NotFinite);
    }
    Ok(Fitted { person, measured, steps: steps.total })
}

/// The exact margins of feedback for a person, in nats: of a pair the chosen answer's log-ratio less the
/// rejected one's, of a thumb its answer's.
///
/// # Errors
/// The model or the feedback lack something, or the device failed.
pub fn margins(
    persrm: &PersRm,
    threads: &Threads,
    items: &[Item],
    reference: Reference,
    person: &Vector,
) -> Result<Vec<f64>, FitError> {
    let method = match person {
        Vector::Weights(_) => Method::Weights,
        Vector::Latent(_) => Method::Latent,
    };
    let job = Job { items: items.to_vec(), reference, method, start: None, spread: None };
    check_model(persrm, &job)?;
    let mut run = Run::new(persrm, threads, &job)?;
    let ready =
        Ready::new(person, persrm).ok_or(FitError::Unfit("the reward model has no latent adapter"))?;
    let of_item = |(index, item)| Ok(margin(run.exact(index, item, &ready)?.into_iter()));
    items.iter().enumerate().map(of_item).collect()
}

fn check_model(persrm: &PersRm, job: &Job) -> Result<(), FitError> {
    if persrm.gpu().is_some() {
        return Err(FitError::Unfit("profiles are fitted by workers whose model is on a CPU (--device cpu)"));
    }
    if job.reference == Reference::Model && !persrm.has_reference() {
        return Err(FitError::Unfit("the reward model has no reference of its own"));
    }
    if job.method == Method::Latent && persrm.latent().is_none() {
        return Err(FitError::Unfit("the reward model has no latent adapter"));
    }
    let lacks = job.items.iter().flat_map(Item::answers).any(|a| a.base_log_prob.is_none());
    if job.reference == Reference::Generator && lacks {
        return Err(FitError::Unfit("an answer comes without its log-probability under the base model"));
    }
    Ok(())
}

/// The steps of a fit, and who hears of them.
struct Steps<F> {
    done: usize,
    total: usize,
    accuracy: Option<f64>,
    on_progress: F,
}

impl<F: FnMut(Progress) -> ControlFlow<()>> Steps<F> {
    fn advance(&mut self, steps: usize) -> Result<(), FitError> {
        self.done += steps;
        let progress = Progress { done: self.done, total: self.total, accuracy: self.accuracy };
        match (self.on_progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(FitError::Cancelled),
        }
    }
}

/// What the first reading made of an answer.
struct Reading {
    /// Log-probability under the policy less that under the reference, in nats.
    log_ratio: f64,
    /// What is linear in the person: the gradient by `w`, or the latent that the answer speaks for.
    gradient: Vec<f64>,
}

/// The features of an item's answers: the policy's, and the reference's where there is one.
type Both = (Vec<Features>, Vec<Features>);

struct Run<'a> {
    persrm: &'a PersRm,
    threads: &'a Threads,
    reader: Reader<'a>,
    job: &'a Job,
    /// By item, until the budget is used up.
    kept: Vec<Option<Both>>,
    kept_bytes: usize,
}

impl<'a> Run<'a> {
    fn new(persrm: &'a PersRm, threads: &'a Threads, job: &'a Job) -> Result<Self, FitError> {
        let longest = job.items.iter().flat_map(|i| i.answers().map(|a| i.prompt.len() + a.ids.len())).max();
        let against_model = job.reference == Reference::Model;
        let reader = Reader::new(persrm, threads, longest.unwrap_or(1), against_model)?;
        Ok(Self { persrm, threads, reader, job, kept: Vec::new(), kept_bytes: 0 })
    }

    fn features(&self, item: &Item) -> Result<Both, FitError> {
        let answers: Vec<&[u32]> = item.answers().map(|a| a.ids.as_slice()).collect();
        let policy = self.reader.policy(&item.prompt, &answers)?;
        Ok((policy, self.reader.reference(&item.prompt, &answers)?))
    }

    fn read(&mut self, item: &Item) -> Result<Vec<Reading>, FitError> {
        let (policy, reference) = self.features(item)?;
        let head = self.persrm.head(Side::Policy);
        let mut readings = Vec::with_capacity(policy.len());
        for (index, (answer, features)) in item.answers().zip(&policy).enumerate() {
            let (mut log_ratio, mut gradient) = match (self.job.method, self.persrm.latent()) {
                (Method::Latent, Some(adapter)) => {
                    let own = log_prob(head, features, &answer.ids, self.threads);
                    (own, adapter.encode(features, &answer.ids, head))
                }
                _ => linearised(head, features, &answer.ids),
            };
            log_ratio -= self.unguided(answer.base_log_prob);
            if let Some(features) = reference.get(index) {
                let head = self.persrm.head(Side::Reference);
                if self.job.method == Method::Weights {
                    let (theirs, pull) = linearised(head, features, &answer.ids);
                    log_ratio -= theirs;
                    gradient.iter_mut().zip(pull).for_each(|(g, p)| *g -= p);
                } else {
                    log_ratio -= log_prob(head, features, &answer.ids, self.threads);
                }
            }
            readings.push(Reading { log_ratio, gradient });
        }
        let bytes =
            |all: &[Features]| all.iter().flatten().map(|row| size_of_val(row.as_slice())).sum::<usize>();
        let size = bytes(&policy) + bytes(&reference);
        let fits = self.kept_bytes + size <= KEPT_BYTES;
        self.kept_bytes += if fits { size } else { 0 };
        self.kept.push(fits.then_some((policy, reference)));
        Ok(readings)
    }

    /// The exact log-ratios of an item's answers for a person.
    fn exact(&mut self, index: usize, item: &Item, person: &Ready<'_>) -> Result<Vec<f64>, FitError> {
        let kept = self.kept.get_mut(index).and_then(Option::take);
        let (mut policy, mut reference) = match kept {
            Some(kept) => kept,
            None => self.features(item)?,
        };
        let mut ratios = Vec::with_capacity(policy.len());
        for (i, (answer, features)) in item.answers().zip(&mut policy).enumerate() {
            features.iter_mut().for_each(|row| person.policy(row));
            let own = log_prob(self.persrm.head(Side::Policy), features, &answer.ids, self.threads);
            let mut ratio = own - self.unguided(answer.base_log_prob);
            if let Some(features) = reference.get_mut(i) {
                features.iter_mut().for_each(|row| person.reference(row));
                ratio -= log_prob(self.persrm.head(Side::Reference), features, &answer.ids, self.threads);
            }
            ratios.push(ratio);
        }
        Ok(ratios)
    }

    /// What the base model says of an answer, where that is the reference.
    fn unguided(&self, base_log_prob: Option<f64>) -> f64 {
        base_log_prob.filter(|_| self.job.reference == Reference::Generator).unwrap_or(0.0)
    }
}

/// Of a pair the first less the second; of a thumb the one.
fn margin(mut ratios: impl Iterator<Item = f64>) -> f64 {
    ratios.next().unwrap_or(0.0) - ratios.next().unwrap_or(0.0)
}

fn observation(item: &Item, readings: &[Reading], persrm: &PersRm, job: &Job) -> Observation {
    let mut gradient = readings.first().map(|r| r.gradient.clone()).unwrap_or_default();
    if let Some(second) = readings.get(1) {
        gradient.iter_mut().zip(&second.gradient).for_each(|(g, s)| *g -= s);
    }
    let verdict = match item.said {
        Said::Pair { .. } => Verdict::Chosen,
        Said::Thumb { up: true, .. } => Verdict::Up,
        Said::Thumb { up: false, .. } => Verdict::Down,
    };
    let margin = match job.method {
        Method::Weights => {
            let moved = job.start.iter().flatten().zip(&gradient).map(|(w, g)| (f64::from(*w) - 1.0) * g);
            margin(readings.iter().map(|r| r.log_ratio)) + moved.sum::<f64>()
        }
        // Latent DPO compares latents, not texts: it starts where all latents are equally likely.
        Method::Latent => 0.0,
    };
    let gradient = match prior(persrm, job) {
        Some(prior) => prior.along(&gradient),
        None => gradient,
    };
    Observation { margin, gradient, verdict }
}

/// The directions that weights may take, where the model knows them; otherwise they may take all. They were learned
/// with the policy's features alone in the margins, which is not how the model's own reference has them.
fn prior<'a>(persrm: &'a PersRm, job: &Job) -> Option<&'a WeightPrior> {
    persrm.prior().filter(|_| job.method == Method::Weights && job.reference != Reference::Model)
}

/// Pieces that are ordered rightly by a fit to the other folds.
fn held_out<F: FnMut(Progress) -> ControlFlow<()>>(
    problem: &Problem<'_>,
    n: usize,
    folds: usize,
    steps: &mut Steps<F>,
) -> Result<usize, FitError> {
    let mut right = 0;
    for fold in 0..folds {
        let (out, of_rest): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| i % folds == fold);
        let solution = problem.minimise(&of_rest);
        right += out.iter().filter(|&&row| problem.certainty(&solution, row) > 0.0).count();
        if fold + 1 == folds {
            steps.accuracy = Some(right as f64 / n as f64);
        }
        steps.advance(1)?;
    }
    if chance(right, n) {
        return Err(Refusal::Chance { right, held_out: n }.into());
    }
    Ok(right)
}

/// Whether a coin does as well: `right` of `n` lies no more than one standard deviation above the half.
fn chance(right: usize, n: usize) -> bool {
    let (right, n) = (right as f64, n as f64);
    right <= n / 2.0 + n.sqrt() / 2.0
}

fn person(problem: &Problem<'_>, solution: &Solution, persrm: &PersRm, job: &Job) -> Vector {
    let step = problem.step(solution);
    let step = match prior(persrm, job) {
        Some(prior) => prior.step(&step),
        None => step,
    };
    match job.method {
        Method::Weights => {
            let start = job.start.clone().unwrap_or_else(|| vec![1.0; persrm.assets.config.hidden]);
            Vector::Weights(start.iter().zip(step).map(|(w, x)| (f64::from(*w) + x) as f32).collect())
        }
        Method::Latent => {
            // The adapter was trained with latents of one length.
            let length = step.iter().map(|x| x * x).sum::<f64>().sqrt();
            let scale = if length > 0.0 { (step.len() as f64).sqrt() / length } else { 0.0 };
            Vector::Latent(step.iter().map(|x| (x * scale) as f32).collect())
        }
    }
}

/// The sign of what was said, and the threshold that applies to it.
fn said(item: &Item, threshold: f64) -> (f64, f64) {
    match item.said {
        Said::Pair { .. } => (1.0, 0.0),
        Said::Thumb { up, .. } => (if up { 1.0 } else { -1.0 }, threshold),
    }
}

/// The thresholds of thumbs in the exact margins, before and after: midway between the means of both kinds.
fn thresholds(items: &[Item], before: &[f64], after: &[f64]) -> (f64, f64) {
    let midway = |margins: &[f64]| {
        let mean = |wanted: bool| {
            let of_kind: Vec<f64> = items
                .iter()
                .zip(margins)
                .filter(|(i, _)| matches!(i.said, Said::Thumb { up, .. } if up == wanted))
                .map(|(_, m)| *m)
                .collect();
            (!of_kind.is_empty()).then(|| of_kind.iter().sum::<f64>() / of_kind.len() as f64)
        };
        match (mean(true), mean(false)) {
            (Some(up), Some(down)) => f64::midpoint(up, down),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0.0,
        }
    };
    (midway(before), midway(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_coin_does_is_no_fit() {
        assert!(chance(3, 5) && !chance(4, 5));
        assert!(chance(7, 12) && !chance(8, 12));
        assert!(chance(12, 20) && !chance(13, 20));
        assert!(chance(55, 100) && !chance(56, 100));
    }
}
