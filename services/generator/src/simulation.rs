//! A generator without threads and sockets of its own, for a simulated network: the same service, the
//! same decisions and the same connections, driven by whoever simulates.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use attune_engine::{Assets, BaseModel};
use attune_proto::{
    generator::v1::{
        GenerateRequest,
        generator_service_server::{GeneratorService, GeneratorServiceServer},
    },
    reward::v1::{DescribeResponse, ScoreRequest, response_frame::Frame},
};
use attune_service::{
    auth::{Door, OwnerLimits, Quotas},
    metrics::Metrics,
    now,
};
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};
use tonic::{
    metadata::MetadataMap,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

pub use crate::output::Message;
use crate::{
    GeneratorConfig,
    api::Place,
    decoding::Decoding,
    engine::{Device, Engine, Progress},
    fuse::Fuse,
    generator::{Parts, Surroundings, blocks, parts},
    metrics::{Operation, Requests},
    output::Output,
    pool::Pool,
    roster::Roster,
    sequence::Submission,
    trail::Trail,
    validate::{Limits, ValidRequest},
    worker::Event,
};

/// What a generator finds around it.
pub struct World {
    /// Opens connections to workers.
    #[allow(clippy::type_complexity)]
    pub dial:
        Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, tonic::transport::Error>> + Send + Sync>,
    /// Looks up their names.
    #[allow(clippy::type_complexity)]
    pub resolve: Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>,
    /// Decides what is left to chance.
    pub seed: u64,
}

/// A generator's engine, to be driven.
pub struct Driver {
    engine: Engine,
    assets: Arc<Assets>,
    limits: Limits,
    requests: Arc<Requests>,
}

/// The one worker of [`Driver::connect`].
const WORKER: u64 = 1;

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A forward pass.
    Computed,
    /// Nothing before something arrives, or this moment.
    Waits(Option<Instant>),
}

/// The service, the engine and the finder of workers of a generator.
///
/// # Errors
/// The settings do not fit the model.
pub fn generator(
    config: &GeneratorConfig,
    model: Arc<BaseModel>,
    world: World,
) -> anyhow::Result<(
    InterceptedService<GeneratorServiceServer<impl GeneratorService + use<>>, Door>,
    Driver,
    impl Future<Output = ()> + Send + use<>,
)> {
    let cache = model.decoder.cache(blocks(config, &model)?)?;
    let device = Device { model, cache };
    let World { dial, resolve, seed } = world;
    let surroundings = Surroundings { dial, resolve, seed, inline: true };
    let Parts { api, roster, device, scheduler, ends, seed, counters, instruments, .. } =
        parts(config, device, surroundings, &Metrics::new("attune-generator")?)?;
    let pool = Pool::new(seed, counters);
    let decoding =
        Decoding::new(Arc::clone(&api.assets), scheduler, pool, config.patience(), Fuse::Host, instruments);
    let (assets, limits, requests) = (Arc::clone(&api.assets), api.limits, Arc::clone(&api.requests));
    let driver = Driver { engine: Engine::new(device, decoding, ends), assets, limits, requests };
    Ok((GeneratorServiceServer::with_interceptor(api, Door::open(None)), driver, Roster::run(roster)))
}

impl Driver {
    /// Does what there is to do now.
    pub fn proceed(&mut self) -> Turn {
        match self.engine.proceed() {
            Progress::Computed => Turn::Computed,
            Progress::Waits(until) => Turn::Waits(until),
            Progress::Stopped | Progress::Broken => Turn::Waits(None),
        }
    }

    /// Texts, sessions and cache blocks that it holds.
    pub fn held(&self) -> (usize, usize, usize) {
        self.engine.held()
    }

    /// Hands over a text, past the service. `None`: it is refused.
    pub fn submit(&mut self, request: GenerateRequest) -> Option<mpsc::Receiver<Message>> {
        let request = ValidRequest::new(request, &self.assets, self.limits, || 0).ok()?;
        let (output, stream) = Output::new(request.sampling.max_tokens, request.stop.clone(), []);
        let account = Quotas::new(OwnerLimits::default()).open("local").ok()?;
        let place = Arc::new(Place::new(Arc::new(Semaphore::new(1)).try_acquire_owned().ok()?, account));
        let trail = Trail::new(&self.requests, Operation::TextCompletion, &MetadataMap::new(), now());
        let owner = "local".to_owned();
        self.engine.submit(Submission { request, owner, deadline: None, output, place, trail });
        Some(stream)
    }

    /// Connects a worker, past the network; gives what the engine says to it.
    pub fn connect(&mut self, description: DescribeResponse) -> mpsc::Receiver<ScoreRequest> {
        let (requests, outbound) = mpsc::channel(1024);
        self.engine.worker(WORKER, Event::Found("http://worker/".into()));
        self.engine.worker(WORKER, Event::Up(Box::new(description), requests));
        outbound
    }

    /// The connected worker says this.
    pub fn hear(&mut self, frames: Vec<Frame>) {
        if let Ok(permit) = Arc::new(Semaphore::new(1)).try_acquire_owned() {
            self.engine.worker(WORKER, Event::Frames(frames, permit));
        }
    }

    /// The connected worker is gone.
    pub fn disconnect(&mut self) {
        self.engine.worker(WORKER, Event::Gone);
    }

    /// Sessions opened anew so far.
    pub fn moved(&self) -> u64 {
        self.engine.moved()
    }
}
