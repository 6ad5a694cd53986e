//! `attune profile`: people's profiles by name.

pub(crate) mod file;
mod show;

use std::{
    fs,
    io::{IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use attune_proto::{
    profile::v1::{DeleteRequest, GetRequest, ListRequest, Profile, PutRequest},
    reward::v1::Reference,
};
use clap::Subcommand;

use crate::{
    client::EndpointArgs,
    fit::{HowArgs, refit},
    request::read_weights,
    request_args::ReferenceArg,
};

const EXAMPLES: &str = "\
Examples:
  attune profile put me --text \"brief, please\"
  attune profile put me --text \"brief, please\" --weights w.json --revision 3   # only where revision 3 stands
  attune profile list
  attune profile get me --json
  attune profile export me --feedback --out me.json
  attune profile import me.json --name me-again
  attune profile refit me
  attune profile delete me
  attune generate \"How do I keep basil alive?\" --profile me

A profile belongs to who calls (--token-file); another owner's does not exist. A worker of a new reward model takes
in an exported profile, and uses its vector when it has been fitted again.";

/// Flags of `attune profile`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, Subcommand)]
enum ProfileCommand {
    /// Create a profile, or replace it.
    Put(PutArgs),
    /// Show a profile.
    Get(OneArgs),
    /// List all of the caller's profiles.
    List(ListArgs),
    /// Delete a profile and the feedback that is kept with it.
    Delete(DeleteArgs),
    /// Write a profile to a JSON file, to keep it or to carry it to another store.
    Export(ExportArgs),
    /// Fit a profile again to the feedback that is kept with it: for a new reward model, or another method.
    Refit(RefitArgs),
    /// Take in a profile that was exported, with the model that it was made for and the feedback in the file.
    Import(ImportArgs),
}

/// What a change may be based on.
#[derive(Debug, Clone, Default, clap::Args)]
struct BasedOnArgs {
    /// Change nothing unless the profile is at this revision.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "new")]
    revision: Option<u64>,
    /// Change nothing where the profile exists.
    #[arg(long)]
    new: bool,
}

impl BasedOnArgs {
    fn expected(&self) -> Option<u64> {
        if self.new { Some(0) } else { self.revision }
    }
}

/// Flags of `attune profile put`.
#[derive(Debug, clap::Args)]
struct PutArgs {
    /// What it is called, 1 to 128 characters.
    name: String,
    /// The preference in words.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// The weight vector: numbers, or a JSON file with them.
    #[arg(long, value_name = "FILE.json|1,2,..", allow_hyphen_values = true)]
    weights: Option<String>,
    /// What the weights were fitted against [default: the reward model's own choice].
    #[arg(long, value_name = "WHICH")]
    reference: Option<ReferenceArg>,
    /// The reward model that the weights are for [default: the only one].
    #[arg(long, value_name = "ID")]
    reward_model: Option<String>,
    #[command(flatten)]
    based_on: BasedOnArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// How to reach the server, and how to show what it says.
#[derive(Debug, clap::Args)]
struct OutputArgs {
    /// As JSON: one object, for `list` one a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Flags of `attune profile get`.
#[derive(Debug, clap::Args)]
struct OneArgs {
    /// What it is called.
    name: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `attune profile list`.
#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `attune profile delete`.
#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// What it is called.
    name: String,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Flags of `attune profile export`.
#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// What it is called.
    name: String,
    /// The file to write, which its user alone may read [default: stdout].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// With the feedback that is kept with it.
    #[arg(long)]
    feedback: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Flags of `attune profile import`.
#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// A file that `attune profile export` wrote; `-` is stdin.
    file: PathBuf,
    /// What it shall be called [default: as in the file].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    based_on: BasedOnArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `attune profile refit`.
#[derive(Debug, clap::Args)]
struct RefitArgs {
    /// What it is called.
    name: String,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Runs one of the commands.
pub(crate) async fn run(args: ProfileArgs) -> Result<()> {
    match args.command {
        ProfileCommand::Put(args) => put(args).await,
        ProfileCommand::Get(args) => {
            let asked = GetRequest { name: args.name, with_feedback: false };
            let endpoint = &args.output.endpoint;
            let answer = endpoint
                .within(async {
                    Ok(endpoint.profiles().await?.get(endpoint.request(asked)?).await?.into_inner())
                })
                .await?;
            print(&answer.profile.unwrap_or_default(), args.output.json)
        }
        ProfileCommand::List(args) => list(&args.output).await,
        ProfileCommand::Delete(DeleteArgs { name, endpoint }) => {
            endpoint
                .within(async {
                    let asked = endpoint.request(DeleteRequest { name })?;
                    endpoint.profiles().await?.delete(asked).await?;
                    Ok(())
                })
                .await
        }
        ProfileCommand::Export(args) => export(args).await,
        ProfileCommand::Import(args) => import(args).await,
        ProfileCommand::Refit(RefitArgs { name, how, endpoint }) => refit(&endpoint, name, &how).await,
    }
}

async fn put(args: PutArgs) -> Result<()> {
    if args.text.is_none() && args.weights.is_none() {
        bail!("a profile holds something: give --text, --weights, or both");
    }
    let weights = args.weights.as_deref().map(read_weights).transpose()?;
    let profile = Profile {
        name: args.name,
        text: args.text,
        weights,
        reference: args.reference.map_or(Reference::Unspecified, Into::into).into(),
        model_id: args.reward_model.unwrap_or_default(),
        ..Profile::default()
    };
    let put = PutRequest {
        profile: Some(profile),
        expected_revision: args.based_on.expected(),
        ..PutRequest::default()
    };
    send(put, &args.output).await
}

async fn send(put: PutRequest, output: &OutputArgs) -> Result<()> {
    let endpoint = &output.endpoint;
    let answer = endpoint
        .within(async { Ok(endpoint.profiles().await?.put(endpoint.request(put)?).await?.into_inner()) })
        .await?;
    print(&answer.profile.unwrap_or_default(), output.json)
}

async fn list(output: &OutputArgs) -> Result<()> {
    let endpoint = &output.endpoint;
    let profiles = endpoint
        .within(async {
            let mut client = endpoint.profiles().await?;
            let (mut all, mut page_token) = (Vec::new(), String::new());
            loop {
                let asked = endpoint.request(ListRequest { page_size: 0, page_token })?;
                let page = client.list(asked).await?.into_inner();
                all.extend(page.profiles);
                if page.next_page_token.is_empty() {
                    return Ok(all);
                }
                page_token = page.next_page_token;
            }
        })
        .await?;
    let mut out = std::io::stdout().lock();
    if output.json {
        for profile in &profiles {
            writeln!(out, "{}", serde_json::to_string(&file::ProfileFile::of(profile, &[])?)?)?;
        }
    } else {
        out.write_all(plain(&show::list(&profiles)).as_bytes())?;
    }
    Ok(())
}

async fn export(args: ExportArgs) -> Result<()> {
    let ExportArgs { name, out, feedback, endpoint } = args;
    let asked = GetRequest { name, with_feedback: feedback };
    let answer = endpoint
        .within(async { Ok(endpoint.profiles().await?.get(endpoint.request(asked)?).await?.into_inner()) })
        .await?;
    let file = file::ProfileFile::of(&answer.profile.unwrap_or_default(), &answer.feedback)?;
    let text = serde_json::to_string_pretty(&file)? + "\n";
    match out {
        Some(path) => write_private(&path, &text).with_context(|| format!("--out {}", path.display())),
        None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
    }
}

/// Whole, or not there: what is exported is often about to be deleted.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

async fn import(args: ImportArgs) -> Result<()> {
    let shown = args.file.display().to_string();
    let mut text = String::new();
    if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("cannot read the profile from stdin")?;
    } else {
        text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {shown}"))?;
    }
    let file: file::ProfileFile =
        serde_json::from_str(&text).with_context(|| format!("{shown} is no exported profile"))?;
    let (mut profile, feedback) =
        file.profile().with_context(|| format!("{shown} is no exported profile"))?;
    if let Some(name) = args.name {
        profile.name = name;
    }
    let expected_revision = args.based_on.expected();
    let put = PutRequest { profile: Some(profile), expected_revision, imported: true, feedback };
    send(put, &args.output).await
}

fn print(profile: &Profile, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&file::ProfileFile::of(profile, &[])?)?)?;
    } else {
        out.write_all(plain(&show::one(profile)).as_bytes())?;
    }
    Ok(())
}

/// A terminal gets no control characters from what somebody put.
fn plain(text: &str) -> String {
    if std::io::stdout().is_terminal() { crate::generate::harmless(text) } else { text.to_owned() }
}
