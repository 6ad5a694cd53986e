//! A generator and its workers in this process, over real sockets on free ports.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use attune_engine::random_checkpoint::{self, Kind, Shape};
use attune_generator::{Generator, GeneratorConfig};
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use attune_reward::{RewardConfig, Worker};
use attune_service::{engine::EngineConfig, sections::ServerConfig, server::Drain};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A running pair; both sides end when it is dropped.
pub struct Pair {
    /// The generator's address, as a URL.
    pub endpoint: String,
    /// The workers' addresses, as URLs.
    pub workers: Vec<String>,
    /// The admin ports of the generator and of the worker, where their settings open one.
    pub admin: (Option<SocketAddr>, Option<SocketAddr>),
    base: PathBuf,
    stop: CancellationToken,
    services: JoinSet<Result<Drain>>,
    _folder: Option<tempfile::TempDir>,
}

impl Pair {
    /// Starts one worker and a generator on two model folders.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start(base: &Path, persrm: &Path) -> Result<Self> {
        Self::start_with(base, persrm, |_| (), |_| ()).await
    }

    /// Starts a pair on random checkpoints of one shape, the PersRM with a value head.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn random(shape: &Shape, seeds: (u64, u64)) -> Result<Self> {
        Self::random_with(shape, seeds, |_| (), |_| ()).await
    }

    /// `random`, with changed settings.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn random_with(
        shape: &Shape,
        seeds: (u64, u64),
        generator: impl FnOnce(&mut GeneratorConfig),
        reward: impl FnOnce(&mut RewardConfig),
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (base, persrm) = random_folders(folder.path(), shape, seeds)?;
        let mut pair = Self::start_with(&base, &persrm, generator, reward).await?;
        pair._folder = Some(folder);
        Ok(pair)
    }

    /// `start`, with changed settings.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start_with(
        base: &Path,
        persrm: &Path,
        generator: impl FnOnce(&mut GeneratorConfig),
        reward: impl FnOnce(&mut RewardConfig),
    ) -> Result<Self> {
        let stop = CancellationToken::new();
        let mut services = JoinSet::new();
        let mut config = RewardConfig { engine: engine(persrm), server: server(), ..RewardConfig::default() };
        reward(&mut config);
        let worker = Worker::start(config).await.context("the worker does not start")?;
        let workers = vec![format!("http://{}", worker.address())];
        let admin = (None, worker.admin_address());
        services.spawn(worker.serve(stop.clone()));
        let mut pair = Self {
            endpoint: String::new(),
            workers,
            admin,
            base: base.into(),
            stop,
            services,
            _folder: None,
        };
        (pair.endpoint, pair.admin.0) = pair.generator(generator).await?;
        Ok(pair)
    }

    /// Starts another generator with the same base model and the same workers, and gives its address.
    ///
    /// # Errors
    /// It does not start.
    pub async fn another_generator(&mut self, edit: impl FnOnce(&mut GeneratorConfig)) -> Result<String> {
        Ok(self.generator(edit).await?.0)
    }

    /// Its address, and its admin port's.
    async fn generator(
        &mut self,
        edit: impl FnOnce(&mut GeneratorConfig),
    ) -> Result<(String, Option<SocketAddr>)> {
        let mut config = GeneratorConfig {
            engine: engine(&self.base),
            reward: self.workers.clone(),
            server: server(),
            ..GeneratorConfig::default()
        };
        edit(&mut config);
        let generator = Generator::start(config).await.context("the generator does not start")?;
        let addresses = (format!("http://{}", generator.address()), generator.admin_address());
        self.services.spawn(generator.serve(self.stop.clone()));
        Ok(addresses)
    }

    /// A client of the generator.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn client(&self) -> Result<GeneratorServiceClient<Channel>> {
        Ok(GeneratorServiceClient::connect(self.endpoint.clone()).await?)
    }

    /// Stops both sides and waits for their end.
    ///
    /// # Errors
    /// One of them failed.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.services.join_next().await {
            ended??;
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Writes the two folders of a random pair.
fn random_folders(folder: &Path, shape: &Shape, seeds: (u64, u64)) -> Result<(PathBuf, PathBuf)> {
    let (base, persrm) = (folder.join("base"), folder.join("persrm"));
    random_checkpoint::write(&base, shape, seeds.0, Kind::Base)?;
    random_checkpoint::write(&persrm, shape, seeds.1, Kind::PersRm { value_head: true })?;
    Ok((base, persrm))
}

fn server() -> ServerConfig {
    ServerConfig { drain_seconds: 5.0, ..ServerConfig::on_port(0) }
}

fn engine(model: &Path) -> EngineConfig {
    let model = model.to_string_lossy().into_owned();
    EngineConfig { model, threads: 1, cache_mib: Some(64), ..EngineConfig::default() }
}
