//! `attune fit`: a profile from feedback in a file of JSON lines.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use attune_proto::{
    profile::v1::{Feedback, FitMethod, FitRequest, Pair, Profile, Thumb, feedback::Kind},
    reward::v1::{ChatMessage, ChatMessages, Prompt, Reference, prompt},
};
use serde::Deserialize;

use crate::{client::EndpointArgs, profile::file::ProfileFile, request_args::ReferenceArg};

mod traits;

const EXAMPLES: &str = "\
Examples:
  attune fit --feedback said.jsonl me                       # makes or changes the profile \"me\"
  attune fit --feedback said.jsonl --keep-feedback me       # and keeps the feedback, to fit it again
  attune fit --feedback said.jsonl --method latent me
  attune generate --profile me \"How do I bake the bread?\"

Each line of the file is one of:
  {\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}   of two answers, which was better
  {\"prompt\": \"...\", \"answer\": \"...\", \"up\": true}          whether an answer was liked

Five lines are the least; twenty or more make a good profile. What is kept is kept with the profile, and deleted
with it.";

/// Flags of `attune fit`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct FitArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// The profile's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// The file of JSON lines.
    #[arg(long, value_name = "FILE")]
    feedback: PathBuf,
    /// Keep the feedback with the profile, so that it can be fitted again. Without it, what was kept is deleted.
    #[arg(long)]
    keep_feedback: bool,
    #[command(flatten)]
    how: HowArgs,
    /// Show which traits of the demo world the profile moves: it asks questions with and without the profile.
    #[arg(long)]
    show_traits: bool,
}

/// How to fit.
#[derive(Debug, clap::Args)]
pub(crate) struct HowArgs {
    /// What is fitted: weights, or a latent where the reward model has an adapter [default of `fit`: weights; of `refit`:
    /// as before].
    #[arg(long, value_name = "NAME", value_parser = method)]
    method: Option<FitMethod>,
    /// What it is fitted against [default of `fit`: generator, which moves most; of `refit`: as before].
    #[arg(long, value_name = "WHICH")]
    reference: Option<ReferenceArg>,
    /// The reward model to fit on, where there are several.
    #[arg(long, value_name = "ID", default_value = "")]
    reward_model: String,
    /// A preference in words that the fit adds to. Default: the profile's own, if any.
    #[arg(long, value_name = "TEXT")]
    prefer: Option<String>,
    /// Print the fitted profile as JSON.
    #[arg(long)]
    json: bool,
}

fn method(name: &str) -> Result<FitMethod, String> {
    match name {
        "weights" => Ok(FitMethod::Weights),
        "latent" => Ok(FitMethod::Latent),
        _ => Err("there are weights, latent".to_owned()),
    }
}

/// A line of a file of feedback.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Pair { prompt: String, chosen: String, rejected: String },
    Thumb { prompt: String, answer: String, up: bool },
}

impl Line {
    fn feedback(self) -> Feedback {
        let asked = |content: String| {
            let messages = vec![ChatMessage { role: "user".to_owned(), content }];
            Some(Prompt { kind: Some(prompt::Kind::Messages(ChatMessages { messages })) })
        };
        match self {
            Self::Pair { prompt, chosen, rejected } => Feedback {
                prompt: asked(prompt),
                kind: Some(Kind::Pair(Pair { chosen, rejected, ..Pair::default() })),
            },
            Self::Thumb { prompt, answer, up } => Feedback {
                prompt: asked(prompt),
                kind: Some(Kind::Thumb(Thumb { answer, up, base_log_prob: None })),
            },
        }
    }
}

/// Reads a file of feedback.
///
/// # Errors
/// The file cannot be read, or a line is no feedback: it is named by its number.
fn read(path: &Path) -> Result<Vec<Feedback>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{}, line {}", path.display(), index + 1);
        let line = line.with_context(at)?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed: serde_json::Value = serde_json::from_str(&line).with_context(at)?;
        let parsed: Line = serde_json::from_value(parsed).map_err(|_| {
            anyhow::anyhow!(
                "{}: this is no feedback; it needs the texts `prompt`, `chosen` and `rejected`, or `prompt`, \
                 `answer` and `up` (true or false), and nothing else",
                at()
            )
        })?;
        all.push(parsed.feedback());
    }
    Ok(all)
}

/// Fits, and says how it went.
pub(crate) async fn run(args: FitArgs) -> Result<()> {
    let feedback = read(&args.feedback)?;
    let request = FitRequest {
        name: args.name.clone(),
        feedback,
        keep_feedback: args.keep_feedback,
        reference: args.how.reference.map_or(Reference::Generator, Into::into).into(),
        ..args.how.request()
    };
    let profile = fit(&args.endpoint, request, args.how.json).await?;
    if args.show_traits {
        traits::show(&args.endpoint, &profile).await?;
    }
    Ok(())
}

/// `attune profile refit`: fits a profile again to the feedback that is kept with it.
pub(crate) async fn refit(endpoint: &EndpointArgs, name: String, how: &HowArgs) -> Result<()> {
    let request = FitRequest { name, keep_feedback: true, ..how.request() };
    fit(endpoint, request, how.json).await?;
    Ok(())
}

impl HowArgs {
    fn request(&self) -> FitRequest {
        FitRequest {
            method: self.method.unwrap_or_default().into(),
            reference: self.reference.map_or(Reference::Unspecified, Into::into).into(),
            reward_model: self.reward_model.clone(),
            text: self.prefer.clone(),
            ..FitRequest::default()
        }
    }
}

async fn fit(endpoint: &EndpointArgs, request: FitRequest, json: bool) -> Result<Profile> {
    let bar = crate::bench::progress(0, "fit")?;
    let fitted = endpoint
        .within(async {
            let mut client = endpoint.profiles().await?;
            let mut stream = client.fit(endpoint.request(request)?).await?.into_inner();
            let mut fitted = None;
            while let Some(step) = stream.message().await? {
                bar.set_length(u64::from(step.total));
                bar.set_position(u64::from(step.done));
                if let Some(accuracy) = step.accuracy {
                    bar.set_message(format!("held out {:.0} %", 100.0 * accuracy));
                }
                fitted = step.profile.or(fitted);
            }
            Ok(fitted)
        })
        .await?;
    bar.finish_and_clear();
    let Some(profile) = fitted else { bail!("the fit ended without a profile; try again") };
    let out = if json {
        serde_json::to_string(&ProfileFile::of(&profile, &[])?)? + "\n"
    } else {
        as_text(&profile)
    };
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(profile)
}

fn as_text(profile: &Profile) -> String {
    let Some(fit) = &profile.fit else { return format!("{}: revision {}\n", profile.name, profile.revision) };
    let percent = |share: f32| 100.0 * share;
    format!(
        "{}: revision {}, fitted to {} pieces of feedback in {:.2} s\n\
         held-out accuracy  {:.0} % before, {:.0} % after ({} held out)\n\
         loss               {:.3} before, {:.3} after\n\
         feedback kept      {}\n",
        profile.name,
        profile.revision,
        fit.feedback,
        fit.seconds,
        percent(fit.accuracy_before),
        percent(fit.accuracy_after),
        fit.held_out,
        fit.loss_before,
        fit.loss_after,
        profile.kept_feedback,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn pairs_and_thumbs_are_read() {
        let lines = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n\n{\"prompt\": \"p\", \"answer\": \"a\", \"up\": false}\n";
        let all = read(file(lines).path()).unwrap();
        assert!(matches!(&all[0].kind, Some(Kind::Pair(p)) if p.chosen == "a" && p.rejected == "b"));
        assert!(matches!(&all[1].kind, Some(Kind::Thumb(t)) if t.answer == "a" && !t.up));
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let good = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
        for bad in [
            "{\"prompt\": \"p\", \"chosen\": \"a\"}",
            "{\"prompt\": \"p\", \"answer\": \"a\", \"up\": \"yes\"}",
            "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"up\": true}",
            "not json",
        ] {
            let error = format!("{:#}", read(file(&format!("{good}{good}{bad}\n")).path()).unwrap_err());
            assert!(error.contains("line 3"), "{error}");
        }
        assert!(format!("{:#}", read(Path::new("nowhere.jsonl")).unwrap_err()).contains("nowhere.jsonl"));
    }
}
