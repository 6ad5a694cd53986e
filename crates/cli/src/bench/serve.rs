//! `attune bench serve`.

use std::{io::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use attune_bench::{
    load::{Arrivals, Load, drive},
    plot, prompts,
    report::Report,
};
use attune_proto::{
    generator::v1::{DescribeRequest, GenerateRequest, GuidanceTerm},
    reward::v1::{Context, Guidance, Prompt},
};
use clap::ValueEnum;

use super::progress;
use crate::{
    client::EndpointArgs,
    request,
    request_args::{DetailArgs, GuidanceArgs, SamplingArgs},
};

const EXAMPLES: &str = "\
Examples:
  attune bench serve --streams 16 --texts 64 --max-tokens 64 --prefer \"brief\"
  attune bench serve --streams 8 --arrivals poisson --rate 2 --prompts prompts.json --plot out.svg
  attune bench serve --plain --prompt-tokens 128 --max-tokens 64 --spread 0.5 --ignore-eos --json

Without --plain every text is guided; without any option under Guidance, by the reward model as it is.
A prompts file is a JSON list of strings, or of objects with a \"prompt\".";

/// Flags of `attune bench serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Streams at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    streams: usize,
    /// Texts to measure [default: four for each stream].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    texts: Option<usize>,
    /// Texts before them that are not measured [default: one for each stream].
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,
    /// When texts are asked for.
    #[arg(long, value_name = "HOW", default_value = "closed")]
    arrivals: ArrivalsArg,
    /// Texts a second, for --arrivals fixed and poisson.
    #[arg(long, value_name = "RATE", value_parser = rate, required_if_eq_any = [("arrivals", "fixed"), ("arrivals", "poisson")])]
    rate: Option<f64>,
    /// Prompts to ask, in turn [default: a small set of our own].
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    prompts: Option<PathBuf>,
    /// Prompts of exactly this many random token ids instead.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    prompt_tokens: Option<usize>,
    /// Texts differ in length: each one's limit is drawn evenly from --max-tokens less this share of it to as
    /// much more, so that texts come and go one by one.
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "max_tokens")]
    spread: Option<f64>,
    /// No guidance.
    #[arg(long)]
    plain: bool,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
    /// Write the distributions of both times as a picture.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    guidance: GuidanceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArrivalsArg {
    /// The next text of a stream as soon as its last has ended.
    Closed,
    /// Evenly, --rate a second, while a stream is free.
    Fixed,
    /// At random, --rate a second at the mean, while a stream is free.
    Poisson,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(e) => Err(format!("{e}")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

/// Drives the pair and reports.
pub(crate) async fn run(args: ServeArgs) -> Result<()> {
    let mut client = args.endpoint.generator().await?;
    let description = client.describe(DescribeRequest {}).await?.into_inner();
    let texts = args.texts.unwrap_or(4 * args.streams);
    let load = Load {
        streams: args.streams,
        texts,
        warmup: args.warmup.unwrap_or(args.streams),
        arrivals: match (args.arrivals, args.rate) {
            (ArrivalsArg::Closed, _) => Arrivals::Closed,
            (ArrivalsArg::Fixed, Some(rate)) => Arrivals::Fixed { rate },
            (ArrivalsArg::Poisson, Some(rate)) => Arrivals::Poisson { rate },
            (_, None) => bail!("--arrivals fixed and poisson need --rate"),
        },
        seed: args.sampling.seed.unwrap_or_default(),
    };
    let requests = requests(&args, &load, description.vocab_size as usize)?;
    let bar = progress(load.warmup + texts, "texts")?;
    let seen = bar.clone();
    let work = async { drive(&client, &requests, &load, move || seen.inc(1)).await };
    let measured = args.endpoint.within(work).await?;
    bar.finish_and_clear();
    let report = Report::new(&measured);
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&measured)?)
            .with_context(|| format!("cannot write the plot {}", path.display()))?;
    }
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.table() };
    std::io::stdout().write_all(text.as_bytes())?;
    if report.texts == 0 {
        bail!("no text ended well; the failures by code: {:?}", report.failures);
    }
    Ok(())
}

fn requests(args: &ServeArgs, load: &Load, vocab: usize) -> Result<Vec<GenerateRequest>> {
    let prompts: Vec<Prompt> = match (&args.prompts, args.prompt_tokens) {
        (Some(path), _) => prompts::file(path)?,
        (None, Some(length)) => {
            if vocab < 7 {
                bail!("a vocabulary of {vocab} ids is too small for random prompts");
            }
            let ids = prompts::random_ids(load.texts + load.warmup, length, vocab, load.seed);
            ids.into_iter().map(prompts::ids).collect()
        }
        (None, None) => prompts::own()?,
    };
    let mut terms = args.guidance.terms()?;
    if args.plain && !terms.is_empty() {
        bail!("--plain and options under Guidance exclude each other");
    }
    if !args.plain && terms.is_empty() {
        // Token ids hold no place for a preference: the reward model reads them as they are.
        let context = if args.prompt_tokens.is_some() { Context::AsIs } else { Context::Unspecified };
        let guidance = Guidance { context: context.into(), ..Guidance::default() };
        terms.push(GuidanceTerm { guidance: Some(guidance.into()), ..GuidanceTerm::default() });
    }
    let build = |prompt| {
        request::build(prompt, terms.clone(), &args.guidance, &args.sampling, &DetailArgs::default())
    };
    let mut requests: Vec<GenerateRequest> = prompts.into_iter().map(build).collect();
    if let (Some(spread), Some(mean)) = (args.spread, args.sampling.max_tokens) {
        // A file's prompts are asked in turn: as many texts as are asked for, so that each draws its own limit.
        requests = requests.iter().cycle().take(load.warmup + load.texts).cloned().collect();
        let limits = prompts::limits(requests.len(), mean, spread, load.seed);
        for (request, limit) in requests.iter_mut().zip(limits) {
            request.sampling.get_or_insert_default().max_tokens = Some(limit);
        }
    }
    Ok(requests)
}
