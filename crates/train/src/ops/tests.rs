//! Each fused operation against candle's composed form: values and gradients.

use candle_core::{Device, Result, Tensor, Var};

use super::*;
use crate::world::dice::Dice;

fn random(shape: &[usize], dice: &mut Dice) -> Var {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| dice.normal() as f32).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares two functions of the same variables: values, and gradients of a random weighing of them.
fn compare(vars: &[&Var], fused: &dyn Fn() -> Result<Tensor>, plain: &dyn Fn() -> Result<Tensor>) {
    let (fused, plain) = (fused().unwrap(), plain().unwrap());
    assert_eq!(fused.dims(), plain.dims());
    let weigh = random(fused.dims(), &mut Dice::new(77, 0)).as_tensor().clone();
    let close = |left: &Tensor, right: &Tensor| {
        let worst = (left - right)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(worst < 2e-5, "differ by {worst}");
    };
    close(&fused, &plain);
    let grads = |out: &Tensor| (out * &weigh).unwrap().sum_all().unwrap().backward().unwrap();
    let (left, right) = (grads(&fused), grads(&plain));
    for var in vars {
        close(left.get(var).unwrap(), right.get(var).unwrap());
    }
}

#[test]
fn rms_norm_is_candles() {
    let mut dice = Dice::new(1, 0);
    let (x, w) = (random(&[5, 24], &mut dice), random(&[24], &mut dice));
    compare(&[&x, &w], &|| rms_norm(&x, &w, 1e-5), &|| composed::rms_norm(&x, &w, 1e-5));
}

#[test]
fn swiglu_is_candles() {
    let mut dice = Dice::new(2, 0);
    let (g, u) = (random(&[7, 9], &mut dice), random(&[7, 9], &mut dice));
    compare(&[&g, &u], &|| swiglu(&g, &u), &|| composed::swiglu(&g, &u));
}

#[test]
fn log_probs_are_candles() {
    let mut dice = Dice::new(3, 0);
    let logits = random(&[6, 19], &mut dice);
    let targets = Tensor::new(&[3u32, 0, 18, 7, 7, 1], &Device::Cpu).unwrap();
    let candles = || composed::token_log_probs(&logits, &targets);
    compare(&[&logits], &|| token_log_probs(&logits, &targets), &candles);
    assert!(token_log_probs(&logits, &Tensor::new(&[19u32; 6], &Device::Cpu).unwrap()).is_err());
}

#[test]
fn rope_is_candles() {
    let x = random(&[2, 6, 3 * 8], &mut Dice::new(4, 0));
    let frequencies = (0..4).map(|i| 100f32.powf(-2.0 * i as f32 / 8.0)).collect();
    compare(&[&x], &|| rope(&x, 8, &frequencies), &|| composed::rope(&x, 8, &frequencies));
}

#[test]
fn attention_is_candles() {
    let mut dice = Dice::new(5, 0);
    let (q, k, v) = (
        random(&[2, 7, 4 * 8], &mut dice),
        random(&[2, 7, 2 * 8], &mut dice),
        random(&[2, 7, 2 * 8], &mut dice),
    );
    compare(&[&q, &k, &v], &|| attention(&q, &k, &v, 8), &|| composed::attention(&q, &k, &v, 8));
}
