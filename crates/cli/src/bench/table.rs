//! `attune bench table`: what `make bench` runs.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use attune_bench::table::{self, Peers, Settings};

/// Flags of `attune bench table`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  attune bench table --models models --out target/bench/table.json\n  \
                  attune bench table --models models --rows floor,coupling-small --quick")]
pub(crate) struct TableArgs {
    /// The folder of small-base, small-rm, medium-base and medium-rm, as `attune models` writes them.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Only rows whose key begins with one of these: floor, official, cached, llama, coupling, elsewhere,
    /// streams, q8, profiles, wire, identity, telemetry, tls; most go on with -small or -medium.
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    rows: Vec<String>,
    /// Fewer rounds and tokens: shows that all of it runs, with rough figures.
    #[arg(long)]
    quick: bool,
    /// Where to write the table as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A Python interpreter with the packages of tests/peers/requirements.txt; without it the rows
    /// against Python are left out [default: tests/peers/.venv/bin/python, where it is there].
    #[arg(long, value_name = "FILE", env = "ATTUNE_PEERS_PYTHON")]
    python: Option<PathBuf>,
    /// The folder of the Python decoders.
    #[arg(long, value_name = "DIR", default_value = "tests/peers")]
    peers: PathBuf,
}

/// Measures, prints and writes the table.
pub(crate) async fn run(args: TableArgs) -> Result<()> {
    let keys: Vec<String> = table::rows().iter().map(ToString::to_string).collect();
    for asked in &args.rows {
        if !keys.iter().any(|key| key.starts_with(asked.as_str())) {
            bail!("--rows {asked} is the beginning of no row; there are {}", keys.join(", "));
        }
    }
    let settings = Settings {
        binaries: std::env::current_exe()?
            .parent()
            .map(Path::to_path_buf)
            .context("no folder of binaries")?,
        models: args.models,
        only: args.rows,
        quick: args.quick,
        peers: peers(args.python, &args.peers)?,
    };
    let spinner = indicatif::ProgressBar::new_spinner();
    spinner.enable_steady_tick(std::time::Duration::from_millis(200));
    let say = |what: &str| {
        spinner.suspend(|| anstream::eprintln!("{what}"));
        spinner.set_message(what.to_owned());
    };
    if settings.peers.is_none() {
        say("no Python interpreter: the rows against Python are left out (tests/peers/README.md)");
    }
    let rows = table::run(&settings, say).await;
    spinner.finish_and_clear();
    let rows = rows?;
    if let Some(path) = &args.out {
        let write = || -> Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            Ok(std::fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")?)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(std::io::stdout().write_all(table::print(&rows).as_bytes())?)
}

fn peers(python: Option<PathBuf>, folder: &Path) -> Result<Option<Peers>> {
    let script = folder.join("bench.py");
    let own = folder.join(".venv/bin/python");
    let python = match python {
        Some(named) if named.exists() => named,
        Some(named) => bail!("the Python interpreter {} is not there", named.display()),
        None if own.exists() => own,
        None => return Ok(None),
    };
    if !script.exists() {
        bail!("{} is not there; name its folder with --peers", script.display());
    }
    Ok(Some(Peers { python, folder: folder.to_path_buf() }))
}
