//! `attune train`.

mod device;
mod own;

use std::{io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use attune_engine::{PersRmSettings, WeightPrior};
use attune_train::{
    demo::{self, DemoOptions},
    export,
    latent::{self, LatentOptions},
    prior::{self, PriorOptions},
    rivals::{self, RivalOptions},
    world::{Trait, Traits, pairs},
};
use clap::Subcommand;

use self::device::DeviceArgs;

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
    /// Write the demo world's own texts or pairs as JSON lines, to try the trainers with.
    #[command(after_help = "Example:\n  attune train data --pairs 2000 --seed 5 --out pairs.jsonl")]
    Data(DataArgs),
    /// Train a language model on your own prompts and answers.
    #[command(after_help = own::LM_EXAMPLES)]
    Lm(own::LmArgs),
    /// Train a PersRM on your own pairs of answers, in two stages.
    #[command(after_help = own::PERSRM_EXAMPLES)]
    Persrm(Box<own::PersrmArgs>),
    /// Make what other methods of `attune eval` need: an expert for each trait, an autoregressive reward
    /// model, further base models. What is there already is kept.
    #[command(after_help = "Example:\n  attune train eval --base models/demo/base --out models/eval")]
    Eval(EvalArgs),
    /// Train the latent adapter of a PersRM of the demo world (CLaP): once, for all people to come.
    #[command(after_help = "Example:\n  attune train latent --persrm models/demo/persrm --seed 1")]
    Latent(BesideArgs),
    /// Learn the prior of fitted weights of a PersRM of the demo world: once, for all people to come.
    #[command(
        after_help = "Example:\n  attune train prior --persrm models/demo/persrm --base models/demo/base"
    )]
    Prior(PriorArgs),
}

/// What is trained on a frozen PersRM of the demo world, and written beside its weights.
#[derive(Debug, clap::Args)]
struct BesideArgs {
    /// The PersRM's folder; what is trained is written into it.
    #[arg(long, value_name = "DIR", default_value = "models/demo/persrm")]
    persrm: PathBuf,
    /// All chance comes from it: one seed gives the same file on one machine.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Steps, in place of the recipe's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: Option<u32>,
    /// Seconds instead of minutes, for a file of the right form that has learned nothing.
    #[arg(long)]
    tiny: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
struct PriorArgs {
    /// The base model that answers are measured against.
    #[arg(long, value_name = "DIR", default_value = "models/demo/base")]
    base: PathBuf,
    #[command(flatten)]
    beside: BesideArgs,
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
    /// Seconds instead of minutes, for models of the right form that have learned nothing.
    #[arg(long)]
    tiny: bool,
    #[command(flatten)]
    device: DeviceArgs,
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
    /// Take the base, with its tokenizer, from this folder instead of training one.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Seconds instead of twenty minutes or more, for a pair of the right form that has learned nothing.
    #[arg(long)]
    tiny: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// No progress bars.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["pairs", "texts"])))]
struct DataArgs {
    /// So many pairs of answers, for `attune train persrm`.
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// With --pairs: what somebody says who likes answers with these traits, for `attune fit`. The traits are brief,
    /// detailed, formal, casual, plain, expert, humour and caution.
    #[arg(long, value_name = "TRAITS", value_delimiter = ',', value_parser = one_trait, requires = "pairs")]
    person: Vec<Trait>,
    /// So many answers, for `attune train lm`.
    #[arg(long, value_name = "N")]
    texts: Option<usize>,
    /// All chance comes from it.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Trains.
pub(crate) fn run(args: TrainArgs) -> Result<()> {
    match args.what {
        What::Demo(args) => demo(&args),
        What::Eval(args) => eval(&args),
        What::Latent(args) => latents(&args),
        What::Prior(args) => weight_prior(&args),
        What::Data(args) => data(&args),
        What::Lm(args) => own::lm(&args),
        What::Persrm(args) => own::persrm(&args),
    }
}

fn latents(args: &BesideArgs) -> Result<()> {
    let mut options = if args.tiny { LatentOptions::tiny() } else { LatentOptions::default() };
    if let Some(steps) = args.steps {
        options.steps = steps as usize;
    }
    let (persrm, tokenizer) = export::read_checkpoint(&args.persrm)?;
    let persrm = persrm.on(&args.device.open()?)?;
    let (latents, outcome) = latent::train(&persrm, &tokenizer, &options, args.seed, args.quiet)?;
    latents.write(&args.persrm)?;
    writeln!(
        std::io::stdout(),
        "wrote {}: latents of {} numbers, which order {:.1} % of their people's other comparisons rightly",
        args.persrm.join(latent::FILE).display(),
        options.size,
        100.0 * outcome.accuracy,
    )?;
    Ok(())
}

fn weight_prior(PriorArgs { base, beside: args }: &PriorArgs) -> Result<()> {
    let mut options = if args.tiny { PriorOptions::tiny() } else { PriorOptions::default() };
    if let Some(steps) = args.steps {
        options.steps = steps as usize;
    }
    if let Some(beta) = PersRmSettings::load(&args.persrm)?.beta {
        options.beta = beta;
    }
    let device = args.device.open()?;
    let (persrm, tokenizer) = export::read_checkpoint(&args.persrm)?;
    let (base, _) = export::read_checkpoint(base)?;
    let (persrm, base) = (persrm.on(&device)?, base.on(&device)?);
    let (prior, outcome) = prior::train(&persrm, &base, &tokenizer, &options, args.seed, args.quiet)?;
    prior.write(&args.persrm)?;
    writeln!(
        std::io::stdout(),
        "wrote {}: {} directions, along which fits order {:.1} % of their people's other comparisons rightly",
        args.persrm.join(WeightPrior::FILE).display(),
        options.rank,
        100.0 * outcome.accuracy,
    )?;
    Ok(())
}

fn eval(args: &EvalArgs) -> Result<()> {
    let recipe = if args.tiny { RivalOptions::tiny } else { RivalOptions::new };
    let mut options = recipe(args.base.clone(), args.out.clone(), args.seed);
    options.quiet |= args.quiet;
    options.device = args.device.open()?;
    rivals::make(&options)?;
    writeln!(std::io::stdout(), "wrote {}; `attune eval` finds it there", args.out.display())?;
    Ok(())
}

fn one_trait(name: &str) -> Result<Trait, String> {
    let names = || Trait::ALL.map(Trait::name).join(", ");
    Trait::parse(name).ok_or_else(|| format!("there are {}", names()))
}

fn data(args: &DataArgs) -> Result<()> {
    let mut text = String::new();
    if let Some(count) = args.pairs {
        if args.person.is_empty() {
            for pair in pairs::pairs(count, args.seed) {
                text += &(serde_json::to_string(&pair)? + "\n");
            }
        } else {
            let liked: Traits = args.person.iter().copied().collect();
            for pairs::Pair { prompt, chosen, rejected, .. } in
                pairs::pairs_of(liked, pairs::held_out_halves().0, count, args.seed)
            {
                let line = serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});
                text += &format!("{line}\n");
            }
        }
    }
    if let Some(count) = args.texts {
        for sample in pairs::samples(count, args.seed) {
            text += &(serde_json::to_string(&sample)? + "\n");
        }
    }
    std::fs::write(&args.out, text).with_context(|| format!("cannot write {}", args.out.display()))
}

fn demo(args: &DemoArgs) -> Result<()> {
    let mut options = if args.tiny {
        DemoOptions::tiny(&args.out, args.seed)
    } else {
        DemoOptions::new(&args.out, args.seed)
    };
    options.quiet = args.quiet;
    options.device = args.device.open()?;
    options.base.clone_from(&args.base);
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
