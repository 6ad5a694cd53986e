//! `attune token`.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use attune_service::{auth::new_token, secret::Secret};
use clap::Subcommand;

/// Flags of `attune token`.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Print a new token on the first line, and on the second what belongs into the file `auth.tokens`.
    #[command(after_help = "Examples:
  attune token new alice                                     # both lines
  attune token new alice --out alice.token >> tokens         # the token to a file of its own")]
    New(NewArgs),
}

/// Flags of `attune token new`.
#[derive(Debug, clap::Args)]
struct NewArgs {
    /// Whose texts and profiles the token opens.
    owner: String,
    /// Write the token to this new file, which its user alone may read, and print the line alone.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Makes a token. Nobody can make it out of the line.
pub(crate) fn run(args: &TokenArgs) -> Result<()> {
    let TokenCommand::New(NewArgs { owner, out }) = &args.command;
    let new = new_token(owner).map_err(|problem| anyhow!("{problem}"))?;
    let mut stdout = std::io::stdout().lock();
    match out {
        Some(file) => write(file, &new.token).with_context(|| format!("--out {}", file.display()))?,
        None => writeln!(stdout, "{}", new.token.expose())?,
    }
    writeln!(stdout, "{}", new.line)?;
    Ok(())
}

fn write(file: &Path, token: &Secret) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    writeln!(options.open(file)?, "{}", token.expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_a_file_is_its_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alice.token");
        let args = |owner: &str| TokenArgs {
            command: TokenCommand::New(NewArgs { owner: owner.into(), out: Some(file.clone()) }),
        };
        assert!(run(&args("")).is_err() && !file.exists());
        run(&args("alice")).unwrap();
        let token = std::fs::read_to_string(&file).unwrap();
        assert!(token.starts_with("attune_") && token.trim().len() == 7 + 64, "{}", token.len());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(run(&args("alice")).is_err(), "a token that is in use is not overwritten");
    }
}
