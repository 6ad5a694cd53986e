//! A worker from start to end: model, threads, server, drain.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc as jobs},
    thread,
};

use anyhow::Context as _;
use attune_engine::{
    LoadOptions, PersRm, SharedPrefix,
    kv::{Sharing, blocks_for},
};
use attune_proto::{
    profile::v1::profile_service_server::ProfileServiceServer,
    reward::v1::reward_service_server::RewardServiceServer,
};
use attune_service::{
    auth::Door,
    listener,
    metrics::Metrics,
    profiles::Profiles,
    server::{Drain, Server},
    service::{EngineThread, Service},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    config::RewardConfig,
    engine::{COMMANDS, Command, Engine},
    metrics::Instruments,
    model::Model,
    prompts,
    resolve::Resolver,
    scheduler::Scheduler,
    session::Limits,
};

/// A worker whose model is loaded and whose port is bound, ready to serve.
pub struct Worker {
    service: Service,
    commands: mpsc::Sender<Command>,
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
        let resolver = Resolver::new(Arc::clone(&persrm), config.log_content);
        let weak = commands.downgrade();
        thread::Builder::new()
            .name("prompts".into())
            .spawn(move || prompts::run(&resolver, &jobs, &weak))
            .context("cannot start a thread")?;
        let (context, slots) = (scheduler.limits().context, scheduler.slots());
        let metrics = Metrics::new("attune-reward")?;
        let engine = Engine::new(inbox, prompts, model, scheduler, Instruments::new(&metrics));
        let engine = EngineThread::spawn(move || Ok(engine.run()?))?;

        let max = config.server.max_message_bytes;
        let api = Api::new(persrm, commands.clone(), context, slots, max, config.server.limits.clocks());
        let server = Server::new(&config.server, Door::generators())
            .add_service(RewardServiceServer::new(api).max_decoding_message_size(max))
            .add_service(ProfileServiceServer::new(Profiles).max_decoding_message_size(max));
        let bound = listener::open(&config.server).await?;
        let service = Service::new(&config.server, server, bound, engine, move || metrics.render()).await?;
        Ok(Self { service, commands })
    }

    /// Where the worker listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// Where the admin port listens, with the real port. `None`: there is none.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.service.admin_address()
    }

    /// Serves until `shutdown`; then refuses new sessions, gives the open ones the drain time of the
    /// configuration, and ends.
    ///
    /// # Errors
    /// The engine or the transport failed.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<Drain> {
        let Self { service, commands } = self;
        // A send fails only where the engine has ended, and then there is nothing to drain or to stop.
        let drain = {
            let commands = commands.clone();
            async move {
                let _ = commands.send(Command::Drain).await;
            }
        };
        let stop = async move {
            let _ = commands.send(Command::Stop).await;
        };
        service.serve(shutdown, drain, stop).await
    }
}

/// Loads the model and sizes its cache.
fn load(config: &RewardConfig) -> anyhow::Result<(Model, Scheduler, Arc<PersRm>)> {
    let engine = &config.engine;
    let threads = engine.threads()?;
    let options = LoadOptions { format: engine.format(), context: engine.context, threads: threads.clone() };
    let gpu = engine.gpu()?;
    let path = engine.locate()?;
    let persrm = Arc::new(PersRm::load_on(path, &engine.id(), &options, gpu.as_ref())?);
    let assets = &persrm.assets;
    let (scheduler, blocks) = scheduler(config, &persrm)?;
    if scheduler.limits().context < assets.config.context {
        tracing::warn!(
            context = scheduler.limits().context,
            model = assets.config.context,
            "the cache holds less than the model's context; raise cache_mib to serve all of it"
        );
    }
    let model = Model::new(Arc::clone(&persrm), blocks)?;
    tracing::info!(
        model = assets.id,
        revision = assets.revision,
        dtype = assets.dtype(),
        device = persrm.device(),
        threads = threads.count(),
        context = scheduler.limits().context,
        slots = engine.slots,
        blocks,
        reference = persrm.has_reference(),
        "the reward model is loaded"
    );
    Ok((model, scheduler, persrm))
}

/// The scheduler, over as many blocks as the configured memory holds and the slots can use.
pub(crate) fn scheduler(config: &RewardConfig, persrm: &PersRm) -> anyhow::Result<(Scheduler, usize)> {
    let (engine, shape) = (&config.engine, &persrm.assets.config);
    let sides = 1 + usize::from(persrm.has_reference());
    let blocks = engine.blocks(sides * persrm.block_bytes(), blocks_for(shape.context), 1)?;
    let limits = Limits { vocab: shape.vocab, context: shape.context };
    let sharing = if engine.prefix_cache {
        SharedPrefix::sharing(&engine.shared_prefixes, &persrm.assets, &persrm.template)?
    } else {
        Sharing::Off
    };
    Ok((Scheduler::new(limits, engine.slots, blocks, engine.prefill_chunk, sharing), blocks))
}
