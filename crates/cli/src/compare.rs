//! `attune generate --compare`: the same prompt, unguided and with each preference by itself.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{IsTerminal as _, Write as _},
};

use anyhow::Result;
use attune_proto::generator::v1::{GenerateRequest, GenerateResponse, GuidanceTerm, Sampling};
use clap::ValueEnum;
use futures::future::join_all;
use indicatif::ProgressBar;
use tonic::Status;

use crate::{
    client::EndpointArgs,
    columns::{Column, Mark, layout},
    failure::Failure,
    generate::{print_line, summary},
    json::Event,
    stream::{self, Segment, Whole},
};

/// `--mark`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MarkArg {
    /// In colour where the terminal has it, else in brackets.
    Auto,
    /// In colour.
    Color,
    /// In [brackets].
    Brackets,
    /// Not at all.
    None,
}

/// How to show a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) mark: MarkArg,
    pub(crate) width: Option<usize>,
}

/// Runs all columns at once and shows them together. A column that failed shows why, and the command
/// then fails.
pub(crate) async fn run(endpoint: &EndpointArgs, request: GenerateRequest, options: &Options) -> Result<()> {
    let client = endpoint.generator().await?;
    let columns = split(request);
    let progress = if options.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let runs = columns.iter().map(|(title, request)| {
        let (mut client, progress) = (client.clone(), &progress);
        async move {
            let on_event = |response: &GenerateResponse| {
                progress.inc(response.tokens.len() as u64);
                progress.set_message(format!("{} tokens", progress.position()));
                if options.json { print_line(&Event::chunk(response, Some(title))) } else { Ok(()) }
            };
            let done = stream::generate(&mut client, endpoint, request.clone(), on_event).await;
            if options.json {
                match &done {
                    Ok(whole) => print_line(&Event::finish(whole, Some(title)))?,
                    Err(error) => {
                        if let Some(status) = error.downcast_ref::<Status>() {
                            print_line(&Event::error(Failure::of(status), Some(title)))?;
                        }
                    }
                }
            }
            done
        }
    });
    let done = join_all(runs).await;
    progress.finish_and_clear();
    if !options.json {
        let shown: Vec<Column> = columns
            .iter()
            .zip(&done)
            .map(|((title, request), done)| column(title, !request.guidances.is_empty(), done))
            .collect();
        let mut out = std::io::stdout().lock();
        out.write_all(layout(&shown, width(options.width), mark(options.mark)).as_bytes())?;
        out.flush()?;
    }
    done.into_iter().find_map(Result::err).map_or(Ok(()), Err)
}

/// The columns of a request: plain, then each guidance by itself, each with its title. All draw the same
/// noise, so that they differ by guidance alone.
fn split(mut request: GenerateRequest) -> Vec<(String, GenerateRequest)> {
    let terms = std::mem::take(&mut request.guidances);
    let sampling = request.sampling.get_or_insert_with(Sampling::default);
    sampling.seed.get_or_insert_with(|| RandomState::new().build_hasher().finish());
    let mut columns = vec![("unguided".to_owned(), request.clone())];
    for term in terms {
        let title = title(&term);
        columns.push((title, GenerateRequest { guidances: vec![term], ..request.clone() }));
    }
    columns
}

fn title(term: &GuidanceTerm) -> String {
    let guidance = term.guidance.as_deref();
    let words = guidance.and_then(|g| g.text.clone().or_else(|| g.profile.clone()));
    let words = words.unwrap_or_else(|| "guided".to_owned());
    match term.strength {
        Some(strength) => format!("{words} ({strength})"),
        None => words,
    }
}

fn column(title: &str, guided: bool, done: &Result<Whole>) -> Column {
    let (segments, footer) = match done {
        Ok(whole) => (whole.segments.clone(), summary(whole, guided)),
        Err(error) => {
            let lines = match error.downcast_ref::<Status>() {
                Some(status) => Failure::of(status).lines(),
                None => vec![format!("{error:#}")],
            };
            (vec![Segment { text: lines.join("\n"), changed: false }], "failed".to_owned())
        }
    };
    Column { title: title.to_owned(), segments, footer }
}

fn width(asked: Option<usize>) -> usize {
    let terminal = || {
        let (width, _) = std::io::stdout().is_terminal().then(terminal_size::terminal_size)??;
        Some(usize::from(width.0))
    };
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    asked.or_else(terminal).or_else(columns).unwrap_or(100).max(1)
}

fn mark(asked: MarkArg) -> Mark {
    match asked {
        MarkArg::Color => Mark::Color,
        MarkArg::Brackets => Mark::Brackets,
        MarkArg::None => Mark::None,
        MarkArg::Auto => match anstream::AutoStream::choice(&std::io::stdout()) {
            anstream::ColorChoice::Never => Mark::Brackets,
            _ => Mark::Color,
        },
    }
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::Guidance;

    use super::*;

    #[test]
    fn each_guidance_is_a_column_beside_the_unguided_one() {
        let term = |text: &str, strength| GuidanceTerm {
            guidance: Some(Box::new(Guidance { text: Some(text.into()), ..Guidance::default() })),
            strength,
            clip: None,
        };
        let request = GenerateRequest {
            guidances: vec![term("brief", Some(2.0)), term("formal", None)],
            ..GenerateRequest::default()
        };
        let columns = split(request);
        let titles: Vec<_> = columns.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(titles, ["unguided", "brief (2)", "formal"]);
        assert_eq!(columns.iter().map(|c| c.1.guidances.len()).collect::<Vec<_>>(), [0, 1, 1]);
        let seeds: Vec<_> = columns.iter().map(|c| c.1.sampling.as_ref().unwrap().seed).collect();
        assert!(seeds[0].is_some() && seeds.iter().all(|s| *s == seeds[0]));
    }

    #[test]
    fn a_failed_column_says_why() {
        let failed = column("brief", true, &Err(Status::unavailable("no worker").into()));
        assert!(failed.segments[0].text.contains("UNAVAILABLE: no worker"));
        assert_eq!(failed.footer, "failed");
    }
}
