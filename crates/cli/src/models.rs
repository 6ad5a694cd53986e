//! `attune models`: pairs with random weights, of the shapes that tests and benchmarks use.

use std::{io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use clap::ValueEnum;

/// Flags of `attune models`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Writes DIR/<size>-base and DIR/<size>-rm in the Hugging Face layout.\n\n\
                  Example:\n  attune models --out models/random --sizes small,medium")]
pub(crate) struct ModelsArgs {
    /// The folder to write; made if absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Which shapes: tiny (2 layers), small (41M weights), medium (303M weights, 1.2 GB a model).
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "small,medium")]
    sizes: Vec<Size>,
    /// The base model's seed; the reward model has the next.
    #[arg(long, value_name = "SEED", default_value_t = 20_260_101)]
    seed: u64,
    /// Leave a pair alone that stands there already.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    Tiny,
    Small,
    Medium,
}

impl Size {
    fn shape(self) -> Shape {
        match self {
            Self::Tiny => Shape::tiny(Family::Llama),
            Self::Small => Shape::small(),
            Self::Medium => Shape::medium(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Medium => "medium",
        }
    }
}

/// Writes the pairs.
pub(crate) fn run(args: &ModelsArgs) -> Result<()> {
    for size in &args.sizes {
        let pair =
            [("base", Kind::Base, args.seed), ("rm", Kind::PersRm { value_head: true }, args.seed + 1)];
        for (role, kind, seed) in pair {
            let folder = args.out.join(format!("{}-{role}", size.name()));
            // The weights are written last: where they are, all is.
            let done = match kind {
                Kind::Base => "model.safetensors",
                Kind::PersRm { .. } => "value_head.safetensors",
            };
            if args.keep && folder.join(done).exists() {
                writeln!(std::io::stdout(), "kept {}", folder.display())?;
                continue;
            }
            random_checkpoint::write(&folder, &size.shape(), seed, kind)
                .with_context(|| format!("cannot write the model {}", folder.display()))?;
            writeln!(std::io::stdout(), "wrote {}", folder.display())?;
        }
    }
    Ok(())
}
