//! The thread that owns the model: it decodes every sequence, one iteration after the other.
//!
//! An iteration: take what arrived (rewards choose tokens, and `Advance` leaves for the workers),
//! admit, plan, run the forward pass, select candidates, and ask the workers for their rewards. The
//! workers read the chosen tokens while this thread's own forward pass runs; clients hear of them before it, or,
//! on a card, while it runs. `decoding` decides all of it; this file waits and computes.

use std::{sync::Arc, time::Instant};

use attune_engine::{BaseModel, ForwardError, kv::KvCache};
use attune_guidance::{Candidates, RowError};
use attune_service::{imminent, now};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use tokio::sync::watch;

use crate::{
    decoding::{Decoding, Turn},
    metrics::Lap,
    scheduler::{Load, PlannedRows},
    sequence::Submission,
    worker::{Event, WorkerId},
};

/// What the engine is told.
#[derive(Debug)]
enum Command {
    /// A new text.
    Submit(Box<Submission>),
    /// Something of a worker.
    Worker(WorkerId, Event),
    /// A client has gone: look who it was.
    Look,
    /// End now; what still runs ends UNAVAILABLE.
    Stop,
}

/// The way to the engine.
///
/// The queue itself has no limit, but all that goes into it has: a submission holds a client's place
/// until the text and its stream have ended, a look is that stream's end, and a worker's answers hold
/// permits of their connection. So nobody who sends has to wait on the threads that carry the streams.
#[derive(Debug, Clone)]
pub(crate) struct Inbox(Sender<Command>);

impl Inbox {
    /// The two ends of the way.
    pub(crate) fn new() -> (Self, Commands) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        (Self(sender), Commands(receiver))
    }

    /// Hands over a new text. False: the engine has ended.
    pub(crate) fn submit(&self, submission: Submission) -> bool {
        self.0.send(Command::Submit(Box::new(submission))).is_ok()
    }

    /// Tells news of a worker. False: the engine has ended.
    pub(crate) fn worker(&self, worker: WorkerId, event: Event) -> bool {
        self.0.send(Command::Worker(worker, event)).is_ok()
    }

    /// Makes it look whose client has gone.
    pub(crate) fn look(&self) {
        // It fails only when the engine has ended, and nobody needs to look any more.
        let _ = self.0.send(Command::Look);
    }

    /// Ends it, and with UNAVAILABLE all that still runs.
    pub(crate) fn stop(&self) {
        // It fails only where the engine has ended already.
        let _ = self.0.send(Command::Stop);
    }
}

/// What the engine has been told.
#[derive(Debug)]
pub(crate) struct Commands(Receiver<Command>);

/// The engine's ends of its channels.
pub(crate) struct Ends {
    /// What it is told.
    pub(crate) commands: Commands,
    /// Where it says how busy it is.
    pub(crate) load: watch::Sender<Load>,
}

/// What computes: the model with the memory of its cache.
pub(crate) struct Device {
    /// The model.
    pub(crate) model: Arc<BaseModel>,
    /// Its cache.
    pub(crate) cache: KvCache,
}

impl Device {
    /// The forward pass over the rows, and the candidates of the complete ones.
    fn compute(
        &self,
        decoding: &mut Decoding,
        rows: &[PlannedRows],
    ) -> Result<Vec<Result<Candidates, RowError>>, ForwardError> {
        let packed = rows.iter().map(|r| r.count).sum();
        decoding.instruments().pass(packed);
        let step = tracing::debug_span!("step", rows = packed);
        decoding.link(&step, rows);
        let _step = step.enter();
        let mut lap = Lap::start();
        let logits = {
            let _span = tracing::debug_span!("forward", rows = packed).entered();
            let hidden = self.model.decoder.forward(&decoding.batch(rows), &self.cache)?;
            self.model.head(&hidden)?
        };
        decoding.instruments().forward.record(lap.time());
        // A card has only been handed its work, and this thread is free until it is done.
        decoding.tell();
        let selection = decoding.selection(rows);
        let selected = {
            let _span = tracing::debug_span!("select", rows = selection.len()).entered();
            self.model.select(&logits, &selection)?
        };
        self.model.rest();
        decoding.instruments().select.record(lap.time());
        Ok(selected)
    }
}

/// The engine's state; it lives on its own thread.
pub(crate) struct Engine {
    device: Device,
    decoding: Decoding,
    commands: Commands,
    load: watch::Sender<Load>,
    /// What the device failed with: nothing more can be computed.
    broken: Option<ForwardError>,
}

/// Whether the engine goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It computed; there may be more.
    Computed,
    /// It waits for something to arrive, at most until this moment.
    Waits(Option<Instant>),
    /// It was told to stop.
    Stopped,
    /// Its device failed for good.
    Broken,
}

impl Engine {
    /// An idle engine.
    pub(crate) fn new(device: Device, decoding: Decoding, Ends { commands, load }: Ends) -> Self {
        Self { device, decoding, commands, load, broken: None }
    }

    /// Decodes until it is told to stop.
    ///
    /// # Errors
    /// The device failed for good. Every text has ended with what it takes to go on elsewhere.
    pub(crate) fn run(mut self) -> Result<(), ForwardError> {
        loop {
            let until = match self.proceed() {
                Progress::Computed => continue,
                Progress::Stopped | Progress::Broken => break,
                Progress::Waits(until) => until,
            };
            let idle = self.decoding.is_idle();
            let soon = if idle { None } else { imminent(|| self.commands.0.try_recv().ok()) };
            let received = match (soon, until) {
                (Some(command), _) => Ok(command),
                (None, Some(until)) => self.commands.0.recv_deadline(until),
                (None, None) => self.commands.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let why = if self.broken.is_some() {
            "the generator's device has failed"
        } else {
            "the generator is shutting down"
        };
        self.decoding.stop(why, now());
        self.broken.map_or(Ok(()), Err)
    }

    /// Takes all that has arrived, and computes one iteration where there is one to compute.
    pub(crate) fn proceed(&mut self) -> Progress {
        loop {
            match self.commands.0.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Progress::Stopped,
                Ok(command) => self.handle(command),
                Err(TryRecvError::Empty) => break,
            }
        }
        let turn = self.decoding.turn(now());
        if self.device.model.gpu().is_none() || !matches!(turn, Turn::Compute(_)) {
            self.decoding.tell();
        }
        self.load.send_replace(self.decoding.load());
        let rows = match turn {
            Turn::Compute(rows) => rows,
            Turn::Wait(until) => return Progress::Waits(until),
        };
        if rows.is_empty() {
            // All that could have run had to make room.
            return Progress::Computed;
        }
        match self.device.compute(&mut self.decoding, &rows) {
            Ok(selected) => self.decoding.computed(&rows, selected, now()),
            Err(error) => {
                tracing::error!(%error, "an iteration failed");
                if error.is_fatal() {
                    self.broken = Some(error);
                    return Progress::Broken;
                }
                if error.is_out_of_memory() {
                    self.decoding.out_of_memory(&rows);
                } else {
                    self.decoding.not_computed(&rows);
                }
            }
        }
        Progress::Computed
    }

    /// Texts, sessions and cache blocks that it holds.
    pub(crate) fn held(&self) -> (usize, usize, usize) {
        self.decoding.held()
    }

    /// Sessions opened anew so far.
    pub(crate) fn moved(&self) -> u64 {
        self.decoding.moved()
    }

    /// Takes a new text, as from the inbox.
    pub(crate) fn submit(&mut self, submission: Submission) {
        self.handle(Command::Submit(Box::new(submission)));
    }

    /// Takes news of a worker, as from the inbox.
    pub(crate) fn worker(&mut self, worker: WorkerId, event: Event) {
        self.handle(Command::Worker(worker, event));
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.decoding.submit(*submission),
            Command::Worker(worker, event) => self.decoding.worker(worker, event, now()),
            // The next turn looks.
            Command::Look | Command::Stop => {}
        }
    }
}
