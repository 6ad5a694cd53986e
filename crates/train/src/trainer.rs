//! The loop that every training shares: batches in a seeded order, accumulated and clipped gradients, warm-up
//! and cosine, a curve, and checkpoints from which it goes on to the same bits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::batch::bucketed;
use crate::curve::{Curve, Point};
use crate::optimizer::{AdamW, Gradients, Schedule};
use crate::progress::Progress;
use crate::saved::{Place, Saved};
use crate::world::dice::Dice;

/// How to train, whatever is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Examples of one forward and backward pass.
    pub batch: usize,
    /// Passes of one step: their gradients are averaged.
    pub accumulate: usize,
    /// How often every example is seen.
    pub epochs: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// Share of the steps that warm up.
    pub warm_up: f64,
    /// Weight decay.
    pub decay: f64,
    /// The longest gradient; longer ones are scaled down to it.
    pub clip: f64,
    /// All chance comes from it.
    pub seed: u64,
    /// Which stream of the seed orders the examples.
    pub stream: u64,
}

impl Recipe {
    /// One pass over the examples, in steps of one batch, without decay.
    pub fn once(batch: usize, rate: f64, warm_up: f64, (seed, stream): (u64, u64)) -> Self {
        Self { batch, accumulate: 1, epochs: 1, rate, warm_up, decay: 0.0, clip: 1.0, seed, stream }
    }
}

/// What is trained, on which examples, by which loss.
pub trait Task {
    /// The length of every example in tokens; those of like length are put together.
    fn lengths(&self) -> Vec<usize>;

    /// What the loss of these examples is a mean over: how many tokens, or pairs.
    fn weight(&self, examples: &[usize]) -> usize;

    /// What is moved, by name.
    fn vars(&self) -> &BTreeMap<String, Var>;

    /// The loss of these examples.
    ///
    /// # Errors
    /// What the libraries report.
    fn loss(&self, examples: &[usize]) -> candle_core::Result<Loss>;
}

/// The loss of a batch.
#[derive(Debug)]
pub struct Loss {
    /// What is made smaller, a scalar with its graph.
    pub total: Tensor,
    /// What is shown, in nats.
    pub shown: f64,
    /// Share of pairs that are ordered rightly, where there are pairs.
    pub accuracy: Option<f64>,
}

/// Around the loop: what it shows, where it keeps itself, and what ends it early.
#[derive(Debug, Default)]
pub struct Run<'a> {
    /// The name of its progress.
    pub name: &'static str,
    /// Shows none.
    pub quiet: bool,
    /// Where curve and checkpoint go. `None`: nowhere.
    pub place: Option<Place>,
    /// Set from outside: the step in hand is finished, a checkpoint written, and the run ends.
    pub stop: Option<&'a AtomicBool>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ended {
    /// With its last step.
    Done(Summary),
    /// Early, by [`Run::stop`]: so many steps are done.
    Stopped {
        /// Steps that are done.
        steps: usize,
        /// Steps of the whole run.
        of: usize,
    },
}

impl Ended {
    /// The summary of a run that nothing could end early.
    ///
    /// # Errors
    /// It was ended early all the same.
    pub fn done(self) -> Result<Summary> {
        match self {
            Self::Done(summary) => Ok(summary),
            Self::Stopped { steps, of } => bail!("the training was ended after {steps} of {of} steps"),
        }
    }
}

/// Means over the last tenth of the steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Loss in nats.
    pub loss: f64,
    /// Share of pairs that are ordered rightly; 0 where there are none.
    pub accuracy: f64,
}

/// Trains. One seed gives the same weights on one machine, in one go or in several.
///
/// # Errors
/// No examples; a loss or gradient that is not finite; a checkpoint that cannot be read or written, or that
/// belongs to another run.
pub fn train(task: &dyn Task, recipe: &Recipe, run: &Run<'_>) -> Result<Ended> {
    let steps = order(&task.lengths(), recipe)?;
    let of = steps.len();
    let warm_up = ((of as f64 * recipe.warm_up) as usize).max(1);
    let schedule = Schedule { peak: recipe.rate, warm_up, steps: of };
    let saved = run.place.as_ref().map(|place| place.open(recipe, task.vars())).transpose()?.flatten();
    let Saved { moments, mut curve } = saved.unwrap_or_default();
    let mut optimizer = AdamW::resume(recipe.decay, recipe.clip, moments);
    let progress = Progress::new(run.name, of, run.quiet);
    let keep = |optimizer: &AdamW, curve: &Curve| match &run.place {
        Some(place) => place.save(recipe, task.vars(), optimizer.moments(), curve),
        None => Ok(()),
    };
    for (step, batches) in steps.iter().enumerate().skip(curve.points.len()) {
        if run.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            keep(&optimizer, &curve)?;
            return Ok(Ended::Stopped { steps: step, of });
        }
        let point = one(task, batches, &mut optimizer, schedule.rate(step))
            .with_context(|| format!("{}: step {step}", run.name))?;
        curve.points.push(point);
        progress.step(step, &curve.state());
        if run.place.as_ref().is_some_and(|place| (step + 1).is_multiple_of(place.every) && step + 1 < of) {
            keep(&optimizer, &curve)?;
        }
    }
    keep(&optimizer, &curve)?;
    Ok(Ended::Done(curve.summary()))
}

/// The batches of every step, over all epochs.
fn order(lengths: &[usize], recipe: &Recipe) -> Result<Vec<Vec<Vec<usize>>>> {
    if lengths.is_empty() {
        bail!("there is nothing to train on");
    }
    let mut dice = Dice::new(recipe.seed, recipe.stream);
    let mut steps = Vec::new();
    for _ in 0..recipe.epochs {
        let batches = bucketed(lengths, recipe.batch.max(1), &mut dice);
        steps.extend(batches.chunks(recipe.accumulate.max(1)).map(<[_]>::to_vec));
    }
    Ok(steps)
}

/// One step.
fn one(task: &dyn Task, batches: &[Vec<usize>], optimizer: &mut AdamW, rate: f64) -> Result<Point> {
    let weights: Vec<usize> = batches.iter().map(|batch| task.weight(batch)).collect();
    let all = weights.iter().sum::<usize>().max(1) as f64;
    let mut gradients = Gradients::default();
    let (mut loss, mut accuracy) = (0.0, None);
    for (batch, weight) in batches.iter().zip(weights) {
        let share = weight as f64 / all;
        let part = task.loss(batch)?;
        gradients.add(task.vars(), &part.total.backward()?, share)?;
        loss += share * part.shown;
        accuracy = part.accuracy.map(|part| accuracy.unwrap_or(0.0) + share * part);
    }
    if !loss.is_finite() {
        bail!("the loss is not finite: lower the learning rate");
    }
    let gradient = optimizer.step(task.vars(), gradients, rate)?;
    Ok(Point { loss, accuracy, rate, gradient })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Draws `x` towards the mean of the examples' lengths.
    struct Mean {
        lengths: Vec<usize>,
        vars: BTreeMap<String, Var>,
    }

    impl Mean {
        fn new(lengths: &[usize]) -> Self {
            let x = Var::from_vec(vec![0f32], (1, 1), &Device::Cpu).unwrap();
            Self { lengths: lengths.to_vec(), vars: BTreeMap::from([("x".to_owned(), x)]) }
        }

        fn x(&self) -> f32 {
            self.vars["x"].to_vec2::<f32>().unwrap()[0][0]
        }
    }

    impl Task for Mean {
        fn lengths(&self) -> Vec<usize> {
            self.lengths.clone()
        }

        fn weight(&self, examples: &[usize]) -> usize {
            examples.len()
        }

        fn vars(&self) -> &BTreeMap<String, Var> {
            &self.vars
        }

        fn loss(&self, examples: &[usize]) -> candle_core::Result<Loss> {
            let wanted: Vec<f32> = examples.iter().map(|&i| self.lengths[i] as f32).collect();
            let wanted = Tensor::from_vec(wanted, (1, examples.len()), &Device::Cpu)?;
            let total = self.vars["x"].broadcast_sub(&wanted)?.sqr()?.mean_all()?;
            let shown = f64::from(total.to_scalar::<f32>()?);
            Ok(Loss { total, shown, accuracy: None })
        }
    }

    fn recipe() -> Recipe {
        Recipe { epochs: 40, rate: 0.5, clip: 1e9, ..Recipe::once(2, 0.5, 0.1, (1, 0)) }
    }

    #[test]
    fn it_learns_and_says_so() {
        let task = Mean::new(&[4; 6]);
        let summary = train(&task, &recipe(), &Run::default()).unwrap().done().unwrap();
        assert!((task.x() - 4.0).abs() < 0.1 && summary.loss < 0.02, "{} {summary:?}", task.x());
        assert!(train(&Mean::new(&[]), &recipe(), &Run::default()).is_err());
    }

    #[test]
    fn accumulated_parts_are_one_batch() {
        // Five examples in parts of two: the last part is smaller, and weighs less.
        let lengths = [1, 2, 3, 4, 10];
        let (whole, parts) = (Mean::new(&lengths), Mean::new(&lengths));
        let whole_recipe = Recipe { batch: 5, epochs: 7, ..recipe() };
        let parts_recipe = Recipe { batch: 2, accumulate: 3, ..whole_recipe.clone() };
        train(&whole, &whole_recipe, &Run::default()).unwrap();
        train(&parts, &parts_recipe, &Run::default()).unwrap();
        assert!((whole.x() - parts.x()).abs() < 1e-4, "{} {}", whole.x(), parts.x());
    }

    #[test]
    fn a_run_in_pieces_is_the_run_in_one() {
        let lengths = [1, 5, 2, 9, 4, 4, 7];
        let whole = Mean::new(&lengths);
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, resume| Place::new(&folder.path().join(name), 3, resume);
        let run = |name, resume| Run { place: Some(place(name, resume)), ..Run::default() };
        let ended = train(&whole, &recipe(), &run("whole", false)).unwrap();
        let stop = AtomicBool::new(true);
        let mut pieces = 0;
        let last = loop {
            // Each piece begins from fresh weights, as a new process does.
            let task = Mean::new(&lengths);
            let once = Once { task: &task, stop: &stop, left: std::cell::Cell::new(11) };
            stop.store(false, Ordering::Relaxed);
            let run = Run { stop: Some(&stop), ..run("pieces", pieces > 0) };
            pieces += 1;
            if let done @ Ended::Done(_) = train(&once, &recipe(), &run).unwrap() {
                assert_eq!(task.x().to_bits(), whole.x().to_bits());
                break done;
            }
        };
        assert!(pieces > 10 && last == ended, "{pieces} {last:?} {ended:?}");
        let curve = |name: &str| std::fs::read(folder.path().join(name).join("loss.jsonl")).unwrap();
        assert_eq!(curve("pieces"), curve("whole"));

        let other = Recipe { rate: 0.4, ..recipe() };
        let error = train(&Mean::new(&lengths), &other, &run("pieces", true)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("rate") && error.contains("0.4") && error.contains("0.5"), "{error}");
    }

    /// Asks to stop after some losses.
    struct Once<'a> {
        task: &'a Mean,
        stop: &'a AtomicBool,
        left: std::cell::Cell<usize>,
    }

    impl Task for Once<'_> {
        fn lengths(&self) -> Vec<usize> {
            self.task.lengths()
        }

        fn weight(&self, examples: &[usize]) -> usize {
            self.task.weight(examples)
        }

        fn vars(&self) -> &BTreeMap<String, Var> {
            self.task.vars()
        }

        fn loss(&self, examples: &[usize]) -> candle_core::Result<Loss> {
            self.left.set(self.left.get() - 1);
            self.stop.store(self.left.get() == 0, Ordering::Relaxed);
            self.task.loss(examples)
        }
    }
}
