//! `attune generate`.

use std::io::{IsTerminal as _, Write as _};

use anstyle::Style;
use anyhow::Result;
use attune_proto::generator::v1::{GenerateRequest, GenerateResponse};
use tonic::Status;

use crate::{
    client::EndpointArgs,
    compare::{self, MarkArg},
    contributions::Contributions,
    failure::Failure,
    json::{Event, reason_name},
    request,
    request_args::{DetailArgs, GuidanceArgs, PromptArgs, SamplingArgs},
    stream::{self, Whole},
};

const EXAMPLES: &str = "\
Examples:
  attune generate \"How do I keep basil alive?\"
  attune generate \"How do I keep basil alive?\" --prefer \"brief\" --strength 2
  attune generate \"How do I keep basil alive?\" --prefer \"brief\" --prefer \"with humour\" --strength 2 --strength 1
  attune generate \"How do I keep basil alive?\" --profile me --strength 2
  attune generate --compare \"How do I keep basil alive?\" --prefer \"brief\" --prefer \"in detail\"
  attune generate \"How do I keep basil alive?\" --prefer \"brief\" --prefer \"formal\" \\
      --strength 1 --strength -1 --token-rewards
  attune generate --prompt-ids 1,2,3 --reference generator --guide-context as-is --candidates 10 \\
      --strength 0.8 --temperature 0 --max-tokens 64 --ignore-eos --json

A text is guided where any option under Guidance but --base-context and --on-reward-loss is given.
Exit status: 0, 1 for an error, 2 for a wrong command line, 130 for ctrl-c.";

/// Flags of `attune generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Show the answer without guidance and with each --prefer by itself, side by side, with the
    /// tokens that guidance changed marked.
    #[arg(long)]
    compare: bool,
    /// One JSON object a line: events as they come ("chunk"), at last "finish" with tokens, text,
    /// finish_reason, usage and timings, or "error".
    #[arg(long)]
    json: bool,
    /// With --compare: how changed tokens are marked; auto: in colour on a terminal that has it (see
    /// NO_COLOR), else in [brackets].
    #[arg(long, value_name = "HOW", default_value = "auto")]
    mark: MarkArg,
    /// With --compare: the width to fill [default: the terminal's, or 100].
    #[arg(long, value_name = "CELLS")]
    width: Option<usize>,
    #[command(flatten)]
    guidance: GuidanceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    details: DetailArgs,
}

/// Generates, streaming to stdout.
pub(crate) async fn run(args: GenerateArgs) -> Result<()> {
    let prompt = args.prompt.prompt(|| std::io::read_to_string(std::io::stdin()))?;
    let terms = args.guidance.terms()?;
    let request = request::build(prompt, terms, &args.guidance, &args.sampling, &args.details);
    if args.compare {
        let options = compare::Options { json: args.json, mark: args.mark, width: args.width };
        return compare::run(&args.endpoint, request, &options).await;
    }
    let done = if args.json {
        as_json(&args.endpoint, request).await
    } else {
        as_text(&args.endpoint, request).await
    };
    if let (true, Err(error)) = (args.json, &done)
        && let Some(status) = error.downcast_ref::<Status>()
    {
        print_line(&Event::error(Failure::of(status), None))?;
    }
    done
}

async fn as_json(endpoint: &EndpointArgs, request: GenerateRequest) -> Result<()> {
    let mut client = endpoint.generator().await?;
    let on_event = |response: &GenerateResponse| {
        // The last message may come without tokens of its own; the finish tells all that it holds.
        if response.text.is_empty() && response.tokens.is_empty() {
            return Ok(());
        }
        print_line(&Event::chunk(response, None))
    };
    let whole = stream::generate(&mut client, endpoint, request, on_event).await?;
    print_line(&Event::finish(&whole, None))
}

async fn as_text(endpoint: &EndpointArgs, request: GenerateRequest) -> Result<()> {
    let guided = !request.guidances.is_empty();
    let explains = guided && request.output.is_some_and(|output| output.token_rewards);
    let mut contributions = Contributions::new(&request.guidances);
    let mut client = endpoint.generator().await?;
    let on_terminal = std::io::stdout().is_terminal();
    let mut begun = false;
    let print = |response: &GenerateResponse| {
        let mut out = std::io::stdout().lock();
        if on_terminal {
            out.write_all(harmless(&response.text).as_bytes())?;
        } else {
            out.write_all(response.text.as_bytes())?;
        }
        out.flush()?;
        begun |= !response.text.is_empty();
        if explains {
            contributions.add(response);
        }
        Ok(())
    };
    let done = stream::generate(&mut client, endpoint, request, print).await;
    // What follows, an error message too, starts on its own line.
    if begun || done.is_ok() {
        writeln!(std::io::stdout())?;
    }
    let whole = done?;
    if explains {
        write!(std::io::stdout(), "\n{}", contributions.table())?;
    }
    if guided && whole.unguided() > 0 {
        anstream::eprintln!("warning: {} tokens were chosen without guidance", whole.unguided());
    }
    if std::io::stderr().is_terminal() {
        let dim = Style::new().dimmed();
        anstream::eprintln!("{dim}{} · seed {}{dim:#}", summary(&whole, guided), whole.finish.seed);
    }
    Ok(())
}

/// What is worth knowing of a text, in one line.
pub(crate) fn summary(whole: &Whole, guided: bool) -> String {
    let mut parts = vec![format!("{} tokens", whole.tokens.len())];
    if guided {
        parts.push(format!("{} changed", whole.changed()));
    }
    parts.push(reason_name(&whole.finish).to_owned());
    if let Some(speed) = whole.tokens_per_second() {
        parts.push(format!("{speed:.0} tokens/s"));
    }
    parts.join(" · ")
}

/// Prints an event as a line of its own.
pub(crate) fn print_line(event: &Event<'_>) -> Result<()> {
    let line = event.line()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// A model's text may hold anything; a terminal gets no control characters from it.
pub(crate) fn harmless(text: &str) -> String {
    let keep = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if keep(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_do_not_reach_a_terminal() {
        assert_eq!(harmless("a\n\tb\u{1b}[2J"), "a\n\tb\u{fffd}[2J");
    }
}
