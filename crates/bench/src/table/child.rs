//! Child processes that decode on demand: one JSON object a line each way.

use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{ChildStdin, ChildStdout, Command},
};

/// A child process; it is killed on drop.
pub(super) struct Child {
    _process: tokio::process::Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts it, and waits for the line that says that it is ready.
    pub(super) async fn start(mut command: Command) -> Result<Self> {
        let about = format!("{:?}", command.as_std());
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {about}"))?;
        let asks = process.stdin.take().context("no stdin")?;
        let answers = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let mut child = Self { _process: process, asks, answers };
        child.line().await.with_context(|| format!("{about} did not start"))?;
        Ok(child)
    }

    /// Asks for one unit of work, and waits until it is done.
    pub(super) async fn ask<A: DeserializeOwned>(&mut self, ask: &impl Serialize) -> Result<A> {
        let line = serde_json::to_string(ask)? + "\n";
        self.asks.write_all(line.as_bytes()).await?;
        Ok(serde_json::from_str(&self.line().await?)?)
    }

    async fn line(&mut self) -> Result<String> {
        self.answers.next_line().await?.context("the process ended; what it said stands above")
    }
}
