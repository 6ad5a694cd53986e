//! A PostgreSQL server of a test's own: a new cluster in a folder, reached by a socket there, gone when dropped.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use attune_profiles::Place;

use crate::process::left_out;

/// PostgreSQL does not run as root: then it runs as this user, whom Debian's package makes.
const USER: &str = "postgres";

/// A running server.
pub struct Postgres {
    server: Option<Child>,
    programs: PathBuf,
    folder: tempfile::TempDir,
}

impl Postgres {
    /// Starts a server. `None`: PostgreSQL is not installed, and may be left out.
    ///
    /// # Errors
    /// It does not start.
    ///
    /// # Panics
    /// It is missing, and nothing may be left out.
    pub fn start() -> Result<Option<Self>> {
        let Some(programs) = programs() else {
            left_out("profiles in PostgreSQL: it is not installed");
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        if is_root()? {
            run(Command::new("chown").arg(USER).arg(folder.path()))?;
        }
        let mut new = Self { server: None, programs, folder };
        let mut initdb = new.program("initdb")?;
        initdb.args(["--auth=trust", "--username=attune", "--encoding=UTF8", "--no-sync", "--pgdata"]);
        run(initdb.arg(new.data()).stdout(Stdio::null()))?;
        new.restart()?;
        Ok(Some(new))
    }

    /// Where profiles are kept in it.
    ///
    /// # Errors
    /// The folder's path is no part of an address.
    pub fn place(&self) -> Result<Place> {
        Ok(self.url().parse()?)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("postgres://attune@localhost/postgres?host={}", self.folder.path().display())
    }

    /// Ends it at once, as a machine that fails does.
    ///
    /// # Errors
    /// It cannot be told, or not be waited for.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        // Its own word for it: it ends its children without a checkpoint.
        run(Command::new("kill").args(["-QUIT", &server.id().to_string()]))?;
        server.wait()?;
        Ok(())
    }

    /// Starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let socket = self.folder.path().display().to_string();
        let mut server = self.program("postgres")?;
        server.arg("-D").arg(self.data()).args(["-k", &socket]);
        server.args(["-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "max_connections=60"]);
        let mut server = server.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(server.stderr.take().context("no stderr")?).lines();
        self.server = Some(server);
        let mut before = Vec::new();
        for line in said.by_ref() {
            let line = line?;
            if line.contains("ready to accept connections") {
                // What it says later must not fill the pipe.
                thread::spawn(move || said.for_each(drop));
                return Ok(());
            }
            before.push(line);
        }
        bail!("PostgreSQL did not start:\n{}", before.join("\n"))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn program(&self, name: &str) -> Result<Command> {
        let path = self.programs.join(name);
        let mut command = if is_root()? {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        Ok(command)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It fails only for a server that has ended.
        let _ = self.kill();
    }
}

/// The folder of the programs: on the path, or where Debian's package has them.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path);
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin"));
    let has = |folder: &Path| ["initdb", "postgres"].iter().all(|name| folder.join(name).exists());
    on_path.chain(debian).find(|folder| has(folder))
}

fn is_root() -> Result<bool> {
    let said = Command::new("id").arg("-u").output()?;
    Ok(said.stdout.trim_ascii() == b"0")
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?}: {status}") }
}
