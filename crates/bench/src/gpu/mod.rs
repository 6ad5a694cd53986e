//! What is checked and measured on a card: the kernels against their specification, models on it against
//! the same models on the CPU, both services end to end; then the kernels' times, and decoding.

mod kernel_speed;
mod kernels;
mod layers;
mod models;
mod pair;
pub mod speed;

use std::path::PathBuf;

use anyhow::{Result, bail};
use attune_kernels::cuda::Gpu;
use serde::Serialize;

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was checked.
    pub name: String,
    /// Whether it holds; `None`: a figure, to be read.
    pub holds: Option<bool>,
    /// What was found.
    pub found: String,
}

/// How much is checked.
#[derive(Debug, Clone)]
pub struct Extent {
    /// The folder of the services' binaries.
    pub binaries: PathBuf,
    /// The folder of the embedded pair: `base` and `persrm`.
    pub demo: PathBuf,
    /// A folder for random checkpoints.
    pub work: PathBuf,
    /// Small sizes alone, as for the stand-in for a card.
    pub quick: bool,
}

/// The findings, in the order in which they are made; every one is shown at once.
pub struct Findings<'a> {
    all: Vec<Finding>,
    show: &'a dyn Fn(&Finding),
}

impl<'a> Findings<'a> {
    /// None yet.
    pub fn new(show: &'a dyn Fn(&Finding)) -> Self {
        Self { all: Vec::new(), show }
    }

    fn add(&mut self, name: impl Into<String>, holds: Option<bool>, found: impl Into<String>) {
        let finding = Finding { name: name.into(), holds, found: found.into() };
        (self.show)(&finding);
        self.all.push(finding);
    }

    /// Takes a check that may have broken off as one that does not hold.
    fn take(&mut self, name: &str, result: Result<String>) {
        match result {
            Ok(found) => self.add(name, Some(true), found),
            Err(error) => self.add(name, Some(false), format!("{error:#}")),
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Finding] {
        &self.all
    }

    /// Ends well where none failed.
    ///
    /// # Errors
    /// Names those that failed.
    pub fn end(self) -> Result<()> {
        let failed: Vec<&str> =
            self.all.iter().filter(|f| f.holds == Some(false)).map(|f| f.name.as_str()).collect();
        if !failed.is_empty() {
            bail!("{} checks failed: {}", failed.len(), failed.join(", "));
        }
        Ok(())
    }
}

/// Checks the kernels alone.
pub fn check_kernels(gpu: &Gpu, extent: &Extent, findings: &mut Findings<'_>) {
    kernels::check(gpu, extent.quick, findings);
    layers::check(gpu, extent.quick, findings);
}

/// Runs every check on a card.
///
/// # Errors
/// The machine fails in a way that no check is about. What does not hold stands among the findings.
pub async fn check(gpu: &Gpu, extent: &Extent, findings: &mut Findings<'_>) -> Result<()> {
    check_kernels(gpu, extent, findings);
    models::check(gpu, extent, findings)?;
    pair::check(gpu.ordinal(), extent, findings).await
}
