//! The services as processes of their own.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, bail};
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use tonic::transport::{Channel, Endpoint};

use super::{Settings, Size};

/// A service that listens; it is killed on drop.
pub(super) struct Service {
    process: Child,
    /// Its address, as a URL.
    pub(super) endpoint: String,
    /// Kept open: a service may print more.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Service {
    /// Starts a service on a free port, and waits until it listens.
    pub(super) async fn start(settings: &Settings, name: &str, args: &[String]) -> Result<Self> {
        let path = settings.binaries.join(name);
        let mut process = Command::new(&path)
            .args(["--listen", "127.0.0.1:0", "--log", "error"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let mut stdout = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        while let Some(line) = stdout.next_line().await? {
            if let Some(address) = line.strip_prefix("listening on ") {
                return Ok(Self { process, endpoint: format!("http://{address}"), _stdout: stdout });
            }
        }
        bail!("{name} ended before it listened: {}", process.wait().await?)
    }

    /// A worker on the PersRM of this size.
    pub(super) async fn worker(
        settings: &Settings,
        size: Size,
        threads: usize,
        more: &[&str],
    ) -> Result<Self> {
        Self::start(settings, "attune-reward", &args(&settings.persrm(size), threads, more)).await
    }

    /// A generator on the base model of this size, with these workers.
    pub(super) async fn generator(
        settings: &Settings,
        size: Size,
        threads: usize,
        workers: &[&str],
        more: &[&str],
    ) -> Result<Self> {
        let mut args = args(&settings.base(size), threads, more);
        args.extend(workers.iter().flat_map(|url| ["--reward".to_owned(), (*url).to_owned()]));
        Self::start(settings, "attune-generator", &args).await
    }

    /// A client of a generator.
    pub(super) async fn client(&self) -> Result<GeneratorServiceClient<Channel>> {
        let endpoint = Endpoint::from_shared(self.endpoint.clone())?.tcp_nodelay(true);
        Ok(GeneratorServiceClient::new(endpoint.connect().await?))
    }

    /// Kills it at once, as a machine that fails does.
    pub(super) async fn kill(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}

fn args(model: &Path, threads: usize, more: &[&str]) -> Vec<String> {
    let model = model.to_string_lossy().into_owned();
    let mut args = vec!["--model".to_owned(), model, "--threads".to_owned(), threads.to_string()];
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// A generator with its worker, each on half of the cores.
pub(super) struct Pair {
    pub(super) client: GeneratorServiceClient<Channel>,
    _generator: Service,
    _worker: Service,
}

impl Pair {
    pub(super) async fn start(settings: &Settings, size: Size, more: &[&str]) -> Result<Self> {
        let threads = super::half();
        let worker = Service::worker(settings, size, threads, more).await?;
        let generator = Service::generator(settings, size, threads, &[&worker.endpoint], more).await?;
        Ok(Self { client: generator.client().await?, _generator: generator, _worker: worker })
    }
}
