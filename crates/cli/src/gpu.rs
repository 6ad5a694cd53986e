//! `attune gpu`: what is checked and measured on a card.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use attune_bench::gpu::{Extent, Finding, Findings, check, check_kernels, speed};
use attune_kernels::cuda::{Cache, Gpu};
use clap::{Subcommand, ValueEnum};

use crate::with_runtime;

/// Flags of `attune gpu`.
#[derive(Debug, clap::Args)]
pub(crate) struct GpuArgs {
    #[command(subcommand)]
    command: GpuCommand,
}

#[derive(Debug, Subcommand)]
enum GpuCommand {
    /// Check the kernels, models and both services on a card; fails where something does not hold.
    Test(TestArgs),
    /// Measure the kernels and decoding on a card.
    Bench(BenchArgs),
}

/// Flags of `attune gpu test`.
#[derive(Debug, clap::Args)]
struct TestArgs {
    #[command(flatten)]
    run: RunArgs,
    /// The kernels alone, as for a tool that looks over every access to memory.
    #[arg(long)]
    kernels: bool,
}

/// Flags of `attune gpu bench`.
#[derive(Debug, clap::Args)]
struct BenchArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Measure decoding alone, with these random models.
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    decode: Vec<Decode>,
}

/// A random model whose decoding is measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Decode {
    /// Two small layers
    Tiny,
    /// A billion weights, as Llama 3.2
    #[value(name = "1b")]
    OneBillion,
    /// Eight billion, as Llama 3.1
    #[value(name = "8b")]
    EightBillion,
}

impl From<Decode> for speed::Model {
    fn from(model: Decode) -> Self {
        match model {
            Decode::Tiny => Self::Tiny,
            Decode::OneBillion => Self::OneBillion,
            Decode::EightBillion => Self::EightBillion,
        }
    }
}

/// Flags of both.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The card's number, from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    card: usize,
    /// Small sizes alone: shows that all of it runs.
    #[arg(long)]
    quick: bool,
    /// The folder of the embedded pair.
    #[arg(long, value_name = "DIR", default_value = "models/demo")]
    demo: PathBuf,
    /// Where random checkpoints are written, up to 20 GB; what stands there is used again.
    #[arg(long, value_name = "DIR", default_value = "target/gpu")]
    work: PathBuf,
    /// Where to write what was found as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Checks or measures.
pub(crate) fn run(args: GpuArgs) -> Result<()> {
    match args.command {
        GpuCommand::Test(args) => with_runtime(test(args)),
        GpuCommand::Bench(args) => with_runtime(bench(args)),
    }
}

impl RunArgs {
    fn open(&self) -> Result<(Gpu, Extent)> {
        let gpu = Gpu::open(self.card, Cache::default())?;
        anstream::eprintln!("cuda:{} {}", self.card, gpu.name());
        std::fs::create_dir_all(&self.work)
            .with_context(|| format!("cannot make the folder {}", self.work.display()))?;
        let binaries = std::env::current_exe()?.parent().map(Path::to_path_buf);
        let extent = Extent {
            binaries: binaries.context("no folder of binaries")?,
            demo: self.demo.clone(),
            work: self.work.clone(),
            quick: self.quick,
        };
        Ok((gpu, extent))
    }

    fn write(&self, found: &impl serde::Serialize) -> Result<()> {
        let Some(path) = &self.out else { return Ok(()) };
        let write = || -> Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            Ok(std::fs::write(path, serde_json::to_string_pretty(found)? + "\n")?)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

async fn test(TestArgs { run, kernels }: TestArgs) -> Result<()> {
    let (gpu, extent) = run.open()?;
    let show = |finding: &Finding| {
        let mark = match finding.holds {
            Some(true) => "ok    ",
            Some(false) => "FAILED",
            None => "      ",
        };
        anstream::println!("{mark} {}: {}", finding.name, finding.found);
    };
    let mut findings = Findings::new(&show);
    if kernels {
        check_kernels(&gpu, &extent, &mut findings);
    } else {
        check(&gpu, &extent, &mut findings).await?;
    }
    run.write(&findings.all())?;
    findings.end()
}

async fn bench(BenchArgs { run, decode }: BenchArgs) -> Result<()> {
    let (gpu, extent) = run.open()?;
    let only: Vec<speed::Model> = decode.into_iter().map(Into::into).collect();
    let speeds = speed::measure(&gpu, &extent, &only, |what| anstream::eprintln!("{what}")).await?;
    run.write(&speeds)?;
    Ok(std::io::stdout().write_all(speeds.table().as_bytes())?)
}
