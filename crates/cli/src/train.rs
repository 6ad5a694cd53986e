//! `attune train`.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use attune_train::{
    demo::{self, DemoOptions},
    rivals::{self, RivalOptions},
};
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
    /// Make what other methods of `attune eval` need: an expert for each trait, an autoregressive reward
    /// model, further base models. What is there already is kept.
    #[command(after_help = "Example:\n  attune train eval --base models/demo/base --out models/eval")]
    Eval(EvalArgs),
}

#[derive(Debug, clap::Args)]
struct EvalArgs {
    /// The base model of the pair.
    #[arg(long, value_name = "DIR", default_value = "models/demo/base")]
    base: PathBuf,
    /// The folder to write; made if absent.
    #[arg(long, value_name = "DIR", default_value = "models/eval")]
    out: PathBuf,
    /// All chance comes from it.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Seconds instead of half an hour, for models of the right form that have learned nothing.
    #[arg(long)]
    tiny: bool,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
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
    match args.what {
        What::Demo(args) => demo(&args),
        What::Eval(args) => eval(&args),
    }
}

fn eval(args: &EvalArgs) -> Result<()> {
    let recipe = if args.tiny { RivalOptions::tiny } else { RivalOptions::new };
    let mut options = recipe(args.base.clone(), args.out.clone(), args.seed);
    options.quiet |= args.quiet;
    rivals::make(&options)?;
    writeln!(std::io::stdout(), "wrote {}; `attune eval` finds it there", args.out.display())?;
    Ok(())
}

fn demo(args: &DemoArgs) -> Result<()> {
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
