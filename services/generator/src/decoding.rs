//! Every decision of the engine: who is admitted, computed, asked for rewards, moved, ended.
//!
//! Pure state: it computes nothing and waits for nothing. Time is passed in, and what it sends goes into
//! channels that never make it wait. The engine's thread drives it, and so does a simulation.

mod news;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use attune_engine::{Assets, Output as Wanted, SequenceRows};
use attune_guidance::{Candidates, RowError, Term};
use attune_kernels::{FuseRow, SelectRow};
use attune_service::{status, telemetry::trace};
use tonic::Status;

use crate::{
    fuse::Fuse,
    guides::{self, Patience},
    metrics::{Instruments, Lap},
    pool::Pool,
    scheduler::{Load, PlannedRows, Scheduler, SequenceId},
    sequence::{Next, Sequence, Submission},
    worker::Problem,
};

/// How far down the line of those without room is looked for one whose reward model has some.
const ROOMLESS_LOOKED_AT: usize = 64;

/// When a client may try again that made room on the device.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All running and waiting texts.
pub(crate) struct Decoding {
    assets: Arc<Assets>,
    scheduler: Scheduler,
    pool: Pool,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Refused by a worker: when they queue again.
    parked: Vec<(Instant, SequenceId)>,
    /// They queue again once a worker has room, the oldest first.
    roomless: BTreeSet<SequenceId>,
    /// Their newest tokens have not been sent to their clients yet.
    untold: Vec<SequenceId>,
    last_id: SequenceId,
    patience: Patience,
    fuse: Fuse,
    instruments: Instruments,
    /// Since when there are rows that could be computed.
    runnable_since: Option<Instant>,
}

/// What the engine does next.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Compute these rows and report by [`Decoding::computed`].
    Compute(Vec<PlannedRows>),
    /// Wait for something to arrive, at most until this moment.
    Wait(Option<Instant>),
}

impl Decoding {
    /// Nothing to do yet.
    pub(crate) fn new(
        assets: Arc<Assets>,
        scheduler: Scheduler,
        pool: Pool,
        patience: Patience,
        fuse: Fuse,
        instruments: Instruments,
    ) -> Self {
        Self {
            assets,
            scheduler,
            pool,
            sequences: BTreeMap::new(),
            parked: Vec::new(),
            roomless: BTreeSet::new(),
            untold: Vec::new(),
            last_id: 0,
            patience,
            fuse,
            instruments,
            runnable_since: None,
        }
    }

    /// Takes a new text.
    pub(crate) fn submit(&mut self, submission: Submission) {
        let sequence = Sequence::new(submission);
        self.last_id += 1;
        self.scheduler.submit(self.last_id, &sequence.owner, sequence.tokens.clone());
        self.sequences.insert(self.last_id, sequence);
    }

    /// Does all that can be done without computing, and says what comes next.
    pub(crate) fn turn(&mut self, now: Instant) -> Turn {
        self.choose(now);
        self.end_abandoned(now);
        for id in self.scheduler.running().collect::<Vec<_>>() {
            self.open_sessions(id, now);
        }
        // Who goes on unguided from here waits for no rewards any more.
        self.choose(now);
        self.requeue_parked(now);
        // Each is asked for at most once a turn, so that the loop ends.
        let mut called = BTreeSet::new();
        loop {
            self.requeue_roomless(&mut called, now);
            let admitted = self.scheduler.admit();
            if admitted.is_empty() {
                break;
            }
            for id in admitted {
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.trail.admitted(now);
                }
                self.open_sessions(id, now);
            }
        }
        // Chosen tokens leave for the workers before the engine's own forward pass begins: they read them meanwhile.
        self.flush(now);
        if !self.scheduler.has_work() {
            self.runnable_since = None;
            return Turn::Wait(self.next_deadline());
        }
        let since = *self.runnable_since.get_or_insert(now);
        let late = self.sequences.values().any(|s| s.pending.is_some());
        if late && now < since + self.patience.grace {
            return Turn::Wait(Some(since + self.patience.grace));
        }
        self.runnable_since = None;
        let plan = self.scheduler.plan();
        for id in plan.preempted {
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.release();
            }
        }
        Turn::Compute(plan.rows)
    }

    /// Ends those whose clients have gone or wait no longer.
    fn end_abandoned(&mut self, now: Instant) {
        let gone: Vec<SequenceId> =
            self.sequences.iter().filter(|(_, s)| s.is_cancelled()).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id);
        }
        let late = self.sequences.iter().filter(|(_, s)| s.deadline.is_some_and(|d| d <= now));
        for (id, stranded) in late.map(|(id, s)| (*id, s.is_stranded())).collect::<Vec<_>>() {
            let status = match self.sequences.get(&id) {
                Some(s) if stranded => s.interrupted("no reward worker could go on before the deadline"),
                _ => Status::deadline_exceeded("the deadline passed before the text was finished"),
            };
            self.fail(id, status);
        }
    }

    /// Queues again who backed off long enough.
    fn requeue_parked(&mut self, now: Instant) {
        let parked = std::mem::take(&mut self.parked);
        let (due, later): (Vec<_>, Vec<_>) = parked.into_iter().partition(|(until, _)| *until <= now);
        self.parked = later;
        for (_, id) in due {
            if let Some(sequence) = self.sequences.get(&id) {
                self.scheduler.submit(id, &sequence.owner, sequence.tokens.clone());
            }
        }
    }

    /// Queues again, before all others, the oldest of those for which a worker has room now. One at a
    /// time: it takes of the room before the next is asked.
    fn requeue_roomless(&mut self, called: &mut BTreeSet<SequenceId>, now: Instant) {
        let waiting = self.roomless.iter().filter(|id| !called.contains(id)).take(ROOMLESS_LOOKED_AT);
        let waiting = waiting.filter_map(|id| Some((*id, self.sequences.get(id)?)));
        let next = { waiting }.find(|(_, sequence)| !guides::lacks_room(sequence, &self.pool, now));
        if let Some((id, sequence)) = next {
            self.scheduler.resubmit(id, &sequence.owner, sequence.tokens.clone());
            self.roomless.remove(&id);
            called.insert(id);
        }
    }

    /// Opens what sessions a running sequence lacks.
    fn open_sessions(&mut self, id: SequenceId, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let verdict = guides::open(sequence, id, &mut self.pool, &self.patience, now);
        self.follow(id, verdict, now);
    }

    /// When something must be looked at though nothing arrives.
    fn next_deadline(&self) -> Option<Instant> {
        let parked = self.parked.iter().map(|(until, _)| *until);
        let sequences = self.sequences.values();
        let own = sequences.clone().filter_map(|s| s.deadline);
        let guides = sequences.filter_map(|s| guides::next_deadline(s, &self.patience));
        parked.chain(own).chain(guides).min()
    }

    /// The rows as the forward pass takes them.
    pub(crate) fn batch(&self, rows: &[PlannedRows]) -> Vec<SequenceRows<'_>> {
        let row = |r: &PlannedRows| {
            Some(SequenceRows {
                tokens: self.sequences.get(&r.id)?.tokens.get(r.start..r.start + r.count)?,
                start: r.start,
                blocks: self.scheduler.table(r.id)?,
                output: if r.complete { Wanted::Last } else { Wanted::Nothing },
            })
        };
        rows.iter().filter_map(row).collect()
    }

    /// How the candidates of the complete rows are selected, in their order.
    pub(crate) fn selection(&self, rows: &[PlannedRows]) -> Vec<SelectRow<'_>> {
        let complete = rows.iter().filter(|r| r.complete).filter_map(|r| self.sequences.get(&r.id));
        complete.map(|s| SelectRow { k: s.request.sampling.candidates, edits: s.edits() }).collect()
    }

    /// Links a step's span to the requests that have rows in it.
    pub(crate) fn link(&self, span: &tracing::Span, rows: &[PlannedRows]) {
        let sequences = rows.iter().filter_map(|row| self.sequences.get(&row.id));
        trace::link(span, sequences.map(|sequence| trace::context(sequence.trail.span())));
    }

    /// Takes the candidates of the complete rows, and asks the workers for their rewards.
    pub(crate) fn computed(
        &mut self,
        rows: &[PlannedRows],
        selected: Vec<Result<Candidates, RowError>>,
        now: Instant,
    ) {
        for row in rows {
            self.scheduler.advance(row.id, row.count);
        }
        let complete = rows.iter().filter(|r| r.complete).map(|r| r.id);
        for (id, candidates) in complete.zip(selected) {
            let found = self.scheduler.found(id);
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.prefilled(found);
            match candidates {
                Ok(candidates) => sequence.ask(candidates, now),
                Err(error) => self.fail(id, row_status(error)),
            }
        }
        // The questions leave before anything else is done.
        self.flush(now);
    }

    /// Who runs and waits, and how the cache is used.
    pub(crate) fn load(&self) -> Load {
        self.scheduler.load()
    }

    /// What the steps are measured with.
    pub(crate) fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// Whether there is no text at all.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Texts, sessions and cache blocks that it holds.
    pub(crate) fn held(&self) -> (usize, usize, usize) {
        (self.sequences.len(), self.pool.sessions(), self.load().cache.used)
    }

    /// Sessions opened anew so far.
    pub(crate) fn moved(&self) -> u64 {
        self.pool.counters().moved.get()
    }

    /// The pass over these rows failed.
    pub(crate) fn not_computed(&mut self, rows: &[PlannedRows]) {
        for row in rows {
            self.fail(row.id, Status::internal("the forward pass failed"));
        }
    }

    /// The device has too little memory for these rows: the newest text makes room, the others go on.
    pub(crate) fn out_of_memory(&mut self, rows: &[PlannedRows]) {
        if let Some(newest) = rows.iter().map(|row| row.id).max() {
            let message = "the device's memory is full; try again later, or with a shorter prompt";
            self.fail(newest, status::exhausted(message, RETRY_AFTER));
        }
    }

    /// Ends all that still runs, and says why.
    pub(crate) fn stop(mut self, why: &str, now: Instant) {
        for (_, sequence) in std::mem::take(&mut self.sequences) {
            let status = sequence.interrupted(why);
            sequence.fail(status);
        }
        self.flush(now);
    }

    /// Chooses the tokens of all steps that have their rewards.
    fn choose(&mut self, now: Instant) {
        let mut lap = Lap::start();
        let ready = self.sequences.iter_mut().filter_map(|(&id, s)| Some((id, s.rewarded()?)));
        let (mut steps, mut failed) = (Vec::new(), Vec::new());
        for (id, rewarded) in ready {
            match rewarded {
                Ok(rewarded) => steps.push((id, rewarded)),
                Err(error) => failed.push((id, error)),
            }
        }
        let terms: Vec<Vec<Term<'_>>> = steps.iter().map(|(_, step)| step.terms()).collect();
        let rows: Vec<FuseRow<'_>> = steps.iter().zip(&terms).map(|((_, step), t)| step.row(t)).collect();
        let chosen = self.fuse.choose(&rows);
        let each = lap.time() / rows.len().max(1) as u32;
        for ((id, step), chosen) in steps.iter().zip(chosen) {
            self.instruments.fuse.record(each);
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            let next = chosen.and_then(|c| sequence.choose(step, &c, &self.assets, &self.instruments, now));
            match next {
                Ok(Next::Continue(token)) => {
                    self.scheduler.push(*id, token);
                    self.untold.push(*id);
                }
                Ok(Next::Finish(reason)) => {
                    if let Some(mut sequence) = self.remove(*id) {
                        sequence.tell(&self.instruments);
                        sequence.finish(reason, now);
                    }
                }
                Err(error) => failed.push((*id, error)),
            }
        }
        for (id, error) in failed {
            self.fail(id, row_status(error));
        }
    }

    fn fail(&mut self, id: SequenceId, status: Status) {
        if let Some(sequence) = self.remove(id) {
            sequence.fail(status);
        }
    }

    fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.scheduler.remove(id);
        self.roomless.remove(&id);
        self.parked.retain(|(_, parked)| *parked != id);
        self.sequences.remove(&id)
    }

    /// Sends the clients the tokens that were chosen since it was last called.
    pub(crate) fn tell(&mut self) {
        for id in self.untold.drain(..) {
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.tell(&self.instruments);
            }
        }
    }

    fn flush(&mut self, now: Instant) {
        for worker in self.pool.flush() {
            self.down(worker, Problem::Unreachable("the worker does not take messages".into()), true, now);
        }
    }
}

fn row_status(error: RowError) -> Status {
    Status::internal(error.to_string())
}
