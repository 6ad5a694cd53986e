//! AdamW with clipped gradients, and the learning rate's schedule.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// Warm-up in a straight line to `peak`, then half a cosine down to a twentieth of it.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Steps of the warm-up.
    pub warm_up: usize,
    /// All steps.
    pub steps: usize,
}

impl Schedule {
    /// Learning rate of `step`, from 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.peak * (step + 1) as f64 / self.warm_up as f64;
        }
        let done = (step - self.warm_up) as f64 / (self.steps.saturating_sub(self.warm_up)).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
        self.peak * (0.05 + 0.95 * cosine)
    }
}

/// Gradients by name, summed over the parts of a batch.
#[derive(Debug, Default)]
pub struct Gradients(BTreeMap<String, Vec<f32>>);

impl Gradients {
    /// Adds `share` times those of `grads`. What has no gradient is left out.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn add(&mut self, vars: &BTreeMap<String, Var>, grads: &GradStore, share: f64) -> Result<()> {
        for (name, var) in vars {
            let Some(grad) = grads.get(var) else { continue };
            let grad = grad.flatten_all()?.to_vec1::<f32>()?;
            let share = share as f32;
            match self.0.get_mut(name) {
                Some(sum) => sum.iter_mut().zip(grad).for_each(|(sum, g)| *sum += share * g),
                None => drop(self.0.insert(name.clone(), grad.into_iter().map(|g| share * g).collect())),
            }
        }
        Ok(())
    }

    /// Their length, all together (Euclidean).
    pub fn length(&self) -> f64 {
        let square = |grad: &Vec<f32>| grad.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        self.0.values().map(square).sum::<f64>().sqrt()
    }
}

/// What AdamW remembers between steps, so that a checkpoint can hold it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// First and second moment of every weight, by its name.
    pub by_name: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
    /// Updates so far.
    pub step: i32,
}

/// Decoupled weight decay (Loshchilov and Hutter 2019); vectors, norms among them, are not decayed.
#[derive(Debug)]
pub struct AdamW {
    moments: Moments,
    decay: f64,
    clip: f64,
}

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.98;
const EPSILON: f64 = 1e-8;

impl AdamW {
    /// Starts at step 0. `clip`: gradients longer than that (all together, Euclidean) are scaled down to it.
    pub fn new(decay: f64, clip: f64) -> Self {
        Self::resume(decay, clip, Moments::default())
    }

    /// Goes on where another one was.
    pub fn resume(decay: f64, clip: f64, moments: Moments) -> Self {
        Self { moments, decay, clip }
    }

    /// What it remembers.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// One update of `vars` by the gradients of one backward pass.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn update(&mut self, vars: &BTreeMap<String, Var>, grads: &GradStore, rate: f64) -> Result<f64> {
        let mut gradients = Gradients::default();
        gradients.add(vars, grads, 1.0)?;
        self.step(vars, gradients, rate)
    }

    /// One update of `vars`; returns the gradient's length before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite: the weights are left as they were.
    pub fn step(&mut self, vars: &BTreeMap<String, Var>, mut gradients: Gradients, rate: f64) -> Result<f64> {
        let length = gradients.length();
        if !length.is_finite() {
            candle_core::bail!("the gradient is not finite: lower the learning rate");
        }
        let shrink = (self.clip / length.max(1e-12)).min(1.0) as f32;
        let Moments { by_name, step } = &mut self.moments;
        *step += 1;
        let (fix_1, fix_2) = (1.0 - BETA_1.powi(*step), 1.0 - BETA_2.powi(*step));
        let (b1, b2) = (BETA_1 as f32, BETA_2 as f32);
        let (pace, scale, eps) = ((rate / fix_1) as f32, (1.0 / fix_2) as f32, EPSILON as f32);
        for (name, var) in vars {
            let Some(grad) = gradients.0.remove(name) else { continue };
            let mut weights = var.flatten_all()?.to_vec1::<f32>()?;
            let zeros = || (vec![0.0; grad.len()], vec![0.0; grad.len()]);
            let (first, second) = by_name.entry(name.clone()).or_insert_with(zeros);
            let kept = if var.dims().len() > 1 { (1.0 - rate * self.decay) as f32 } else { 1.0 };
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((weight, grad), (first, second)) in weights.iter_mut().zip(&grad).zip(moments) {
                let grad = grad * shrink;
                *first = b1 * *first + (1.0 - b1) * grad;
                *second = b2 * *second + (1.0 - b2) * grad * grad;
                *weight = *weight * kept - pace * *first / ((*second * scale).sqrt() + eps);
            }
            var.set(&Tensor::from_vec(weights, var.shape(), var.device())?)?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_rate_rises_then_falls() {
        let schedule = Schedule { peak: 1.0, warm_up: 10, steps: 110 };
        assert!((schedule.rate(9) - 1.0).abs() < 1e-9);
        assert!(schedule.rate(0) < 0.2 && schedule.rate(60) < 0.6 && schedule.rate(109) < 0.06);
    }

    #[test]
    fn it_finds_a_minimum() {
        let var = Var::from_vec(vec![3f32, -2.0], (1, 2), &Device::Cpu).unwrap();
        let vars = BTreeMap::from([("x".to_owned(), var.clone())]);
        let mut optimizer = AdamW::new(0.0, 1.0);
        for _ in 0..400 {
            let loss = var.sqr().unwrap().sum_all().unwrap();
            optimizer.update(&vars, &loss.backward().unwrap(), 0.05).unwrap();
        }
        assert!(var.to_vec2::<f32>().unwrap()[0].iter().all(|x| x.abs() < 0.05));
    }
}
