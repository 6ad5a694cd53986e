//! `attune train`.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use attune_train::demo::{self, DemoOptions};
use clap::Subcommand;

/// Flags of `attune train`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make the embedded pair: write a corpus, train tokenizer, base model and PersRM, measure them.
    #[command(after_help = "Example:\n  attune train demo --seed 1 --out models/demo")]
    Demo(DemoArgs),
}

#[derive(Debug, clap::Args)]
struct DemoArgs {
    /// All chance comes from it: one seed gives the same files on one machine.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// The folder to write; made if absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seconds instead of half an hour, for a pair of the right form that has learned nothing.
    #[arg(long)]
    tiny: bool,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

/// Trains.
pub(crate) fn run(args: TrainArgs) -> Result<()> {
    let What::Demo(args) = args.what;
    let mut options = if args.tiny {
        DemoOptions::tiny(&args.out, args.seed)
    } else {
        DemoOptions::new(&args.out, args.seed)
    };
    options.quiet = args.quiet;
    let report = demo::make(&options)?;
    writeln!(
        std::io::stdout(),
        "wrote {}: {} weights a model, {} token ids, PersRM orders {:.1} % of pairs rightly\n\
         its README.md has the measured figures",
        args.out.display(),
        report.parameters,
        report.vocabulary,
        100.0 * report.dpo.accuracy,
    )?;
    Ok(())
}
