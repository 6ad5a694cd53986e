//! `attune eval people`: profiles fitted to feedback, against the preference in words.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use attune_eval::{
    models::Models,
    people::{self, Settings, fitter::How, gain::Asking, plot},
};
use attune_profiles::{Reference, fit::Method};
use attune_proto::generator::v1::Sampling;

use super::{binaries, write};

const EXAMPLES: &str = "\
Examples:
  attune eval people                                     # 16 people, 5 to 100 pairs, weights and latents
  attune eval people --sizes 20 --methods weights --rivals 0
  attune eval people --reference generator --spread 8    # another reference and prior

It starts its own services. In --out it writes people.json and people.svg.";

/// Flags of `attune eval people`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PeopleArgs {
    /// The pair: the folder of base and persrm.
    #[arg(long, value_name = "DIR", default_value = "models/demo")]
    models: PathBuf,
    /// The numbers of pairs that profiles are fitted to.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "5,10,20,50,100",
          value_parser = clap::value_parser!(u16).range(5..=512))]
    sizes: Vec<u16>,
    /// What is fitted: weights, latent. Default: both, where the PersRM has a latent adapter.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = method)]
    methods: Vec<Method>,
    /// What weights are measured against: model, generator or none.
    #[arg(long, value_name = "NAME", default_value = "generator", value_parser = reference)]
    reference: Reference,
    /// What latents are measured against: model, generator or none.
    #[arg(long, value_name = "NAME", default_value = "generator", value_parser = reference)]
    latent_reference: Reference,
    /// How far the prior lets margins move, in place of the default.
    #[arg(long, value_name = "NUMBER")]
    spread: Option<f64>,
    /// The strength of all guidance.
    #[arg(long, value_name = "NUMBER", default_value_t = 1.5)]
    strength: f32,
    /// Questions that each person asks.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    questions: u32,
    /// People for whom an adapter is trained too, to compare times.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=16))]
    rivals: u32,
    /// Held-out pairs on which fits and adapters are compared.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1000))]
    held_out: u32,
    /// The sampling temperature.
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    temperature: f32,
    /// Leave out candidates below this share of the best base probability.
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// All chance comes from it.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// The folder to write; made if absent.
    #[arg(long, value_name = "DIR", default_value = "target/eval")]
    out: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn method(name: &str) -> Result<Method, String> {
    match name {
        "weights" => Ok(Method::Weights),
        "latent" => Ok(Method::Latent),
        _ => Err("there are weights, latent".to_owned()),
    }
}

fn reference(name: &str) -> Result<Reference, String> {
    match name {
        "model" => Ok(Reference::Model),
        "generator" => Ok(Reference::Generator),
        "none" => Ok(Reference::None),
        _ => Err("there are model, generator, none".to_owned()),
    }
}

/// Measures, writes and prints.
pub(crate) async fn run(args: PeopleArgs) -> Result<()> {
    let settings = settings(&args)?;
    let bar = crate::bench::progress(settings.answers(), "answers")?;
    let (seen, named) = (bar.clone(), bar.clone());
    let report = people::run(&settings, move || seen.inc(1), move |cell| named.set_message(cell)).await?;
    bar.finish_and_clear();
    write(&args.out, "people.json", serde_json::to_string_pretty(&report)? + "\n")?;
    write(&args.out, "people.svg", plot::svg(&report)?)?;
    let mut out = String::new();
    if args.json {
        out = serde_json::to_string(&report)? + "\n";
    } else {
        out += &report.print();
        out.push('\n');
        for verdict in report.verdicts() {
            out += &format!("{} {}\n", if verdict.holds { "reached" } else { "MISSED " }, verdict.line);
        }
    }
    Ok(std::io::stdout().write_all(out.as_bytes())?)
}

fn settings(args: &PeopleArgs) -> Result<Settings> {
    let models = Models::open(&args.models, &args.models)?;
    let has_latents = models.base().with_file_name("persrm").join(attune_train::latent::FILE).exists();
    let methods = match args.methods.as_slice() {
        [] if has_latents => vec![Method::Weights, Method::Latent],
        [] => vec![Method::Weights],
        asked => asked.to_vec(),
    };
    let how = |method: Method| How {
        method,
        reference: if method == Method::Weights { args.reference } else { args.latent_reference },
        spread: args.spread,
    };
    Ok(Settings {
        binaries: binaries()?,
        models,
        sizes: args.sizes.iter().map(|&n| usize::from(n)).collect(),
        ways: methods.into_iter().map(how).collect(),
        asking: Asking {
            sampling: Sampling {
                temperature: Some(args.temperature),
                min_p: Some(args.min_p),
                max_tokens: Some(160),
                ..Sampling::default()
            },
            strength: args.strength,
            reference: attune_proto::reward::v1::Reference::Generator,
            questions: args.questions as usize,
            streams: 48,
            seed: args.seed,
        },
        rivals: args.rivals as usize,
        held_out: args.held_out as usize,
    })
}
