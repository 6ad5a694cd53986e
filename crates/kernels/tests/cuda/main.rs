//! The CUDA sources, run on a CPU: the C++ compiler makes programs of them, with stand-ins for CUDA's
//! built-ins, and their results are held against the specification in double precision. Planted bugs
//! show that the checks see what they should.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attention;
mod emulator;
mod fuse_sample;
mod layers;
mod nvrtc;
mod planted;
mod score;
mod select;

use attune_kernels::cuda::Element;
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn numbers(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// The numbers as a card stores them, and what they are worth there.
fn stored(numbers: &[f32], element: Element) -> (Vec<u8>, Vec<f32>) {
    match element {
        Element::F32 => (numbers.iter().flat_map(|x| x.to_le_bytes()).collect(), numbers.to_vec()),
        Element::F16 => {
            let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
            (
                halves.iter().flat_map(|x| x.to_le_bytes()).collect(),
                halves.iter().map(|x| x.to_f32()).collect(),
            )
        }
        Element::Bf16 => {
            let halves: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            (
                halves.iter().flat_map(|x| x.to_le_bytes()).collect(),
                halves.iter().map(|x| x.to_f32()).collect(),
            )
        }
    }
}

/// What stored numbers are worth.
fn loaded(bytes: &[u8], element: Element) -> Vec<f32> {
    match element {
        Element::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Element::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Element::Bf16 => bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}

/// Fails with a sentence unless `holds`.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Says that a check is left out, and why; with `ATTUNE_REQUIRE_ALL=1` that is a failure.
fn left_out(why: &str) {
    assert!(std::env::var_os("ATTUNE_REQUIRE_ALL").is_none_or(|v| v != "1"), "left out: {why}");
    println!("left out: {why}");
}
