//! A worker without threads and sockets of its own, for a simulated network: the same service and the
//! same engine, driven by whoever simulates.

use std::{
    sync::{Arc, mpsc as jobs},
    time::Instant,
};

use attune_engine::PersRm;
use attune_proto::reward::v1::{
    RequestFrame,
    response_frame::Frame,
    reward_service_server::{RewardService, RewardServiceServer},
};
use attune_service::{batching::Batching, metrics::Metrics};
use tokio::sync::mpsc;

use crate::{
    RewardConfig,
    api::Api,
    desk::Desk,
    engine::{COMMANDS, Command, Engine, Progress},
    metrics::Instruments,
    model::Model,
    prompts::Job,
    resolve::Resolver,
    streams::{self, Responses, StreamId},
    worker::scheduler,
};

/// A worker's engine, to be driven.
pub struct Driver {
    engine: Engine,
    jobs: jobs::Receiver<Job>,
    resolver: Resolver,
    calls: StreamId,
    /// Without it the engine's queue would be closed.
    _commands: mpsc::Sender<Command>,
}

/// The service and the engine of a worker, whose passes wait for `company`, as on a card, or do not.
///
/// # Errors
/// The settings do not fit the model.
pub fn worker(
    config: &RewardConfig,
    persrm: Arc<PersRm>,
    company: bool,
) -> anyhow::Result<(RewardServiceServer<impl RewardService + use<>>, Driver)> {
    let (scheduler, blocks) = scheduler(config, &persrm)?;
    let model = Model::new(Arc::clone(&persrm), blocks)?;
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (prompts, jobs) = jobs::channel();
    let (context, slots) = (scheduler.limits().context, scheduler.slots());
    let clocks = config.server.limits.clocks();
    let max = config.server.max_message_bytes;
    let api = Api::new(Arc::clone(&persrm), commands.clone(), context, slots, max, clocks);
    let instruments = Instruments::new(&Metrics::new("attune-reward")?, slots);
    let batching = Batching::new(company);
    let engine = Engine::new(inbox, Desk::new(prompts), model, scheduler, batching, instruments);
    let resolver = Resolver::new(persrm, config.log_content);
    let driver = Driver { engine, jobs, resolver, calls: 1 << 32, _commands: commands };
    Ok((RewardServiceServer::new(api), driver))
}

impl Driver {
    /// Does what there is to do. True: it computed.
    pub fn proceed(&mut self) -> bool {
        let computed = self.engine.proceed() == Progress::Computed;
        while let Ok(job) = self.jobs.try_recv() {
            self.engine.handle(job.resolve(&self.resolver));
        }
        computed
    }

    /// Shuts down in good order, as by SIGTERM.
    pub fn drain(&mut self) {
        self.engine.handle(Command::Drain);
    }

    /// Sessions that are open, and cache blocks that they hold.
    pub fn held(&self) -> (u32, u32) {
        let load = self.engine.load();
        (load.sessions, load.blocks_used)
    }

    /// Begins a call, past the network.
    pub fn connect(&mut self) -> Call {
        self.calls += 1;
        let (outbound, responses) = streams::call();
        self.engine.handle(Command::Connect { stream: self.calls, outbound });
        Call { stream: self.calls, responses }
    }

    /// The generator of a call says this.
    pub fn hear(&mut self, call: &Call, frames: Vec<RequestFrame>) {
        self.engine.handle(Command::Frames { stream: call.stream, frames, at: Instant::now() });
    }

    /// A call ends.
    pub fn disconnect(&mut self, call: Call) {
        self.engine.handle(Command::Disconnected { stream: call.stream, verdict: None });
    }
}

/// A call, past the network.
pub struct Call {
    stream: StreamId,
    responses: Responses,
}

impl Call {
    /// What the engine has said on it since the last look.
    pub fn answers(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(message) = self.responses.messages.try_recv() {
            frames.extend(message.frames.into_iter().filter_map(|f| f.frame));
        }
        frames
    }
}
