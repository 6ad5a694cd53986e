//! A generator from start to end: model, engine, workers, server, drain.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use attune_engine::{
    BaseModel, LoadOptions, PreferenceTemplate, SharedPrefix,
    kv::{BLOCK_SIZE, Sharing, blocks_for},
};
use attune_proto::{
    generator::v1::generator_service_server::GeneratorServiceServer,
    profile::v1::profile_service_server::ProfileServiceServer,
};
use attune_service::{
    auth::Quotas,
    listener,
    metrics::Metrics,
    server::{Drain, Server},
    service::{EngineThread, Service},
    tls::ClientTls,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    answers::AnswerReader,
    api::Api,
    config::GeneratorConfig,
    counters::Counters,
    decoding::Decoding,
    discovery::{self, Resolve, Source},
    engine::{Device, Ends, Engine, Inbox},
    fuse::Fuse,
    metrics::{Instruments, Requests},
    pool::Pool,
    profiles::Profiles,
    roster::Roster,
    scheduler::{self, Scheduler},
    validate::Limits,
    worker::{self, Dial, Dialer, Fit},
};

/// A generator whose model is loaded and whose port is bound, ready to serve.
pub struct Generator {
    service: Service,
    inbox: Inbox,
    connections: JoinSet<()>,
}

impl Generator {
    /// Loads the model, starts the engine, connects to the workers in the background, and binds the port.
    ///
    /// # Errors
    /// Says what the model, the memory, an address or a setting has wrong.
    pub async fn start(config: GeneratorConfig) -> anyhow::Result<Self> {
        Self::start_with(config, Metrics::new("attune-generator")?).await
    }

    /// `start`, with the metrics of a process that exports them.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_with(config: GeneratorConfig, metrics: Metrics) -> anyhow::Result<Self> {
        config.validate()?;
        let device = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || load(&config))
                .await
                .context("the model's loading broke off")??
        };
        let fuse = Fuse::new(config.fuse, device.model.gpu())?;
        // What a card or a model has wrong is told before anybody can connect.
        let bound = listener::open(&config.server).await?;
        let surroundings = Surroundings {
            dial: worker::tcp(),
            resolve: discovery::system_resolver(),
            seed: rand::random(),
            inline: false,
        };
        let Parts { api, roster, device, scheduler, inbox, ends, seed, counters, instruments } =
            parts(&config, device, surroundings, &metrics)?;
        let (assets, patience) = (Arc::clone(&api.assets), config.patience());
        let answers = AnswerReader::new(Arc::clone(&device.model))?;
        let engine = EngineThread::spawn(move || {
            let pool = Pool::new(seed, counters);
            let decoding = Decoding::new(assets, scheduler, pool, patience, fuse, instruments);
            Ok(Engine::new(device, decoding, ends).run()?)
        })?;
        let mut connections = JoinSet::new();
        connections.spawn(roster.run());
        let max = config.server.max_message_bytes;
        let profiles = Profiles::new(api.workers.clone(), api.quotas.clone(), max, api.clocks, answers);
        let max = config.server.max_request_bytes();
        let server = Server::new(&config.server, config.auth.door(config.server.reload())?)
            .add_service(GeneratorServiceServer::new(api).max_decoding_message_size(max))
            .add_service(ProfileServiceServer::new(profiles).max_decoding_message_size(max));
        let service = Service::new(&config.server, server, bound, engine, move || metrics.render()).await?;
        Ok(Self { service, inbox, connections })
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
        let Self { service, inbox, mut connections } = self;
        // Texts that still run when the drain time is over end with what it takes to go on with them.
        let stop = async move { inbox.stop() };
        let drained = service.serve(shutdown, std::future::ready(()), stop).await;
        connections.shutdown().await;
        drained
    }
}

/// What a generator takes from the world around it; a simulation gives it another one.
pub(crate) struct Surroundings {
    /// Opens connections to workers.
    pub(crate) dial: Dial,
    /// Looks up their names.
    pub(crate) resolve: Resolve,
    /// Decides between equally good workers, and how long pauses are.
    pub(crate) seed: u64,
    /// There are no threads beside the one that drives it.
    pub(crate) inline: bool,
}

/// The parts of a generator, not running yet.
pub(crate) struct Parts {
    pub(crate) api: Api,
    pub(crate) roster: Roster,
    pub(crate) device: Device,
    pub(crate) scheduler: Scheduler,
    pub(crate) inbox: Inbox,
    pub(crate) ends: Ends,
    pub(crate) seed: u64,
    pub(crate) counters: Arc<Counters>,
    pub(crate) instruments: Instruments,
}

/// Puts a generator together.
pub(crate) fn parts(
    config: &GeneratorConfig,
    device: Device,
    surroundings: Surroundings,
    metrics: &Metrics,
) -> anyhow::Result<Parts> {
    let Surroundings { dial, resolve, seed, inline } = surroundings;
    let sources: Vec<Source> = config.reward.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let assets = Arc::clone(&device.model.assets);
    let blocks = blocks(config, &device.model)?;
    let slots = config.engine.slots;
    let limits = scheduler::Limits { slots, prefill_chunk: config.engine.prefill_chunk(device.model.gpu()) };
    let sharing = if config.engine.prefix_cache {
        SharedPrefix::sharing(&config.engine.shared_prefixes, &assets, &PreferenceTemplate::new(None)?)?
    } else {
        Sharing::Off
    };
    let scheduler = Scheduler::new(limits, blocks, sharing);
    let (inbox, commands) = Inbox::new();
    let (load, watched) = watch::channel(scheduler::Load::default());
    let tokenizer_size = assets.tokenizer.size() as u32;
    let fingerprint = assets.tokenizer.fingerprint(tokenizer_size);
    let counters = Arc::new(Counters::default());
    let secure = sources.iter().any(Source::is_tls);
    let tls = secure.then(|| ClientTls::load(&config.reward_tls, config.server.reload())).transpose()?;
    let dialer = Dialer {
        dial,
        tls,
        fit: Fit { tokenizer_size, fingerprint: fingerprint.clone() },
        max_message_bytes: config.server.max_message_bytes,
        seed,
        counters: Arc::clone(&counters),
    };
    let guided = !sources.is_empty();
    let instruments = Instruments::new(metrics, slots, &watched, &counters);
    let requests = Arc::new(Requests::new(metrics, &assets.id));
    let (roster, workers) = Roster::new(sources, resolve, dialer, inbox.clone());
    let api = Api {
        assets,
        fingerprint,
        engine: inbox.clone(),
        permits: Arc::new(Semaphore::new(slots + config.queue)),
        requests,
        quotas: Quotas::new(config.auth.limits),
        device: device.model.device(),
        limits: Limits {
            max_tokens: config.max_tokens,
            cache_tokens: (blocks * BLOCK_SIZE).saturating_sub(1),
        },
        slots,
        queue: config.queue,
        clocks: config.server.limits.clocks(),
        inline,
        guided,
        log_content: config.log_content,
        load: watched,
        workers,
    };
    let ends = Ends { commands, load };
    Ok(Parts { api, roster, device, scheduler, inbox, ends, seed, counters, instruments })
}

/// The blocks that the configured memory holds, and no more than the slots can use.
pub(crate) fn blocks(config: &GeneratorConfig, model: &BaseModel) -> anyhow::Result<usize> {
    let context = model.assets.config.context;
    let cache_mib = config.engine.cache_mib(model.gpu())?;
    Ok(config.engine.blocks(cache_mib, model.decoder.block_bytes(), blocks_for(context + 1), 2)?)
}

/// Loads the model and makes its cache.
fn load(config: &GeneratorConfig) -> anyhow::Result<Device> {
    let engine = &config.engine;
    let threads = engine.threads()?;
    let options = LoadOptions { format: engine.format(), context: engine.context, threads: threads.clone() };
    let gpu = engine.gpu()?;
    let path = engine.locate()?;
    let model = BaseModel::load_on(path, &engine.id(), &options, gpu.as_ref())?;
    let blocks = blocks(config, &model)?;
    let cache = model.decoder.cache(blocks)?;
    let assets = &model.assets;
    tracing::info!(
        model = assets.id,
        revision = assets.revision,
        dtype = assets.dtype(),
        device = model.device(),
        threads = threads.count(),
        context = assets.config.context,
        slots = engine.slots,
        blocks,
        "the base model is loaded"
    );
    Ok(Device { cache, model: Arc::new(model) })
}
