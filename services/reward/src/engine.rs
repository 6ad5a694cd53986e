//! The one thread that owns the model: it takes frames, plans, computes, and answers.
//!
//! No lock is held across a forward pass, and the thread sleeps while there is nothing to do.

mod frames;
mod pass;

use std::{collections::HashMap, time::Instant};

use attune_engine::ForwardError;
use attune_proto::reward::v1::{FailureReason, Load, RequestFrame, response_frame};
use attune_service::{
    batching::{Batching, Begin},
    imminent, now,
};
use tokio::{runtime::Handle, sync::mpsc, time::timeout_at};
use tonic::Status;

use crate::{
    desk::Desk,
    failure::Failure,
    metrics::{Fill, Instruments},
    model::{Features, Model},
    person::Person,
    resolve::Resolved,
    scheduler::{Key, Scheduler},
    slots::Slot,
    streams::{Outbound, StreamId, Streams},
    trail::Trail,
};

/// Commands that wait for the engine; beyond them, calls wait before they read on.
pub(crate) const COMMANDS: usize = 64;

/// What the engine is told.
pub(crate) enum Command {
    /// A call begins.
    Connect {
        /// The call.
        stream: StreamId,
        /// Where its responses go.
        outbound: Outbound,
    },
    /// A message came.
    Frames {
        /// The call.
        stream: StreamId,
        /// The message's frames.
        frames: Vec<RequestFrame>,
        /// When it came.
        at: Instant,
    },
    /// A prompt is encoded and its guidance settled, or refused.
    Resolved {
        /// The session.
        key: Key,
        /// Its slot.
        slot: Slot,
        /// What it shall run with.
        result: Box<Result<Resolved, Failure>>,
    },
    /// The generator will send no more on this call, but still reads.
    HalfClosed(StreamId),
    /// A call is over.
    Disconnected {
        /// The call.
        stream: StreamId,
        /// What is wrong with it, if anything.
        verdict: Option<Status>,
    },
    /// Refuse new sessions and end each call with its last session.
    Drain,
    /// End now.
    Stop,
}

/// Whether the engine goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It computed a pass; there may be more.
    Computed,
    /// It waits for something to arrive, at most until this moment.
    Waits(Option<Instant>),
    /// It was told to stop.
    Stopped,
}

/// An open session, beside its state in the scheduler.
struct Active {
    stream: StreamId,
    session_id: u64,
    person: Person,
    against_model: bool,
    over_vocabulary: bool,
    features: Features,
    /// When the hidden state of this step was there.
    ready: Instant,
    /// When this step's candidates came.
    asked: Instant,
    /// What its trace is told of it.
    trail: Trail,
}

/// The engine, to be run on a thread of its own.
pub(crate) struct Engine {
    commands: mpsc::Receiver<Command>,
    desk: Desk,
    model: Model,
    scheduler: Scheduler,
    batching: Batching,
    streams: Streams,
    sessions: HashMap<Key, Active>,
    instruments: Instruments,
    draining: bool,
    /// What the device failed with: nothing more can be computed.
    broken: Option<ForwardError>,
}

impl Engine {
    /// An engine without sessions.
    pub(crate) fn new(
        commands: mpsc::Receiver<Command>,
        desk: Desk,
        model: Model,
        scheduler: Scheduler,
        batching: Batching,
        instruments: Instruments,
    ) -> Self {
        Self {
            commands,
            desk,
            model,
            scheduler,
            batching,
            streams: Streams::default(),
            sessions: HashMap::new(),
            instruments,
            draining: false,
            broken: None,
        }
    }

    /// Works until it is told to stop, or nobody is left to tell it anything. `clock` wakes it where it does not
    /// wait for ever.
    ///
    /// # Errors
    /// The device failed for good. All calls end with this thread, and generators go on with other workers.
    pub(crate) fn run(mut self, clock: &Handle) -> Result<(), ForwardError> {
        loop {
            let progress = self.proceed();
            if let Some(error) = self.broken.take() {
                return Err(error);
            }
            let until = match progress {
                Progress::Stopped => return Ok(()),
                Progress::Computed => continue,
                Progress::Waits(until) => until,
            };
            let soon =
                if self.sessions.is_empty() { None } else { imminent(|| self.commands.try_recv().ok()) };
            let received = match (soon, until) {
                (Some(command), _) => Ok(Some(command)),
                (None, None) => Ok(self.commands.blocking_recv()),
                (None, Some(until)) => {
                    clock.block_on(async { timeout_at(until.into(), self.commands.recv()).await })
                }
            };
            match received {
                Ok(None | Some(Command::Stop)) => return Ok(()),
                Ok(Some(command)) => self.handle(command),
                Err(_) => {}
            }
        }
    }

    /// Takes what has arrived, answers what can be answered, and computes one pass where there is one.
    pub(crate) fn proceed(&mut self) -> Progress {
        // Bounded, so that a peer that floods the queue cannot keep the others from computing.
        for _ in 0..COMMANDS {
            match self.commands.try_recv() {
                Ok(Command::Stop) => return Progress::Stopped,
                Ok(command) => self.handle(command),
                Err(_) => break,
            }
        }
        self.answer();
        self.flush();
        match self.batching.begin(self.scheduler.demand(), now()) {
            Begin::Never => return Progress::Waits(None),
            Begin::Later(moment) => return Progress::Waits(Some(moment)),
            Begin::Now => self.step(),
        }
        self.answer();
        self.flush();
        Progress::Computed
    }

    /// Takes a command.
    pub(crate) fn handle(&mut self, command: Command) {
        match command {
            Command::Connect { stream, outbound } => self.streams.connect(stream, outbound),
            Command::Frames { stream, frames, at } => {
                for frame in frames.into_iter().filter_map(|f| f.frame) {
                    self.frame(stream, frame, at);
                }
            }
            Command::Resolved { key, slot, result } => {
                if let Err(failure) = (*result).and_then(|resolved| self.admit(key, slot, resolved)) {
                    self.fail(key, failure);
                }
            }
            Command::HalfClosed(stream) => self.streams.half_close(stream),
            Command::Disconnected { stream, verdict } => self.end(stream, verdict),
            Command::Drain => self.draining = true,
            Command::Stop => {}
        }
    }

    /// Ends a session with a failure.
    fn fail(&mut self, key: Key, failure: Failure) {
        if let Some((stream, session_id)) = self.sessions.get(&key).map(|s| (s.stream, s.session_id)) {
            self.fail_id(stream, session_id, failure);
        }
    }

    /// Ends the session of this id, where there is one, and says why.
    fn fail_id(&mut self, stream: StreamId, session_id: u64, failure: Failure) {
        tracing::debug!(
            stream,
            session_id,
            reason = failure.reason.as_str_name(),
            field = failure.field,
            "a session failed"
        );
        self.instruments.failed(failure.reason);
        if let Some(key) = self.streams.unbind(stream, session_id) {
            if let Some(active) = self.sessions.get(&key) {
                active.trail.failed(failure.reason);
            }
            self.remove(key);
        }
        self.streams.push(stream, response_frame::Frame::Failed(failure.frame(session_id)));
    }

    fn remove(&mut self, key: Key) {
        self.scheduler.remove(key);
        self.sessions.remove(&key);
    }

    fn end(&mut self, stream: StreamId, verdict: Option<Status>) {
        for key in self.streams.end(stream, verdict) {
            self.remove(key);
        }
    }

    /// Sends what this iteration has to say, and ends the calls that are over.
    fn flush(&mut self) {
        let load = self.load();
        self.instruments.fill(Fill {
            running: load.sessions as usize,
            waiting: self.sessions.len().saturating_sub(load.sessions as usize),
            steps: self.scheduler.waiting(),
            cache: self.scheduler.cache_stats(),
        });
        let (start, says) = (Instant::now(), self.streams.any());
        let stuck = self.streams.flush(load);
        if says {
            self.instruments.emit.record(start.elapsed());
        }
        for stream in stuck {
            tracing::warn!(stream, "the reader of a call is gone or far behind; the call is ended");
            self.end(stream, None);
        }
        for (stream, sessions) in self.streams.half_closed() {
            let mut left = sessions.len();
            for (session_id, key) in sessions {
                let owed = self.scheduler.session(key).is_some_and(|s| !s.started() || s.waiting());
                if !owed {
                    self.streams.unbind(stream, session_id);
                    self.remove(key);
                    left -= 1;
                }
            }
            if left == 0 {
                self.end(stream, None);
            }
        }
        if self.draining {
            for stream in self.streams.idle() {
                self.end(
                    stream,
                    Some(Status::unavailable("the worker is shutting down; go on with another")),
                );
            }
        }
    }

    /// How busy it is.
    pub(crate) fn load(&self) -> Load {
        let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
        let cache = self.scheduler.cache_stats();
        Load {
            sessions: count(self.scheduler.admitted()),
            slots: count(self.scheduler.slots()),
            blocks_used: count(cache.used),
            blocks_total: count(cache.total),
            draining: self.draining,
        }
    }
}

fn internal(error: &ForwardError) -> Failure {
    if error.is_out_of_memory() {
        let message = "the device's memory is full; try again later or elsewhere";
        return Failure::new(FailureReason::Exhausted, message);
    }
    Failure::new(FailureReason::Internal, format!("{error}; another worker may succeed"))
}
