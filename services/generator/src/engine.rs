//! The thread that owns the model: it decodes every sequence, one iteration after the other.
//!
//! An iteration: take what arrived (rewards choose tokens, and `Advance` leaves for the workers),
//! admit, plan, run the forward pass, select candidates, and ask the workers for their rewards. The
//! workers read the chosen tokens while this thread's own forward pass runs.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use attune_engine::{BaseModel, ForwardError, Output as Wanted, SequenceRows, kv::KvCache};
use attune_guidance::RowError;
use attune_kernels::{SelectRow, Threads, select};
use attune_proto::reward::v1::response_frame::Frame;
use attune_service::imminent;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use tokio::sync::watch;
use tonic::Status;

use crate::{
    guides::{self, Verdict},
    metrics::{Instruments, Lap},
    pool::Pool,
    scheduler::{Load, PlannedRows, Scheduler, SequenceId},
    sequence::{Next, Sequence, Submission},
    worker::{WorkerEvent, WorkerId},
};

/// What the engine is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A new text.
    Submit(Box<Submission>),
    /// Something of a worker.
    Worker(WorkerId, WorkerEvent),
    /// A client has gone: look who it was.
    Look,
    /// End now; what still runs ends UNAVAILABLE.
    Stop,
}

/// How long the engine waits for others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// How long runnable rows wait for the rewards of the others, to share an iteration.
    pub(crate) grace: Duration,
    /// How long a text waits for a worker, or for a step's rewards.
    pub(crate) reward: Duration,
}

/// The engine's ends of its channels.
pub(crate) struct Ends {
    /// What it is told.
    pub(crate) commands: Receiver<Command>,
    /// Where it says how busy it is.
    pub(crate) load: watch::Sender<Load>,
    /// Where it says what its steps take.
    pub(crate) instruments: Instruments,
}

/// The engine's state; it lives on its own thread.
pub(crate) struct Engine {
    model: Arc<BaseModel>,
    cache: KvCache,
    scheduler: Scheduler,
    pool: Pool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Refused by a worker for want of room: when they queue again.
    parked: Vec<(Instant, SequenceId)>,
    last_id: SequenceId,
    patience: Patience,
    threads: Threads,
    commands: Receiver<Command>,
    load: watch::Sender<Load>,
    instruments: Instruments,
}

impl Engine {
    /// An idle engine.
    pub(crate) fn new(
        model: Arc<BaseModel>,
        cache: KvCache,
        scheduler: Scheduler,
        workers: usize,
        patience: Patience,
        threads: Threads,
        Ends { commands, load, instruments }: Ends,
    ) -> Self {
        let sequences = BTreeMap::new();
        let pool = Pool::new(workers);
        Self {
            model,
            cache,
            scheduler,
            pool,
            sequences,
            parked: Vec::new(),
            last_id: 0,
            patience,
            threads,
            commands,
            load,
            instruments,
        }
    }

    /// Decodes until it is told to stop.
    pub(crate) fn run(mut self) {
        while self.receive() {
            self.sweep();
            self.admit();
            let plan = self.scheduler.plan();
            for id in plan.preempted {
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.release();
                }
            }
            if let Err(error) = self.iterate(&plan.rows) {
                tracing::error!(%error, "an iteration failed");
                for rows in &plan.rows {
                    self.fail(rows.id, Status::internal("the forward pass failed"));
                }
            }
        }
        for (_, sequence) in std::mem::take(&mut self.sequences) {
            sequence.fail(Status::unavailable("the generator is shutting down"));
        }
        self.flush();
    }

    /// Takes commands until rows can run: all rewards are here, or the grace for the late ones is over.
    /// False: stop.
    fn receive(&mut self) -> bool {
        let mut runnable_since = None;
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Ok(command) => {
                    self.handle(command);
                    continue;
                }
                Err(TryRecvError::Empty) => {}
            }
            // Chosen tokens leave before this thread's own forward pass begins.
            self.flush();
            self.load.send_replace(self.scheduler.load());
            let now = Instant::now();
            let until = if self.scheduler.has_work() || self.scheduler.can_admit() {
                let since = *runnable_since.get_or_insert(now);
                let late = self.sequences.values().any(|s| s.pending.is_some());
                if !late || now >= since + self.patience.grace {
                    return true;
                }
                Some(since + self.patience.grace)
            } else {
                self.next_deadline()
            };
            let soon =
                if self.sequences.is_empty() { None } else { imminent(|| self.commands.try_recv().ok()) };
            let received = match (soon, until) {
                (Some(command), _) => Ok(command),
                (None, Some(until)) => self.commands.recv_deadline(until),
                (None, None) => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    /// When something must be looked at though nothing arrives.
    fn next_deadline(&self) -> Option<Instant> {
        let parked = self.parked.iter().map(|(until, _)| *until);
        let sequences = self.sequences.values();
        let own = sequences.clone().filter_map(|s| s.deadline);
        let guides = sequences.filter_map(|s| guides::next_deadline(s, self.patience.reward));
        parked.chain(own).chain(guides).min()
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => {
                let sequence = Sequence::new(*submission);
                self.last_id += 1;
                self.scheduler.submit(self.last_id, &sequence.owner, sequence.tokens.clone());
                self.sequences.insert(self.last_id, sequence);
            }
            Command::Worker(worker, WorkerEvent::Up(description, requests)) => {
                self.pool.up(worker, *description, requests);
                for guide in self.sequences.values_mut().flat_map(|s| &mut s.guides) {
                    guide.retry_at = None;
                }
                self.sweep();
            }
            Command::Worker(worker, WorkerEvent::Frames(frames)) => {
                for frame in frames {
                    self.answer(worker, frame);
                }
            }
            Command::Worker(worker, WorkerEvent::Down(problem)) => {
                for (id, index) in self.pool.down(worker, problem) {
                    if let Some(sequence) = self.sequences.get_mut(&id) {
                        guides::lose(sequence, index, Instant::now());
                    }
                }
            }
            Command::Look => self.sweep(),
            Command::Stop => {}
        }
    }

    /// A worker's answer to one session. An answer to a session closed meanwhile is ignored.
    fn answer(&mut self, worker: WorkerId, frame: Frame) {
        let session = match &frame {
            Frame::Load(load) => return self.pool.load(worker, load.sessions),
            Frame::Opened(opened) => opened.session_id,
            Frame::Rewards(rewards) => rewards.session_id,
            Frame::Failed(failed) => failed.session_id,
        };
        let Some((id, index)) = self.pool.holder(session) else { return };
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match guides::answer(sequence, index, frame, Instant::now()) {
            Verdict::Fine if sequence.ready() => self.choose(id),
            Verdict::Fine => {}
            Verdict::Wait(backoff) => {
                sequence.release();
                self.scheduler.remove(id);
                self.parked.push((Instant::now() + backoff, id));
            }
            Verdict::Fail(status) => self.fail(id, status),
        }
    }

    /// Ends who was cancelled or is late, queues again who backed off, and opens lost sessions anew.
    fn sweep(&mut self) {
        let now = Instant::now();
        let gone: Vec<SequenceId> =
            self.sequences.iter().filter(|(_, s)| s.is_cancelled()).map(|(id, _)| *id).collect();
        for id in gone {
            self.scheduler.remove(id);
            self.sequences.remove(&id);
        }
        let late = self.sequences.iter().filter(|(_, s)| s.deadline.is_some_and(|d| d <= now));
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.fail(id, Status::deadline_exceeded("the deadline passed before the text was finished"));
        }
        let (due, later) = std::mem::take(&mut self.parked).into_iter().partition(|(until, _)| *until <= now);
        self.parked = later;
        let due: Vec<(Instant, SequenceId)> = due;
        for (_, id) in due {
            if let Some(sequence) = self.sequences.get(&id) {
                self.scheduler.submit(id, &sequence.owner, sequence.tokens.clone());
            }
        }
        for id in self.sequences.keys().copied().collect::<Vec<_>>() {
            self.open_sessions(id, now);
        }
    }

    /// Opens what sessions a running sequence lacks.
    fn open_sessions(&mut self, id: SequenceId, now: Instant) {
        if self.scheduler.table(id).is_none() {
            return;
        }
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match guides::open(sequence, id, &mut self.pool, self.patience.reward, now) {
            Verdict::Fine if sequence.ready() => self.choose(id),
            Verdict::Fail(status) => self.fail(id, status),
            Verdict::Fine | Verdict::Wait(_) => {}
        }
    }

    fn admit(&mut self) {
        let now = Instant::now();
        for id in self.scheduler.admit() {
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.admitted(now);
            }
            self.open_sessions(id, now);
        }
        self.flush();
    }

    /// Runs the forward pass over the planned rows and sends off their candidates.
    fn iterate(&mut self, rows: &[PlannedRows]) -> Result<(), ForwardError> {
        // An admission can fail between plan and pass.
        let rows: Vec<&PlannedRows> = rows.iter().filter(|r| self.sequences.contains_key(&r.id)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let batch: Vec<SequenceRows<'_>> = rows
            .iter()
            .map(|r| SequenceRows {
                tokens: &self.sequences[&r.id].tokens[r.start..r.start + r.count],
                start: r.start,
                blocks: self.scheduler.table(r.id).unwrap_or_default(),
                output: if r.complete { Wanted::Last } else { Wanted::Nothing },
            })
            .collect();
        let packed = rows.iter().map(|r| r.count).sum();
        self.instruments.pass(packed);
        let mut lap = Lap::start();
        let logits = {
            let _span = tracing::debug_span!("forward", rows = packed).entered();
            let hidden = self.model.decoder.forward(&batch, &self.cache)?;
            self.model.logits(&hidden)?
        };
        self.instruments.forward.record(lap.time());
        let complete: Vec<SequenceId> = rows.iter().filter(|r| r.complete).map(|r| r.id).collect();
        let edits: Vec<SelectRow<'_>> = complete
            .iter()
            .map(|id| &self.sequences[id])
            .map(|s| SelectRow { k: s.request.sampling.candidates, edits: s.edits() })
            .collect();
        let selected = {
            let _span = tracing::debug_span!("select", rows = edits.len()).entered();
            select(&logits, self.model.assets.config.vocab, &edits, &self.threads)
        };
        self.instruments.select.record(lap.time());
        for row in rows {
            self.scheduler.advance(row.id, row.count);
        }
        let now = Instant::now();
        for (id, candidates) in complete.into_iter().zip(selected) {
            let found = self.scheduler.found(id);
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.prefilled(found);
            match candidates {
                Ok(candidates) => sequence.ask(candidates, now),
                Err(error) => self.fail(id, row_status(error)),
            }
        }
        self.flush();
        let plain = |(id, s): (&SequenceId, &Sequence)| (s.guides.is_empty() && s.ready()).then_some(*id);
        for id in self.sequences.iter().filter_map(plain).collect::<Vec<_>>() {
            self.choose(id);
        }
        Ok(())
    }

    fn choose(&mut self, id: SequenceId) {
        let now = Instant::now();
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match sequence.choose(&self.model, &self.instruments, now) {
            Ok(Next::Wait) => {}
            Ok(Next::Continue(token)) => self.scheduler.push(id, token),
            Ok(Next::Finish(reason)) => {
                self.scheduler.remove(id);
                if let Some(sequence) = self.sequences.remove(&id) {
                    sequence.finish(reason, now);
                }
            }
            Err(error) => self.fail(id, row_status(error)),
        }
    }

    fn fail(&mut self, id: SequenceId, status: Status) {
        self.scheduler.remove(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            sequence.fail(status);
        }
    }

    fn flush(&mut self) {
        for worker in self.pool.flush() {
            let problem = crate::worker::Problem::Unreachable("the worker does not take messages".into());
            self.handle(Command::Worker(worker, WorkerEvent::Down(problem)));
        }
    }
}

fn row_status(error: RowError) -> Status {
    Status::internal(error.to_string())
}
