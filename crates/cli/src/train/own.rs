//! `attune train lm` and `attune train persrm`: training on people's own data.

use std::{
    io::Write as _,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail};
use attune_engine::DefaultReference;
use attune_train::{
    own::{self, Lora, Outcome, OwnOptions, StageOne, StageTwo},
    trainer::{Ended, Recipe},
};
use clap::ValueEnum;

use super::device::DeviceArgs;
use crate::failure::Interrupted;

pub(super) const LM_EXAMPLES: &str = "\
Each line of --data is {\"prompt\": ..., \"answer\": ..., \"preference\": ...}, the preference if there is one.

Examples:
  attune train lm --model ./my-base --data texts.jsonl --out ./my-tuned
  attune train lm --model org/name --data texts.jsonl --out ./my-adapter --lora 16";

pub(super) const PERSRM_EXAMPLES: &str = "\
Each line of --data is {\"prompt\": ..., \"preference\": ..., \"chosen\": ..., \"rejected\": ...}; let a tenth of
the lines have no preference.

Examples:
  attune train persrm --model ./my-base --data pairs.jsonl --out ./my-persrm --lora 16
  attune train persrm --stage two --model ./my-persrm --base-model ./my-base --data pairs.jsonl --out ./with-head
  attune-reward --model ./my-persrm --base-model ./my-base";

/// Flags that both have.
#[derive(Debug, clap::Args)]
struct OwnArgs {
    /// The model to start from: a folder in the Hugging Face layout, or a hub id.
    #[arg(long, value_name = "FOLDER|ID")]
    model: String,
    /// The model that it is worn on, where it is an adapter [default: the hub id that the adapter names]
    #[arg(long, value_name = "FOLDER|ID")]
    base_model: Option<String>,
    /// JSON lines to learn from.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// JSON lines to measure with in the end; never learned from.
    #[arg(long, value_name = "FILE")]
    held_out: Option<PathBuf>,
    /// The folder to write; made if absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Examples of one pass.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Passes of one step; their gradients are averaged.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// How often every example is seen.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    epochs: u32,
    /// The highest learning rate [default: 1e-5; with --lora 2e-4; of stage two 1e-3]
    #[arg(long, value_name = "NUMBER", value_parser = positive)]
    rate: Option<f64>,
    /// The share of the steps that warm up; what follows is half a cosine.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    warm_up: f64,
    /// Weight decay of AdamW.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, value_parser = share)]
    decay: f64,
    /// The longest gradient; longer ones are scaled down to it.
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = positive)]
    clip: f64,
    /// All chance comes from it: one seed gives the same files on one machine.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// The longest text in tokens; a longer one is refused by its line [default: what the model holds]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Steps between checkpoints.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_every: u32,
    /// Go on from the checkpoint in --out, to the same weights as without a break.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// No progress bar.
    #[arg(long)]
    quiet: bool,
}

impl OwnArgs {
    fn options(&self, rate: f64, stream: u64) -> Result<OwnOptions> {
        Ok(OwnOptions {
            model: self.model.clone(),
            base_model: self.base_model.clone(),
            data: self.data.clone(),
            held_out: self.held_out.clone(),
            out: self.out.clone(),
            recipe: Recipe {
                batch: self.batch as usize,
                accumulate: self.accumulate as usize,
                epochs: self.epochs as usize,
                rate: self.rate.unwrap_or(rate),
                warm_up: self.warm_up,
                decay: self.decay,
                clip: self.clip,
                seed: self.seed,
                stream,
            },
            longest: self.max_tokens,
            every: self.checkpoint_every as usize,
            resume: self.resume,
            device: self.device.open()?,
            quiet: self.quiet,
        })
    }
}

#[derive(Debug, clap::Args)]
struct LoraArgs {
    /// Train an adapter of this rank instead of all weights.
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u32).range(1..=4096))]
    lora: Option<u32>,
    /// The adapter's product is multiplied by this over the rank [default: twice the rank]
    #[arg(long, value_name = "NUMBER", requires = "lora", value_parser = positive)]
    lora_alpha: Option<f64>,
}

impl LoraArgs {
    fn lora(&self) -> Option<Lora> {
        self.lora.map(|rank| Lora::of(rank as usize, self.lora_alpha))
    }

    fn rate(&self) -> f64 {
        if self.lora.is_some() { 2e-4 } else { 1e-5 }
    }
}

/// Flags of `attune train lm`.
#[derive(Debug, clap::Args)]
pub(super) struct LmArgs {
    #[command(flatten)]
    own: OwnArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// The backbone learns, the preference in its prompt; `w_p` is ones.
    One,
    /// The backbone is frozen; the head that reads `w_p` off the preference learns.
    Two,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reference {
    /// The PersRM's own, with the same `w_p`.
    Model,
    /// The base model, as it is.
    Generator,
    /// None.
    None,
}

/// Flags of `attune train persrm`.
#[derive(Debug, clap::Args)]
pub(super) struct PersrmArgs {
    #[command(flatten)]
    own: OwnArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Which stage. Stage two starts from what stage one wrote.
    #[arg(long, value_enum, default_value = "one")]
    stage: Stage,
    /// The scale of the log-ratios [default: 0.1; of stage two, as in stage one]
    #[arg(long, value_name = "NUMBER", value_parser = positive)]
    beta: Option<f64>,
    /// Stage one: weight of the chosen answer's own loss, in nats a token, beside the pairs'.
    #[arg(long, value_name = "NUMBER", value_parser = share)]
    anchor: Option<f64>,
    /// Stage one: where a preference stands in the last user message, a template over `preference` and
    /// `content` [default: the model's own attune.json's, else the worker's default]
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Stage two: what is subtracted [default: as the PersRM's attune.json says]
    #[arg(long, value_enum)]
    reference: Option<Reference>,
    /// Stage two, reference generator: the base model's folder [default: the PersRM's own reference]
    #[arg(long, value_name = "FOLDER")]
    generator: Option<PathBuf>,
    /// Stage two: keep the preference out of the prompt, so that it acts through `w_p` alone.
    #[arg(long)]
    weights_alone: bool,
}

pub(super) fn lm(args: &LmArgs) -> Result<()> {
    let options = args.own.options(args.lora.rate(), 30)?;
    let stop = stopped()?;
    told(&options, own::lm(&options, args.lora.lora(), &stop)?)
}

pub(super) fn persrm(args: &PersrmArgs) -> Result<()> {
    let stop = stopped()?;
    match args.stage {
        Stage::One => {
            refuse(
                "two",
                &[
                    ("--reference", args.reference.is_some()),
                    ("--generator", args.generator.is_some()),
                    ("--weights-alone", args.weights_alone),
                ],
            )?;
            let options = args.own.options(args.lora.rate(), 31)?;
            let stage = StageOne {
                lora: args.lora.lora(),
                template: args.template.clone(),
                beta: args.beta.unwrap_or(0.1),
                anchor: args.anchor.unwrap_or(0.0),
            };
            told(&options, own::stage_one(&options, &stage, &stop)?)
        }
        Stage::Two => {
            refuse(
                "one",
                &[
                    ("--lora", args.lora.lora.is_some()),
                    ("--anchor", args.anchor.is_some()),
                    ("--template", args.template.is_some()),
                ],
            )?;
            let options = args.own.options(1e-3, 32)?;
            let stage = StageTwo {
                reference: args.reference.map(|reference| match reference {
                    Reference::Model => DefaultReference::Model,
                    Reference::Generator => DefaultReference::Generator,
                    Reference::None => DefaultReference::None,
                }),
                generator: args.generator.clone(),
                in_prompt: !args.weights_alone,
                beta: args.beta,
            };
            told(&options, own::stage_two(&options, &stage, &stop)?)
        }
    }
}

/// Refuses flags that belong to the other stage.
fn refuse(stage: &str, given: &[(&str, bool)]) -> Result<()> {
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => bail!("{flag} belongs to stage {stage}"),
        None => Ok(()),
    }
}

fn told(options: &OwnOptions, outcome: Outcome) -> Result<()> {
    let out = options.out.display();
    let summary = match outcome.ended {
        Ended::Done(summary) => summary,
        Ended::Stopped { steps, of } => {
            anstream::eprintln!(
                "stopped after {steps} of {of} steps; the same command with --resume goes on"
            );
            return Err(Interrupted.into());
        }
    };
    let shown = |summary: attune_train::trainer::Summary| match summary.accuracy > 0.0 {
        true => {
            format!("loss {:.4}, {:.1} % of pairs ordered rightly", summary.loss, 100.0 * summary.accuracy)
        }
        false => format!("loss {:.4}", summary.loss),
    };
    let mut text =
        format!("wrote {out}, learned from {} lines\nin the end: {}\n", outcome.lines, shown(summary));
    if let Some(summary) = outcome.held_out {
        text += &format!("held out:   {}\n", shown(summary));
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Set by ctrl-c: the step in hand is finished, and a checkpoint written. A second one ends at once.
fn stopped() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = move || {
        runtime.block_on(async {
            for _ in 0..2 {
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                if seen.swap(true, Ordering::Relaxed) {
                    process::exit(130);
                }
            }
        });
    };
    thread::Builder::new().name("ctrl-c".into()).spawn(listen).context("cannot start a thread")?;
    Ok(stop)
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).filter(|n| *n > 0.0).ok_or_else(|| format!("`{text}` is no number above 0"))
}

fn share(text: &str) -> Result<f64, String> {
    number(text).filter(|n| *n >= 0.0).ok_or_else(|| format!("`{text}` is no number from 0"))
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| n.is_finite())
}
