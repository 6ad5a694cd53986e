//! A generator from start to end: model, engine, workers, server, drain.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use attune_engine::{
    BaseModel, LoadOptions, PreferenceTemplate, SharedPrefix, hub,
    kv::{BLOCK_SIZE, KvCache, Sharing, blocks_for},
};
use attune_kernels::Threads;
use attune_proto::{
    generator::v1::generator_service_server::GeneratorServiceServer,
    profile::v1::profile_service_server::ProfileServiceServer,
};
use attune_service::{
    listener,
    metrics::Metrics,
    profiles::Profiles,
    server::{Drain, Server},
    service::{EngineThread, Service},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::{
    api::Api,
    config::GeneratorConfig,
    engine::{Command, Ends, Engine, Patience},
    metrics::Instruments,
    scheduler::{self, Scheduler},
    validate::Limits,
    worker::{Fit, Known, Problem, keep_connected},
};

/// A generator whose model is loaded and whose port is bound, ready to serve.
pub struct Generator {
    service: Service,
    commands: crossbeam_channel::Sender<Command>,
    connections: JoinSet<()>,
}

impl Generator {
    /// Loads the model, starts the engine, connects to the workers in the background, and binds the port.
    ///
    /// # Errors
    /// Says what the model, the memory, an address or a setting has wrong.
    pub async fn start(config: GeneratorConfig) -> anyhow::Result<Self> {
        config.validate()?;
        let endpoints = endpoints(&config)?;
        let bound = listener::bind(config.server.listen).await?;
        let loaded = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || load(&config))
                .await
                .context("the model's loading broke off")??
        };
        let Loaded { model, cache, blocks, sharing, threads } = loaded;
        let slots = config.engine.slots;
        let limits = scheduler::Limits { slots, prefill_chunk: config.engine.prefill_chunk };
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (load, watched) = watch::channel(scheduler::Load::default());
        let metrics = Metrics::new("attune-generator")?;
        let instruments = Instruments::new(&metrics, &watched);
        let engine = {
            let (model, workers) = (Arc::clone(&model), endpoints.len());
            let patience = Patience { grace: config.grace(), reward: config.reward_wait() };
            EngineThread::spawn(move || {
                let scheduler = Scheduler::new(limits, blocks, sharing);
                let ends = Ends { commands: inbox, load, instruments };
                Engine::new(model, cache, scheduler, workers, patience, threads, ends).run();
            })?
        };
        let mut connections = JoinSet::new();
        let max = config.server.max_message_bytes;
        let tokenizer = &model.assets.tokenizer;
        let tokenizer_size = tokenizer.size() as u32;
        let fit = Fit { tokenizer_size, fingerprint: tokenizer.fingerprint(tokenizer_size) };
        let workers = connect(&mut connections, endpoints, &fit, max, &commands);
        let api = Api {
            model,
            fingerprint: fit.fingerprint,
            engine: commands.clone(),
            permits: Arc::new(Semaphore::new(slots + config.queue)),
            limits: Limits {
                max_tokens: config.max_tokens,
                cache_tokens: (blocks * BLOCK_SIZE).saturating_sub(1),
            },
            slots,
            queue: config.queue,
            load: watched,
            workers,
        };
        let server = Server::new(&config.server)
            .add_service(GeneratorServiceServer::new(api).max_decoding_message_size(max))
            .add_service(ProfileServiceServer::new(Profiles).max_decoding_message_size(max));
        let service = Service::new(&config.server, server, bound, engine, move || metrics.render()).await?;
        Ok(Self { service, commands, connections })
    }

    /// Where the generator listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// Where the admin port listens, with the real port. `None`: there is none.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.service.admin_address()
    }

    /// Serves until `shutdown`; then takes no new requests, gives the running ones the drain time of
    /// the configuration, and ends.
    ///
    /// # Errors
    /// The engine or the transport failed.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<Drain> {
        let Self { service, commands, mut connections } = self;
        let stop = async move {
            // It fails only where the engine has ended already.
            let _ = commands.send(Command::Stop);
        };
        let drained = service.serve(shutdown, std::future::ready(()), stop).await;
        connections.shutdown().await;
        drained
    }
}

/// Keeps a connection to every worker, and gives what is known of each.
fn connect(
    connections: &mut JoinSet<()>,
    endpoints: Vec<Endpoint>,
    fit: &Fit,
    max_message_bytes: usize,
    engine: &crossbeam_channel::Sender<Command>,
) -> Vec<(String, watch::Receiver<Known>)> {
    let mut workers = Vec::with_capacity(endpoints.len());
    for (id, endpoint) in endpoints.into_iter().enumerate() {
        let problem = Some(Problem::Unreachable("not connected yet".into()));
        let (known, watched) = watch::channel(Known { description: None, problem, sessions: 0 });
        workers.push((endpoint.uri().to_string(), watched));
        connections.spawn(keep_connected(
            id,
            endpoint,
            fit.clone(),
            max_message_bytes,
            engine.clone(),
            known,
        ));
    }
    workers
}

fn endpoints(config: &GeneratorConfig) -> anyhow::Result<Vec<Endpoint>> {
    let parse = |url: &String| {
        let endpoint =
            Endpoint::from_shared(url.clone()).map_err(|e| anyhow!("reward worker `{url}`: {e}"))?;
        match endpoint.uri().scheme_str() {
            Some("http") => Ok(endpoint),
            _ => bail!("reward worker `{url}`: write it as http://HOST:PORT"),
        }
    };
    config.reward.iter().map(parse).collect()
}

struct Loaded {
    model: Arc<BaseModel>,
    cache: KvCache,
    blocks: usize,
    sharing: Sharing,
    threads: Threads,
}

/// Loads the model and makes its cache.
fn load(config: &GeneratorConfig) -> anyhow::Result<Loaded> {
    let engine = &config.engine;
    let threads = engine.threads()?;
    let options = LoadOptions { format: engine.format(), context: engine.context, threads: threads.clone() };
    let folder = hub::resolve(&engine.model, engine.model_revision.as_deref(), None)?;
    let model = BaseModel::load(&folder, &engine.id(), &options)?;
    let shape = &model.assets.config;
    let blocks = engine.blocks(KvCache::block_bytes(shape), blocks_for(shape.context + 1), 2)?;
    let cache = KvCache::new(shape, blocks, &candle_core::Device::Cpu)?;
    let assets = &model.assets;
    let sharing = if engine.prefix_cache {
        SharedPrefix::sharing(&engine.shared_prefixes, assets, &PreferenceTemplate::new(None)?)?
    } else {
        Sharing::Off
    };
    tracing::info!(
        model = assets.id,
        revision = assets.revision,
        dtype = assets.dtype(),
        threads = threads.count(),
        context = shape.context,
        slots = engine.slots,
        blocks,
        "the base model is loaded"
    );
    Ok(Loaded { cache, blocks, sharing, threads, model: Arc::new(model) })
}
