//! The services on the checkpoints of the table.

use std::path::Path;

use anyhow::Result;
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use tonic::transport::Channel;

use super::{Settings, Size};
pub(super) use crate::service::Service;

impl Service {
    /// A worker on the PersRM of this size.
    pub(super) async fn worker(
        settings: &Settings,
        size: Size,
        threads: usize,
        more: &[&str],
    ) -> Result<Self> {
        Self::start(&settings.binaries, "attune-reward", &args(&settings.persrm(size), threads, more)).await
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
        Self::start(&settings.binaries, "attune-generator", &args).await
    }
}

fn args(model: &Path, threads: usize, more: &[&str]) -> Vec<String> {
    let model = model.to_string_lossy().into_owned();
    let mut args = vec!["--model".to_owned(), model, "--threads".to_owned(), threads.to_string()];
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// A generator with its worker.
pub(super) struct Pair {
    pub(super) client: GeneratorServiceClient<Channel>,
    generator: Service,
    worker: Service,
}

impl Pair {
    /// Both on the same machine, with so many threads each.
    pub(super) async fn start(
        settings: &Settings,
        size: Size,
        threads: usize,
        more: &[&str],
    ) -> Result<Self> {
        let worker = Service::worker(settings, size, threads, more).await?;
        let generator = Service::generator(settings, size, threads, &[&worker.endpoint], more).await?;
        Ok(Self { client: generator.client().await?, generator, worker })
    }

    /// Both admin ports, where there are any.
    pub(super) fn admin(&self) -> [Option<&str>; 2] {
        [self.generator.admin.as_deref(), self.worker.admin.as_deref()]
    }
}
