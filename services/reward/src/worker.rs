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
use attune_profiles::{Place, Store, StoreError};
use attune_proto::{
    profile::v1::profile_service_server::ProfileServiceServer,
    reward::v1::reward_service_server::RewardServiceServer,
};
use attune_service::{
    auth::Door,
    batching::Batching,
    listener,
    metrics::Metrics,
    server::{Drain, Server},
    service::{EngineThread, Service},
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    config::RewardConfig,
    desk::Desk,
    engine::{COMMANDS, Command, Engine},
    metrics::Instruments,
    model::Model,
    profiles::{ProfileApi, fit::Fits},
    prompts,
    resolve::Resolver,
    scheduler::Scheduler,
    session::Limits,
};

/// A worker whose model is loaded and whose port is bound, ready to serve.
pub struct Worker {
    service: Service,
    commands: mpsc::Sender<Command>,
    profiles: Option<Arc<Store>>,
}

impl Worker {
    /// Loads the model, starts the engine and binds the port.
    ///
    /// # Errors
    /// Says what the model, the memory, the address or a setting has wrong.
    pub async fn start(config: RewardConfig) -> anyhow::Result<Self> {
        Self::start_with(config, Metrics::new("attune-reward")?).await
    }

    /// `start`, with the metrics of a process that exports them.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_with(config: RewardConfig, metrics: Metrics) -> anyhow::Result<Self> {
        config.validate()?;
        let profiles = match config.profiles.place()? {
            Some(place) => Some(open_profiles(place).await?),
            None => None,
        };
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
        let desk = match &profiles {
            Some(store) => Desk::with_profiles(prompts, Arc::clone(store)),
            None => Desk::new(prompts),
        };
        let batching = Batching::new(persrm.gpu().is_some());
        let instruments = Instruments::new(&metrics, slots);
        let engine = Engine::new(inbox, desk, model, scheduler, batching, instruments);
        let clock = Handle::current();
        let engine = EngineThread::spawn(move || Ok(engine.run(&clock)?))?;

        let max = config.server.max_message_bytes;
        let fits = Arc::new(Fits::new(Arc::clone(&persrm), config.log_content)?);
        let people = ProfileApi::new(Arc::clone(&persrm), profiles.clone(), fits);
        let api = Api::new(persrm, commands.clone(), context, slots, max, config.server.limits.clocks());
        let server = Server::new(&config.server, Door::generators())
            .add_service(RewardServiceServer::new(api).max_decoding_message_size(max))
            .add_service(
                ProfileServiceServer::new(people)
                    .max_decoding_message_size(config.server.max_request_bytes()),
            );
        let bound = listener::open(&config.server).await?;
        let service = Service::new(&config.server, server, bound, engine, move || metrics.render()).await?;
        Ok(Self { service, commands, profiles })
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
        let Self { service, commands, profiles } = self;
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
        let drained = service.serve(shutdown, drain, stop).await;
        if let Some(store) = profiles {
            store.close().await;
        }
        drained
    }
}

/// The store of profiles. A database that is gone for now is waited for by those who need it; what does not pass by
/// itself ends the start.
async fn open_profiles(place: Place) -> anyhow::Result<Arc<Store>> {
    let store = Arc::new(Store::new(place));
    match store.connect().await {
        Ok(()) => tracing::info!(kind = store.kind(), "profiles are kept"),
        Err(StoreError::Unavailable(trouble)) if store.is_remote() => {
            tracing::warn!(problem = trouble.to_string(), "the worker starts without its profile store");
        }
        Err(error) => {
            let advice = "cannot open the profile store (the log says why); set `profiles.url` to another, or to \"\" \
                          for no profiles";
            return Err(error).context(advice);
        }
    }
    Ok(store)
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
    let cache_mib = engine.cache_mib(persrm.gpu())?;
    let blocks = engine.blocks(cache_mib, sides * persrm.block_bytes(), blocks_for(shape.context), 1)?;
    let limits = Limits { vocab: shape.vocab, context: shape.context };
    let sharing = if engine.prefix_cache {
        SharedPrefix::sharing(&engine.shared_prefixes, &persrm.assets, &persrm.template)?
    } else {
        Sharing::Off
    };
    Ok((Scheduler::new(limits, engine.slots, blocks, engine.prefill_chunk(persrm.gpu()), sharing), blocks))
}
