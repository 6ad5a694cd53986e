//! `attune bench step`, and the child process that decodes with one model alone.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use attune_bench::{
    floor::Role,
    pieces::{self, Pieces},
    solo::{self, Solo},
};
use attune_kernels::Format;
use clap::ValueEnum;

use super::progress;

/// Flags of `attune bench step`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  attune bench step --base models/small-base --reward models/small-rm --threads 2"
)]
pub(crate) struct StepArgs {
    /// The base model's folder.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// The reward model's folder.
    #[arg(long, value_name = "DIR")]
    reward: PathBuf,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Steps of each model.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Print one JSON object; times in seconds.
    #[arg(long)]
    json: bool,
}

/// How the models compute.
#[derive(Debug, clap::Args)]
struct ComputeArgs {
    /// Threads that compute; 0: one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// How matrices are stored [default: as in the checkpoint].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<DtypeArg>,
    /// Tokens of the prompt, random ids.
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_tokens: usize,
}

/// Flags of `attune bench solo`.
#[derive(Debug, clap::Args)]
pub(crate) struct SoloArgs {
    /// The model's folder.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Which of the pair's models it is.
    #[arg(long, value_name = "ROLE")]
    role: RoleArg,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    Base,
    Reward,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DtypeArg {
    F32,
    Bf16,
    F16,
    Q8,
}

impl ComputeArgs {
    fn format(&self) -> Option<Format> {
        self.dtype.map(|dtype| match dtype {
            DtypeArg::F32 => Format::F32,
            DtypeArg::Bf16 => Format::Bf16,
            DtypeArg::F16 => Format::F16,
            DtypeArg::Q8 => Format::Q8,
        })
    }

    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// Measures and prints the pieces.
pub(crate) fn run(args: &StepArgs) -> Result<()> {
    let bar = progress(args.steps as usize, "steps")?;
    let pieces = Pieces {
        base: &args.base,
        persrm: &args.reward,
        format: args.compute.format(),
        threads: args.compute.threads(),
        prompt: args.compute.prompt_tokens,
        steps: args.steps as usize,
    };
    let times = pieces::measure(&pieces, || bar.inc(1))?;
    bar.finish_and_clear();
    let text = if args.json { serde_json::to_string(&times)? + "\n" } else { times.table() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Decodes on demand until stdin is closed.
pub(crate) fn solo(args: &SoloArgs) -> Result<()> {
    let role = match args.role {
        RoleArg::Base => Role::Base,
        RoleArg::Reward => Role::Reward,
    };
    let compute = &args.compute;
    let solo = Solo::load(&args.model, role, compute.format(), compute.threads(), compute.prompt_tokens)?;
    solo::serve(solo, std::io::stdin().lock(), std::io::stdout().lock())
}
