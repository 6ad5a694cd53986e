//! A service or the command as a process of its own, ended when dropped.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// A service that listens.
pub struct Process {
    child: Child,
    /// Its address, as a URL.
    pub endpoint: String,
}

impl Process {
    /// Starts a service of this workspace on a free port, and waits until it listens.
    ///
    /// # Errors
    /// It does not start, or ends before it listens.
    pub fn start<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::start_at(name, "127.0.0.1:0", args)
    }

    /// `start`, in an environment with these variables too.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_in<S: AsRef<OsStr>>(
        name: &str,
        args: impl IntoIterator<Item = S>,
        variables: &[(&str, &OsStr)],
    ) -> Result<Self> {
        let mut command = Command::new(binary(name)?);
        command.args(["--listen", "127.0.0.1:0"]).args(args).envs(variables.iter().copied());
        Self::listening(command, Stdio::inherit())
    }

    /// `start`, on an address of its own choice.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_at<S: AsRef<OsStr>>(
        name: &str,
        listen: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        Self::start_logging(name, listen, args, Stdio::inherit())
    }

    /// `start_at`, with a place for what it logs.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_logging<S: AsRef<OsStr>>(
        name: &str,
        listen: &str,
        args: impl IntoIterator<Item = S>,
        log: impl Into<Stdio>,
    ) -> Result<Self> {
        let program = binary(name)?;
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        Self::of(program, [OsString::from("--listen"), listen.into()].into_iter().chain(args), log)
    }

    /// Starts whatever becomes a service with these arguments.
    ///
    /// # Errors
    /// As `start`.
    pub fn of<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
        log: impl Into<Stdio>,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        Self::listening(command, log)
    }

    fn listening(mut command: Command, log: impl Into<Stdio>) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let mut child = command
            // Nobody's home is used; a test that keeps profiles says where.
            .env("ATTUNE_REWARD_PROFILES__URL", "")
            .stdout(Stdio::piped())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("no stdout")?;
        for line in BufReader::new(stdout).lines() {
            if let Some(address) = line?.strip_prefix("listening on ") {
                return Ok(Self { child, endpoint: format!("http://{address}") });
            }
        }
        bail!("{name} ended before it listened: {}", child.wait()?)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let sent = Command::new("kill").args([signal.flag(), &self.child.id().to_string()]).status()?;
        if !sent.success() {
            bail!("the signal was not sent: {sent}");
        }
        Ok(())
    }

    /// Waits for its end. Gives its exit code.
    ///
    /// # Errors
    /// The system refuses.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Asks it to end, and waits. Gives its exit code.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn terminate(mut self) -> Result<Option<i32>> {
        self.signal(Signal::Terminate)?;
        Ok(self.child.wait()?.code())
    }
}

/// What a process can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End in good order.
    Terminate,
    /// Stand still.
    Stop,
    /// Go on.
    Continue,
}

impl Signal {
    fn flag(self) -> &'static str {
        match self {
            Self::Terminate => "-TERM",
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It fails only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The root of the workspace.
pub fn workspace_root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A binary of this workspace, built beside this test.
///
/// # Errors
/// It has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the test lies in no target folder")?;
    let path = folder.join(name);
    if !path.exists() {
        bail!("{} is missing; build it first: cargo build --workspace --bins", path.display());
    }
    Ok(path)
}

/// Says what this machine cannot check. With `ATTUNE_REQUIRE_ALL=1` that is a failure.
///
/// # Panics
/// Where nothing may be left out.
pub fn left_out(why: &str) {
    assert!(std::env::var_os("ATTUNE_REQUIRE_ALL").is_none_or(|v| v != "1"), "left out: {why}");
    println!("left out: {why}");
}
