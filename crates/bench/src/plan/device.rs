//! What a device gives: memory, bandwidth and arithmetic.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use attune_kernels::{Format, Linear, Threads};
use serde::Serialize;

use crate::{floor::Bandwidth, report::median};

/// A device, as far as a plan needs it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// What it is called.
    pub name: String,
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes a second that it reads from there.
    pub bandwidth: f64,
    /// Floating-point operations a second, with the weights' type.
    pub flops: f64,
}

/// Cards by their makers' data sheets: GB of memory, GB/s, and TFLOP/s (dense) with weights of 16 bits (or 8,
/// which are widened to them) and of 32.
const CARDS: [(&str, f64, f64, f64, f64); 5] = [
    ("h200", 141.0, 4800.0, 989.0, 67.0),
    ("h100", 80.0, 3350.0, 989.0, 67.0),
    ("a100", 80.0, 2039.0, 312.0, 19.5),
    ("l40s", 48.0, 864.0, 362.0, 91.6),
    ("l4", 24.0, 300.0, 121.0, 30.3),
];

/// Rows of the product that measures a CPU's arithmetic, and its matrix.
const ROWS: usize = 64;
const MATRIX: (usize, usize) = (4096, 1024);

impl Device {
    /// A card by its name, with weights of this type; `cpu` is measured on all cores of this machine.
    ///
    /// # Errors
    /// There is no such card, or the machine cannot be measured.
    pub fn named(name: &str, weights: Format) -> Result<Self> {
        if name == "cpu" {
            return Self::cpu(weights);
        }
        let Some(&(name, memory, bandwidth, half, single)) = CARDS.iter().find(|card| card.0 == name) else {
            bail!("`{name}` is none of {}", Self::names());
        };
        let flops = if weights == Format::F32 { single } else { half };
        Ok(Self {
            name: name.to_owned(),
            memory: memory * 1e9,
            bandwidth: bandwidth * 1e9,
            flops: flops * 1e12,
        })
    }

    /// All names, for people.
    pub fn names() -> String {
        CARDS.map(|card| card.0).join(", ") + ", cpu"
    }

    /// This machine, measured.
    fn cpu(weights: Format) -> Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let bandwidth = Bandwidth::new(count)?.measure();
        let (n_out, n_in) = MATRIX;
        let matrix = Linear::pack(&vec![0.01; n_out * n_in], n_out, n_in, None, weights)?;
        let (x, mut out) = (vec![0.5; ROWS * n_in], vec![0.0; ROWS * n_out]);
        let threads = Threads::new(count)?;
        let seconds = (0..5).map(|_| {
            let start = Instant::now();
            matrix.forward(&x, &mut out, &threads);
            start.elapsed().as_secs_f64()
        });
        let seconds = median(seconds).unwrap_or(f64::NAN);
        Ok(Self {
            name: format!("cpu ({count} cores, measured)"),
            memory: memory().context("how much memory this machine has cannot be read; give it")?,
            bandwidth,
            flops: (2 * ROWS * n_out * n_in) as f64 / seconds,
        })
    }
}

/// Bytes of this machine's memory, where the system tells.
fn memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_name() {
        let half = Device::named("h100", Format::Bf16).unwrap();
        assert_eq!((half.memory, half.bandwidth, half.flops), (80e9, 3.35e12, 989e12));
        assert_eq!(Device::named("h100", Format::F32).unwrap().flops, 67e12);
        let error = Device::named("h101", Format::Q8).unwrap_err().to_string();
        assert!(error.contains("h100") && error.contains("cpu"), "{error}");
    }
}
