//! `attune bench`: load on a running pair, the pieces of a step, and the table of figures to reach.

mod serve;
mod step;
mod table;

use anyhow::Result;
use clap::Subcommand;

use crate::with_runtime;

/// Flags of `attune bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Drive a running pair with concurrent streams; show times and throughput.
    Serve(Box<serve::ServeArgs>),
    /// Measure the pieces of one step on two checkpoints, beside the memory's floor.
    Step(step::StepArgs),
    /// Measure the table of figures to reach, each as a ratio in one run. It starts its own services.
    Table(table::TableArgs),
    /// Decode with one model alone, on demand; other parts of the bench start it.
    #[command(hide = true)]
    Solo(step::SoloArgs),
}

/// Runs a benchmark.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        BenchCommand::Serve(args) => with_runtime(serve::run(*args)),
        BenchCommand::Step(args) => step::run(&args),
        BenchCommand::Table(args) => with_runtime(table::run(args)),
        BenchCommand::Solo(args) => step::solo(&args),
    }
}

/// A progress bar on stderr, where that is a terminal.
pub(crate) fn progress(total: usize, what: &str) -> Result<indicatif::ProgressBar> {
    let style = indicatif::ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} (left {eta})")?;
    Ok(indicatif::ProgressBar::new(total as u64).with_style(style).with_message(what.to_owned()))
}
