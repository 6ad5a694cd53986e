//! A generator from start to end: model, engine, workers, server, drain.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow, bail};
use attune_engine::{
    BaseModel, LoadOptions, hub,
    kv::{BLOCK_SIZE, KvCache, blocks_for},
};
use attune_kernels::{Format, Threads};
use attune_proto::{
    generator::v1::generator_service_server::GeneratorServiceServer,
    profile::v1::profile_service_server::ProfileServiceServer,
};
use attune_service::{
    admin::Admin,
    listener::{self, Bound},
    profiles::Profiles,
    server::{Drain, Server},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::{
    api::Api,
    config::{Dtype, GeneratorConfig},
    engine::{Command, Engine, Patience},
    scheduler::{self, Scheduler},
    validate::Limits,
    worker::{Fit, Known, Problem, keep_connected},
};

/// A generator whose model is loaded and whose port is bound, ready to serve.
pub struct Generator {
    server: Server,
    bound: Bound,
    admin: Option<(Admin, Bound)>,
    commands: crossbeam_channel::Sender<Command>,
    engine: JoinHandle<()>,
    /// Cancelled when the engine's thread ends, for whatever reason.
    engine_ended: CancellationToken,
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
        let Loaded { model, cache, blocks, threads } = loaded;
        let limits = scheduler::Limits { slots: config.slots, prefill_chunk: config.prefill_chunk };
        let (commands, inbox) = crossbeam_channel::unbounded();
        let engine_ended = CancellationToken::new();
        let ended = engine_ended.clone().drop_guard();
        let engine = {
            let (model, workers) = (Arc::clone(&model), endpoints.len());
            let patience = Patience { grace: config.grace(), reward: config.reward_wait() };
            thread::Builder::new()
                .name("engine".into())
                .spawn(move || {
                    let _ended = ended;
                    let scheduler = Scheduler::new(limits, blocks);
                    Engine::new(model, cache, scheduler, workers, patience, threads, inbox).run();
                })
                .context("cannot start a thread")?
        };
        let mut connections = JoinSet::new();
        let max = config.server.max_message_bytes;
        let workers = connect(&mut connections, endpoints, &model, max, &commands);
        let api = Api {
            model,
            engine: commands.clone(),
            permits: Arc::new(Semaphore::new(config.slots + config.queue)),
            limits: Limits {
                max_tokens: config.max_tokens,
                cache_tokens: (blocks * BLOCK_SIZE).saturating_sub(1),
            },
            slots: config.slots,
            queue: config.queue,
            workers,
        };
        let server = Server::new(&config.server)
            .add_service(GeneratorServiceServer::new(api).max_decoding_message_size(max))
            .add_service(ProfileServiceServer::new(Profiles).max_decoding_message_size(max));
        let admin = match config.server.admin_listen {
            Some(address) => Some((Admin::new(server.health(), String::new), listener::bind(address).await?)),
            None => None,
        };
        Ok(Self { server, bound, admin, commands, engine, engine_ended, connections })
    }

    /// Where the generator listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.bound.address()
    }

    /// Serves until `shutdown`; then takes no new requests, gives the running ones the drain time of
    /// the configuration, and ends.
    ///
    /// # Errors
    /// The engine or the transport failed.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<Drain> {
        let Self { server, bound, admin, commands, engine, engine_ended, mut connections } = self;
        let health = server.health();
        health.set_serving(true).await;
        let served = CancellationToken::new();
        let admin = admin.map(|(admin, bound)| tokio::spawn(admin.serve(bound, served.clone())));
        // A generator without an engine is of no use: it ends, and its supervisor starts another.
        let stop = CancellationToken::new();
        let watch = {
            let (stop, health) = (stop.clone(), health.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = engine_ended.cancelled() => {
                        tracing::error!("the engine has ended unasked; the generator stops");
                    }
                }
                health.set_serving(false).await;
                stop.cancel();
            })
        };
        let drained = server.serve(bound, stop).await;
        watch.abort();
        // It fails only where the engine has ended already.
        let _ = commands.send(Command::Stop);
        let engine = tokio::task::spawn_blocking(move || engine.join()).await?;
        connections.shutdown().await;
        served.cancel();
        if let Some(admin) = admin {
            admin.await??;
        }
        engine.map_err(|_| anyhow!("the engine panicked; see the log above"))?;
        Ok(drained?)
    }
}

/// Keeps a connection to every worker, and gives what is known of each.
fn connect(
    connections: &mut JoinSet<()>,
    endpoints: Vec<Endpoint>,
    model: &BaseModel,
    max_message_bytes: usize,
    engine: &crossbeam_channel::Sender<Command>,
) -> Vec<(String, watch::Receiver<Known>)> {
    let tokenizer = &model.assets.tokenizer;
    let tokenizer_size = tokenizer.size() as u32;
    let fit = Fit { tokenizer_size, fingerprint: tokenizer.fingerprint(tokenizer_size) };
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
    threads: Threads,
}

/// Loads the model and makes its cache.
fn load(config: &GeneratorConfig) -> anyhow::Result<Loaded> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = Threads::new(if config.threads == 0 { cores } else { config.threads })?;
    let format = match config.dtype {
        Dtype::Auto => None,
        Dtype::F32 => Some(Format::F32),
        Dtype::Bf16 => Some(Format::Bf16),
        Dtype::F16 => Some(Format::F16),
        Dtype::Q8 => Some(Format::Q8),
    };
    let options = LoadOptions { format, context: config.context, threads: threads.clone() };
    let folder = hub::resolve(&config.model, config.model_revision.as_deref(), None)?;
    let model = BaseModel::load(&folder, &config.id(), &options)?;
    let shape = &model.assets.config;
    let fit = (config.cache_mib << 20) / KvCache::block_bytes(shape);
    if fit < 2 {
        bail!("cache_mib = {} holds not two blocks of this model's cache; raise it", config.cache_mib);
    }
    let blocks = fit.min(config.slots * blocks_for(shape.context + 1));
    let cache = KvCache::new(shape, blocks, &candle_core::Device::Cpu)?;
    let assets = &model.assets;
    tracing::info!(
        model = assets.id,
        revision = assets.revision,
        dtype = assets.dtype(),
        threads = threads.count(),
        context = shape.context,
        slots = config.slots,
        blocks,
        "the base model is loaded"
    );
    Ok(Loaded { cache, blocks, threads, model: Arc::new(model) })
}
