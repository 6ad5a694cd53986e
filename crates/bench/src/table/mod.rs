//! The table of figures to reach: every row a ratio within one run, its two sides in turn, medians.
//!
//! The services run as processes of their own, as they are shipped; the models alone and the Python
//! decoders are child processes that decode on demand.

mod child;
mod decode;
mod elsewhere;
mod identity;
mod llama;
mod pair;
mod profiles;
mod quantised;
mod rows;
mod secure;
mod service;
mod sides;
mod telemetry;
mod wired;

use std::path::PathBuf;

use anyhow::Result;

pub use rows::{Key, Reach, Row, print, rows};

use crate::floor::Bandwidth;
use rows::Results;

/// What to measure, and with what.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of `attune`, `attune-generator` and `attune-reward`.
    pub binaries: PathBuf,
    /// The folder of `small-base`, `small-rm`, `medium-base` and `medium-rm`.
    pub models: PathBuf,
    /// The rows whose key begins with one of these; empty: all.
    pub only: Vec<String>,
    /// Fewer rounds and tokens: shows that everything runs, but its figures are rough.
    pub quick: bool,
    /// A Python interpreter with the packages of `tests/peers/requirements.txt`, and the scripts that
    /// decode on demand. `None`: these rows are left out.
    pub peers: Option<Peers>,
}

/// The Python decoders.
#[derive(Debug, Clone)]
pub struct Peers {
    /// The interpreter.
    pub python: PathBuf,
    /// `tests/peers`, where `bench.py` and `llama.py` lie.
    pub folder: PathBuf,
}

/// The benchmarks' shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// About 41M weights.
    Small,
    /// About 303M weights.
    Medium,
}

impl Size {
    /// Its name in the checkpoints' folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
        }
    }
}

impl Settings {
    fn base(&self, size: Size) -> PathBuf {
        self.models.join(format!("{}-base", size.name()))
    }

    fn persrm(&self, size: Size) -> PathBuf {
        self.models.join(format!("{}-rm", size.name()))
    }

    fn rounds(&self, thorough: usize) -> usize {
        if self.quick { 2 } else { thorough }
    }

    fn tokens(&self, thorough: u32) -> u32 {
        if self.quick { thorough.min(16) } else { thorough }
    }

    fn wants(&self, key: Key) -> bool {
        let name = key.to_string();
        self.only.is_empty() || self.only.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }

    fn wants_any(&self, keys: &[Key]) -> bool {
        keys.iter().any(|&key| self.wants(key))
    }
}

/// Cores of this machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The cores of one service where both share the machine.
fn half() -> usize {
    (cores() / 2).max(1)
}

/// Measures all rows that are wanted; `say` hears what is under way, and remarks on the figures.
///
/// # Errors
/// A service does not start, or a side of a row fails: then there is no figure to report.
pub async fn run(settings: &Settings, say: impl Fn(&str)) -> Result<Vec<Row>> {
    let mut results = Results::new(settings, &say);
    let bandwidth = Bandwidth::new(cores())?;
    for size in [Size::Small, Size::Medium] {
        pair::run(settings, size, &bandwidth, &mut results).await?;
        llama::run(settings, size, &mut results).await?;
        elsewhere::run(settings, size, &mut results).await?;
    }
    quantised::run(settings, &mut results).await?;
    profiles::run(settings, &mut results).await?;
    wired::run(settings, &mut results).await?;
    identity::run(settings, &mut results).await?;
    telemetry::run(settings, &mut results).await?;
    secure::run(settings, &mut results).await?;
    Ok(results.into_rows())
}
