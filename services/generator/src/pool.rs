//! The reward workers as the engine sees them: which are up, and the sessions on them.
//!
//! Frames are gathered and leave as messages to each worker, once an iteration. Pure state over
//! channels that never wait; time is passed in.

mod session;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use attune_proto::reward::v1::{
    DescribeResponse, Load, Open, RequestFrame, ScoreRequest, open::By, request_frame::Frame,
};
use attune_service::telemetry::trace::{self, TARGET};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::mpsc;
use tracing::field::Empty;

use crate::{
    breaker::Breaker,
    budget::RetryBudget,
    choice::{self, NoWorker, Wanted},
    counters::Counters,
    scheduler::SequenceId,
    worker::{Problem, WorkerId},
};

pub(crate) use session::{Before, Opening, Session};

/// About how many bytes of frames go into one message: below gRPC's usual limit of 4 MiB.
const MESSAGE_BYTES: usize = 1 << 20;

/// Whose session: a sequence and the index of one of its guidances.
pub(crate) type Holder = (SequenceId, usize);

/// Session ids to their workers and holders.
type Routes = Rc<RefCell<HashMap<u64, (WorkerId, Holder)>>>;

/// All workers.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    pub(crate) dice: StdRng,
    routes: Routes,
    last_session: u64,
    budget: RetryBudget,
    counters: Arc<Counters>,
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    pub(crate) state: State,
    /// What it said of itself when last connected.
    pub(crate) description: Option<DescribeResponse>,
    pub(crate) breaker: Breaker,
    /// No longer one of the workers.
    leaving: bool,
}

/// Whether messages reach it.
#[derive(Debug)]
pub(crate) enum State {
    /// No.
    Down(Problem),
    /// Yes.
    Up(Box<Link>),
}

/// A connection to a worker.
#[derive(Debug)]
pub(crate) struct Link {
    requests: mpsc::Sender<ScoreRequest>,
    outbox: Rc<RefCell<Vec<RequestFrame>>>,
    /// Sessions of this generator.
    sessions: Rc<Cell<u32>>,
    /// Sessions of other generators, as last reported.
    others: u32,
    /// The most sessions it takes.
    slots: u32,
    /// It is shutting down.
    draining: bool,
}

impl Link {
    /// Sessions on it, over all generators.
    pub(crate) fn sessions(&self) -> u32 {
        self.sessions.get().saturating_add(self.others)
    }

    /// The most sessions it takes.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }
}

impl Worker {
    /// Its connection, if it is up.
    pub(crate) fn link(&self) -> Option<&Link> {
        match &self.state {
            State::Up(link) => Some(link),
            State::Down(_) => None,
        }
    }

    /// Whether it is on its way out: no new sessions, and the running ones better go elsewhere.
    pub(crate) fn retiring(&self) -> bool {
        self.leaving || self.link().is_some_and(|link| link.draining)
    }
}

impl Pool {
    /// A pool without workers. `seed` decides between workers that are equally good.
    pub(crate) fn new(seed: u64, counters: Arc<Counters>) -> Self {
        Self {
            workers: BTreeMap::new(),
            dice: StdRng::seed_from_u64(seed),
            routes: Rc::default(),
            last_session: 0,
            budget: RetryBudget::new(),
            counters,
        }
    }

    /// What has happened.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// There is another worker.
    pub(crate) fn found(&mut self, id: WorkerId, name: String) {
        let state = State::Down(Problem::default());
        let worker = Worker { name, state, description: None, breaker: Breaker::new(), leaving: false };
        self.workers.insert(id, worker);
    }

    /// A worker is connected.
    pub(crate) fn up(
        &mut self,
        id: WorkerId,
        description: DescribeResponse,
        requests: mpsc::Sender<ScoreRequest>,
    ) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.state = State::Up(Box::new(Link {
            requests,
            outbox: Rc::default(),
            sessions: Rc::default(),
            others: 0,
            slots: description.slots.max(1),
            draining: false,
        }));
        worker.description = Some(description);
    }

    /// A worker is gone; whether it failed, or ended in good order. Gives those whose sessions are lost
    /// with it, and whether that is the worker's failure: one that says that it shuts down has not failed.
    pub(crate) fn down(
        &mut self,
        id: WorkerId,
        problem: Problem,
        failed: bool,
        now: Instant,
    ) -> (Vec<Holder>, bool) {
        let Some(worker) = self.workers.get_mut(&id) else { return (Vec::new(), false) };
        let failed = failed && !worker.retiring();
        if worker.link().is_some() {
            self.counters.disconnected.add();
            if failed {
                self.failed(id, now);
            }
        }
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.state = State::Down(problem);
        }
        (self.holders(id), failed)
    }

    /// A worker shall be used no more.
    pub(crate) fn leaving(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.leaving = true;
        }
    }

    /// A worker is no more.
    pub(crate) fn gone(&mut self, id: WorkerId) {
        self.workers.remove(&id);
    }

    /// A worker reported its load.
    pub(crate) fn load(&mut self, id: WorkerId, load: &Load) {
        let Some(Worker { state: State::Up(link), name, .. }) = self.workers.get_mut(&id) else { return };
        link.others = load.sessions.saturating_sub(link.sessions.get());
        link.slots = load.slots.max(1);
        if load.draining && !link.draining {
            tracing::info!(worker = name, "reward worker is shutting down; its sessions move");
        }
        link.draining = load.draining;
    }

    /// A worker answered well.
    pub(crate) fn succeeded(&mut self, id: WorkerId) {
        self.budget.deposit();
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.breaker.succeeded();
        }
    }

    /// A worker failed a session.
    pub(crate) fn failed(&mut self, id: WorkerId, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.breaker.failed(now, &mut self.dice) {
            self.counters.taken_out.add();
            tracing::warn!(
                worker = worker.name,
                "reward worker keeps failing; it gets no sessions for a while"
            );
        }
    }

    /// A worker broke the protocol. Gives all whose sessions are on it: none of its answers can be relied
    /// on.
    pub(crate) fn distrust(&mut self, id: WorkerId, problem: &str, now: Instant) -> Vec<Holder> {
        let Some(worker) = self.workers.get_mut(&id) else { return Vec::new() };
        self.counters.distrusted.add();
        tracing::error!(worker = worker.name, problem, "reward worker broke the protocol; its sessions move");
        worker.breaker.distrust(now, &mut self.dice);
        self.holders(id)
    }

    fn holders(&self, id: WorkerId) -> Vec<Holder> {
        let routes = self.routes.borrow();
        let mut holders: Vec<Holder> =
            routes.values().filter(|(worker, _)| *worker == id).map(|(_, holder)| *holder).collect();
        // In the order of the sequences, so that the same events always do the same.
        holders.sort_unstable();
        holders
    }

    /// Opens a session on a worker that serves the guidance's reward model.
    ///
    /// # Errors
    /// No worker can take it.
    pub(crate) fn open(
        &mut self,
        holder: Holder,
        opening: &Opening<'_>,
        now: Instant,
    ) -> Result<Session, NoWorker> {
        let avoid = match opening.before {
            Before::Lost(worker) => Some(worker),
            Before::Nothing | Before::Moved => None,
        };
        let worker = choice::choose(self, &opening.wanted(), avoid, now)?;
        if avoid.is_some() && !self.budget.withdraw(now) {
            self.counters.over_budget.add();
            return Err(NoWorker::Later("too many sessions were lost lately to open them all again".into()));
        }
        match opening.before {
            Before::Nothing => self.counters.opened.add(),
            Before::Moved | Before::Lost(_) => self.counters.moved.add(),
        }
        self.last_session += 1;
        let id = self.last_session;
        let gone = || NoWorker::Unreachable("the worker has just gone".into());
        let Worker { state: State::Up(link), breaker, name, .. } =
            self.workers.get_mut(&worker).ok_or_else(gone)?
        else {
            return Err(gone());
        };
        breaker.given(now);
        self.routes.borrow_mut().insert(id, (worker, holder));
        link.sessions.set(link.sessions.get() + 1);
        let by = match opening.resolved {
            Some(resolved) => By::Resolved(resolved.clone()),
            None => By::Guidance(opening.guidance.clone()),
        };
        let span = tracing::info_span!(
            target: TARGET,
            parent: opening.request,
            "reward session",
            otel.kind = "client",
            otel.status_code = Empty,
            server.address = name.as_str(),
            attune.guidance = holder.1 as i64,
            attune.session.moved = !matches!(opening.before, Before::Nothing),
        );
        let traceparent = trace::traceparent(&span);
        let session = Session {
            id,
            span,
            worker,
            outbox: Rc::clone(&link.outbox),
            sessions: Rc::clone(&link.sessions),
            routes: Rc::clone(&self.routes),
        };
        session.send(Frame::Open(Open {
            session_id: id,
            owner: opening.owner.to_owned(),
            prompt: opening.resolved.is_none().then(|| opening.prompt.clone()),
            generated_tokens: opening.generated.to_vec(),
            by: Some(by),
            traceparent,
        }));
        Ok(session)
    }

    /// Whether a session's worker is on its way out and another has room for it.
    pub(crate) fn should_move(&self, session: &Session, wanted: &Wanted<'_>, now: Instant) -> bool {
        self.workers.get(&session.worker).is_some_and(Worker::retiring)
            && choice::room(self, wanted, now).is_some_and(|room| room > 0)
    }

    /// The worker and the holder of a session; `None` for one closed meanwhile.
    pub(crate) fn route(&self, session: u64) -> Option<(WorkerId, Holder)> {
        self.routes.borrow().get(&session).copied()
    }

    /// Sessions that are open.
    pub(crate) fn sessions(&self) -> usize {
        self.routes.borrow().len()
    }

    /// Sends what was gathered. Gives the workers that do not take it.
    pub(crate) fn flush(&mut self) -> Vec<WorkerId> {
        let mut stuck = Vec::new();
        for (&id, worker) in &mut self.workers {
            let State::Up(link) = &worker.state else { continue };
            let mut frames = link.outbox.take();
            while !frames.is_empty() {
                let rest = frames.split_off(message_length(&frames));
                if link.requests.try_send(ScoreRequest { frames }).is_err() {
                    stuck.push(id);
                    break;
                }
                frames = rest;
            }
            if worker.leaving && link.sessions.get() == 0 {
                // Without its sender the call ends.
                worker.state = State::Down(Problem::Unreachable("the worker was removed".into()));
            }
        }
        stuck
    }
}

/// How many of the frames make one message.
fn message_length(frames: &[RequestFrame]) -> usize {
    let mut bytes = 0;
    let fits = |frame: &&RequestFrame| {
        bytes += size(frame);
        bytes <= MESSAGE_BYTES
    };
    frames.iter().take_while(fits).count().max(1)
}

/// About the bytes of a frame on the wire.
fn size(frame: &RequestFrame) -> usize {
    match &frame.frame {
        Some(Frame::Open(open)) => prost::Message::encoded_len(open),
        Some(Frame::Candidates(candidates)) => 16 + 5 * candidates.token_ids.len(),
        Some(Frame::Advance(_) | Frame::Close(_)) | None => 24,
    }
}
