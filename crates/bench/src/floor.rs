//! The floor of a decoding step: the time to read the weights once, at the bandwidth of this very run.

use std::path::Path;

use anyhow::Result;
use attune_engine::DecoderConfig;
use attune_kernels::{Format, ReadProbe, Threads};

use crate::report::median;

/// Memory that the probe reads: far more than any cache holds.
const PROBE_BYTES: usize = 512 << 20;

/// Which of the pair's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The generator's: the whole output head is read.
    Base,
    /// The reward worker's: of its head only the candidates' rows are read, but its value head is.
    Reward,
}

/// The bytes of weights that one step of one row reads, with `k` candidates. Norms and biases, some
/// thousandths of the whole, are left out.
///
/// # Errors
/// The folder's configuration cannot be read.
pub fn step_bytes(folder: &Path, role: Role, format: Format, k: usize) -> Result<f64> {
    let config = DecoderConfig::load(folder)?;
    let value_head = folder.join("value_head.safetensors").exists();
    Ok(weights(&config, role, value_head, k) * bytes_per_weight(format))
}

/// The weights that one step of one row multiplies.
pub(crate) fn weights(c: &DecoderConfig, role: Role, value_head: bool, k: usize) -> f64 {
    let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let layer = c.hidden * (2 * queries + 2 * keys) + 3 * c.hidden * c.intermediate;
    let head = match role {
        Role::Base => c.vocab * c.hidden,
        Role::Reward => k * c.hidden + if value_head { c.hidden * c.hidden } else { 0 },
    };
    (c.layers * layer + head) as f64
}

/// Bytes that a weight takes.
pub(crate) fn bytes_per_weight(format: Format) -> f64 {
    match format {
        Format::F32 => 4.0,
        Format::Bf16 | Format::F16 => 2.0,
        // Blocks of 32 with a half-precision scale each.
        Format::Q8 => 34.0 / 32.0,
    }
}

/// The memory's read bandwidth, measured again and again in between what is measured against it.
#[derive(Debug)]
pub struct Bandwidth {
    probe: ReadProbe,
    threads: Threads,
}

impl Bandwidth {
    /// A probe that reads with this many threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self { probe: ReadProbe::new(PROBE_BYTES), threads: Threads::new(threads)? })
    }

    /// Bytes a second: the median of some passes over 512 MB.
    pub fn measure(&self) -> f64 {
        median((0..5).map(|_| self.probe.read(&self.threads))).unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use attune_engine::random_checkpoint::{self, Kind, Shape};

    use super::*;

    #[test]
    fn bytes_are_those_of_the_checkpoints_matrices() {
        // 'small', but narrow enough to be written in a test.
        let shape = Shape { hidden: 64, layers: 2, intermediate: 96, vocab: 300, ..Shape::small() };
        let folder = tempfile::tempdir().unwrap();
        random_checkpoint::write(folder.path(), &shape, 1, Kind::PersRm { value_head: true }).unwrap();
        let read = |role, format| step_bytes(folder.path(), role, format, 10).unwrap();
        let layers = 2 * (64 * (2 * 512 + 2 * 256) + 3 * 64 * 96);
        assert_eq!(read(Role::Base, Format::F32), 4.0 * (layers + 300 * 64) as f64);
        assert_eq!(read(Role::Reward, Format::Bf16), 2.0 * (layers + 10 * 64 + 64 * 64) as f64);
        assert_eq!(read(Role::Base, Format::Q8), 34.0 / 32.0 * (layers + 300 * 64) as f64);
    }
}
