//! A worker from start to end: model, threads, server, drain.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc as jobs},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow};
use attune_engine::{
    LoadOptions, PersRm, hub,
    kv::{KvCache, blocks_for},
};
use attune_kernels::{Format, Threads};
use attune_proto::{
    profile::v1::profile_service_server::ProfileServiceServer,
    reward::v1::reward_service_server::RewardServiceServer,
};
use attune_service::{
    admin::Admin,
    listener::{self, Bound},
    profiles::Profiles,
    server::{Drain, Server},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    config::{Dtype, RewardConfig},
    engine::{COMMANDS, Command, Engine},
    model::Model,
    prompts,
    resolve::Resolver,
    scheduler::Scheduler,
    session::Limits,
};

/// A worker whose model is loaded and whose port is bound, ready to serve.
pub struct Worker {
    server: Server,
    bound: Bound,
    admin: Option<(Admin, Bound)>,
    commands: mpsc::Sender<Command>,
    engine: JoinHandle<()>,
    /// Cancelled when the engine's thread ends, for whatever reason.
    engine_ended: CancellationToken,
}

impl Worker {
    /// Loads the model, starts the engine and binds the port.
    ///
    /// # Errors
    /// Says what the model, the memory, the address or a setting has wrong.
    pub async fn start(config: RewardConfig) -> anyhow::Result<Self> {
        config.validate()?;
        let (model, scheduler, persrm) = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || load(&config))
                .await
                .context("the model's loading broke off")??
        };
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (prompts, jobs) = jobs::channel();
        let resolver = Resolver::new(Arc::clone(&persrm));
        let weak = commands.downgrade();
        thread::Builder::new()
            .name("prompts".into())
            .spawn(move || prompts::run(&resolver, &jobs, &weak))
            .context("cannot start a thread")?;
        let (context, slots) = (scheduler.limits().context, scheduler.slots());
        let engine = Engine::new(inbox, prompts, model, scheduler);
        let engine_ended = CancellationToken::new();
        let ended = engine_ended.clone().drop_guard();
        let engine = thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let _ended = ended;
                engine.run();
            })
            .context("cannot start a thread")?;

        let max = config.server.max_message_bytes;
        let api = Api::new(persrm, commands.clone(), context, slots, max);
        let server = Server::new(&config.server)
            .add_service(RewardServiceServer::new(api).max_decoding_message_size(max))
            .add_service(ProfileServiceServer::new(Profiles).max_decoding_message_size(max));
        let bound = listener::bind(config.server.listen).await?;
        let admin = match config.server.admin_listen {
            // The worker's metrics come with the telemetry of a later version.
            Some(address) => Some((Admin::new(server.health(), String::new), listener::bind(address).await?)),
            None => None,
        };
        Ok(Self { server, bound, admin, commands, engine, engine_ended })
    }

    /// Where the worker listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.bound.address()
    }

    /// Serves until `shutdown`; then refuses new sessions, gives the open ones the drain time of the
    /// configuration, and ends.
    ///
    /// # Errors
    /// The engine or the transport failed.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<Drain> {
        let Self { server, bound, admin, commands, engine, engine_ended } = self;
        let health = server.health();
        health.set_serving(true).await;
        let served = CancellationToken::new();
        let admin = admin.map(|(admin, bound)| tokio::spawn(admin.serve(bound, served.clone())));
        // A worker without an engine is of no use: it ends, and its supervisor starts another.
        let stop = CancellationToken::new();
        let watch = {
            let (stop, commands, engine_ended) = (stop.clone(), commands.clone(), engine_ended.clone());
            let health = health.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {
                        health.set_serving(false).await;
                        // It fails only where the engine has ended, and then there is nothing to drain.
                        let _ = commands.send(Command::Drain).await;
                    }
                    () = engine_ended.cancelled() => {
                        tracing::error!("the engine has ended unasked; the worker stops");
                        health.set_serving(false).await;
                    }
                }
                stop.cancel();
            })
        };
        let drained = server.serve(bound, stop).await;
        watch.abort();
        let _ = commands.send(Command::Stop).await;
        let engine = tokio::task::spawn_blocking(move || engine.join()).await?;
        served.cancel();
        if let Some(admin) = admin {
            admin.await??;
        }
        engine.map_err(|_| anyhow!("the engine panicked; see the log above"))?;
        Ok(drained?)
    }
}

/// Loads the model and sizes its cache.
fn load(config: &RewardConfig) -> anyhow::Result<(Model, Scheduler, Arc<PersRm>)> {
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
    let persrm = Arc::new(PersRm::load(&folder, &config.id(), &options)?);
    let assets = &persrm.assets;
    let blocks = blocks(config, &persrm)?;
    let limits = Limits { vocab: assets.config.vocab, context: assets.config.context };
    let scheduler = Scheduler::new(limits, config.slots, blocks, config.prefill_chunk);
    if scheduler.limits().context < limits.context {
        tracing::warn!(
            context = scheduler.limits().context,
            model = limits.context,
            "the cache holds less than the model's context; raise cache_mib to serve all of it"
        );
    }
    let model = Model::new(Arc::clone(&persrm), blocks, threads.clone())?;
    tracing::info!(
        model = assets.id,
        revision = assets.revision,
        dtype = assets.dtype(),
        threads = threads.count(),
        context = scheduler.limits().context,
        slots = config.slots,
        blocks,
        reference = persrm.has_reference(),
        "the reward model is loaded"
    );
    Ok((model, scheduler, persrm))
}

/// The blocks that the configured memory holds, and no more than the slots can use.
fn blocks(config: &RewardConfig, persrm: &PersRm) -> anyhow::Result<usize> {
    let shape = &persrm.assets.config;
    let sides = 1 + usize::from(persrm.has_reference());
    let fit = (config.cache_mib << 20) / (KvCache::block_bytes(shape) * sides);
    if fit == 0 {
        return Err(anyhow!(
            "cache_mib = {} holds not one block of this model's cache; raise it",
            config.cache_mib
        ));
    }
    Ok(fit.min(config.slots * blocks_for(shape.context)))
}
