//! `attune eval`: what `make eval` runs.

mod people;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use attune_eval::{
    asks, bases,
    method::Method,
    models::Models,
    plot,
    run::{self, Settings},
    table,
};
use attune_proto::generator::v1::Sampling;

const EXAMPLES: &str = "\
Examples:
  attune eval                                            # all methods over their strengths
  attune eval --quick                                    # a few questions, to see that all of it runs
  attune eval --methods unguided,prompted,pad-model --strengths 0.5,1,2 --prompts 240

It starts its own services. Methods whose models are not there are left out, and named. In --out it
writes table.json, a list of rows, answers.jsonl, every answer with what the judge found, bases.json, and
plot.svg: alignment against fluency.";

/// Prompts of a --quick run: each kind of preference once.
const QUICK: usize = 24;

/// Flags of `attune eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// The pair: the folder of base and persrm.
    #[arg(long, value_name = "DIR", default_value = "models/demo")]
    models: PathBuf,
    /// What other methods need: the folder of genarm, experts/TRAIT, bases/NAME and train.json.
    #[arg(long, value_name = "DIR", default_value = "models/eval")]
    adapters: PathBuf,
    /// Only these methods, of: unguided, prompted, pad-model, pad-generator, pad-weights, genarm,
    /// linear-alignment, experts, soups, persrm-alone, dpo.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = method)]
    methods: Vec<Method>,
    /// These strengths in place of each method's own.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', allow_negative_numbers = true)]
    strengths: Vec<f32>,
    /// Held-out questions, each with a preference, for every method and strength; 24 kinds in turn.
    #[arg(long, value_name = "N", default_value_t = 2016, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    prompts: u32,
    /// A few prompts, one strength a method, and no other base models.
    #[arg(long)]
    quick: bool,
    /// Leave the other base models out.
    #[arg(long)]
    no_bases: bool,
    /// The strength of PAD on the other base models.
    #[arg(long, value_name = "NUMBER", default_value_t = 2.0)]
    bases_strength: f32,
    /// The sampling temperature of all methods.
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    temperature: f32,
    /// For all methods: leave out candidates below this share of the best base probability.
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Texts at once.
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=64))]
    streams: u32,
    /// All chance comes from it.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// The folder to write; made if absent.
    #[arg(long, value_name = "DIR", default_value = "target/eval")]
    out: PathBuf,
    /// Print the rows as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure profiles that are fitted to feedback, against the preference in words.
    People(Box<people::PeopleArgs>),
}

fn method(name: &str) -> Result<Method, String> {
    let names = || Method::ALL.map(Method::name).join(", ");
    Method::parse(name).ok_or_else(|| format!("there are {}", names()))
}

/// Measures, writes and prints.
pub(crate) async fn run(mut args: EvalArgs) -> Result<()> {
    if let Some(What::People(people)) = args.what.take() {
        return people::run(*people).await;
    }
    let settings = settings(&args)?;
    let (methods, left_out) = settings.methods();
    for (method, why) in &left_out {
        anstream::eprintln!("{} is left out: {why}", method.name());
    }
    if methods.is_empty() {
        bail!("no method is left to measure");
    }
    let with_bases = !args.quick && !args.no_bases && !settings.models.bases().is_empty();
    let answers = settings.answers() + if with_bases { bases::answers(&settings) } else { 0 };
    let bar = crate::bench::progress(answers, "answers")?;
    let (seen, named) = (bar.clone(), bar.clone());
    let on_answer = move || seen.inc(1);
    let on_cell = move |method: Method, strength: f32| {
        named.set_message(format!("{} {strength}", method.name()));
    };
    let (rows, told) = run::run(&settings, on_answer.clone(), on_cell).await?;
    let lines = told.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    write(&args.out, "answers.jsonl", lines.join("\n") + "\n")?;
    write(&args.out, "table.json", serde_json::to_string_pretty(&rows)? + "\n")?;
    write(&args.out, "plot.svg", plot::svg(&rows)?)?;
    let mut bases = Vec::new();
    if with_bases {
        bar.set_message("other bases");
        bases = bases::run(&settings, args.bases_strength, on_answer).await?;
        write(&args.out, "bases.json", serde_json::to_string_pretty(&bases)? + "\n")?;
    }
    bar.finish_and_clear();
    let mut out = String::new();
    if args.json {
        out = serde_json::to_string(&rows)? + "\n";
    } else {
        out += &table::print(&rows);
        out += "\nEach method at its best strength that is well formed in at least 95 % of cases, else at its best formed:\n\n";
        out += &table::print_dimensions(&table::best(&rows));
        if !bases.is_empty() {
            out += "\nThe same PersRM on other base models:\n\n";
            out += &bases::print(&bases);
        }
        out.push('\n');
        for verdict in table::verdicts(&rows) {
            out += &format!("{} {}\n", if verdict.holds { "reached" } else { "MISSED " }, verdict.line);
        }
    }
    Ok(std::io::stdout().write_all(out.as_bytes())?)
}

/// The folder of this program, and of the services.
fn binaries() -> Result<PathBuf> {
    std::env::current_exe()?.parent().map(Path::to_path_buf).context("no folder of binaries")
}

fn settings(args: &EvalArgs) -> Result<Settings> {
    let binaries = binaries()?;
    let prompts = if args.quick { QUICK } else { args.prompts as usize };
    let strengths = match (args.quick, args.strengths.as_slice()) {
        (true, []) => vec![1.0],
        (_, given) => given.to_vec(),
    };
    Ok(Settings {
        binaries,
        models: Models::open(&args.models, &args.adapters)?,
        methods: if args.methods.is_empty() { Method::ALL.to_vec() } else { args.methods.clone() },
        strengths,
        asks: asks::draw(prompts, args.seed),
        sampling: Sampling {
            temperature: Some(args.temperature),
            min_p: Some(args.min_p),
            max_tokens: Some(if args.quick { 80 } else { 160 }),
            ..Sampling::default()
        },
        streams: args.streams as usize,
        seed: args.seed,
    })
}

fn write(folder: &Path, name: &str, text: String) -> Result<()> {
    let path = folder.join(name);
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}
