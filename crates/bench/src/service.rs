//! The services as processes of their own.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, bail};
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use tonic::transport::{Channel, Endpoint};

/// How often a service that exports its metrics does so, in milliseconds: every minute would be never.
const METRICS: &str = "1000";

/// A service that listens; it is killed on drop.
pub struct Service {
    process: Child,
    /// Its address, as a URL.
    pub endpoint: String,
    /// Its admin port's address, where the arguments open one.
    pub admin: Option<String>,
    /// Kept open: a service may print more.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Service {
    /// Starts the service `name` of the folder `binaries` on a free port, and waits until it listens.
    ///
    /// # Errors
    /// It cannot be started, or ends before it listens; it has then said why on stderr.
    pub async fn start(binaries: &Path, name: &str, args: &[String]) -> Result<Self> {
        let path = binaries.join(name);
        let mut process = Command::new(&path)
            .args(["--listen", "127.0.0.1:0", "--log", "error"])
            .args(args)
            // What is measured keeps nobody's profiles, but where its arguments say so.
            .env("ATTUNE_REWARD_PROFILES__URL", "")
            .env("OTEL_METRIC_EXPORT_INTERVAL", METRICS)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let mut stdout = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let has_admin = args.iter().any(|arg| arg == "--admin-listen");
        let (mut endpoint, mut admin) = (None, None);
        while let Some(line) = stdout.next_line().await? {
            if let Some(address) = line.strip_prefix("listening on ") {
                endpoint = Some(format!("http://{address}"));
            } else if let Some(address) = line.strip_prefix("admin on ") {
                admin = Some(address.to_owned());
            }
            if let Some(endpoint) = endpoint.take_if(|_| admin.is_some() == has_admin) {
                return Ok(Self { process, endpoint, admin, _stdout: stdout });
            }
        }
        bail!("{name} ended before it listened: {}", process.wait().await?)
    }

    /// A client of a generator.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn client(&self) -> Result<GeneratorServiceClient<Channel>> {
        let endpoint = Endpoint::from_shared(self.endpoint.clone())?.tcp_nodelay(true);
        Ok(GeneratorServiceClient::new(endpoint.connect().await?))
    }

    /// Kills it at once, as a machine that fails does.
    ///
    /// # Errors
    /// The system refused.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}
