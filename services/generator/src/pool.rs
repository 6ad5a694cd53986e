//! The reward workers as the engine sees them: which are up, and the sessions on them.
//!
//! Frames are gathered and leave as one message per worker, once an iteration.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use attune_proto::reward::v1::{
    Advance, Candidates, Close, DescribeResponse, Guidance, Open, Prompt, RequestFrame, ResolvedGuidance,
    ScoreRequest, open::By, request_frame::Frame,
};
use tokio::sync::mpsc;

use crate::{
    scheduler::SequenceId,
    worker::{Problem, WorkerId},
};

/// Whose session: a sequence and the index of one of its guidances.
pub(crate) type Holder = (SequenceId, usize);

/// Session ids to their workers and holders.
type Routes = Rc<RefCell<HashMap<u64, (WorkerId, Holder)>>>;

/// All configured workers.
#[derive(Debug)]
pub(crate) struct Pool {
    workers: Vec<Worker>,
    routes: Routes,
    last_id: u64,
}

#[derive(Debug)]
enum Worker {
    Down(Problem),
    Up(Box<Link>),
}

#[derive(Debug)]
struct Link {
    description: DescribeResponse,
    requests: mpsc::Sender<ScoreRequest>,
    outbox: Rc<RefCell<Vec<RequestFrame>>>,
    /// Sessions of this generator.
    sessions: Rc<Cell<u32>>,
    /// Sessions of other generators, as last reported.
    others: u32,
}

/// Why no session could be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoWorker {
    /// None is connected now; one may be soon.
    Unreachable(String),
    /// What is there does not fit the base model.
    Unfit(String),
    /// Those connected serve other reward models.
    NoSuchModel(String),
}

/// What a session is opened with.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    /// Whose text it is.
    pub(crate) owner: &'a str,
    /// The base model's prompt.
    pub(crate) prompt: &'a Prompt,
    /// The tokens generated so far.
    pub(crate) generated: &'a [u32],
    /// As the client asked.
    pub(crate) guidance: &'a Guidance,
    /// As an earlier session resolved it: then this is what counts.
    pub(crate) resolved: Option<&'a ResolvedGuidance>,
}

impl Pool {
    /// A pool of `workers` workers, none connected yet.
    pub(crate) fn new(workers: usize) -> Self {
        let unknown = || Worker::Down(Problem::Unreachable("not connected yet".into()));
        Self {
            workers: std::iter::repeat_with(unknown).take(workers).collect(),
            routes: Rc::default(),
            last_id: 0,
        }
    }

    /// A worker is connected.
    pub(crate) fn up(
        &mut self,
        id: WorkerId,
        description: DescribeResponse,
        requests: mpsc::Sender<ScoreRequest>,
    ) {
        self.workers[id] = Worker::Up(Box::new(Link {
            description,
            requests,
            outbox: Rc::default(),
            sessions: Rc::default(),
            others: 0,
        }));
    }

    /// A worker is gone. Gives those whose sessions are lost with it.
    pub(crate) fn down(&mut self, id: WorkerId, problem: Problem) -> Vec<Holder> {
        self.workers[id] = Worker::Down(problem);
        let routes = self.routes.borrow();
        routes.values().filter(|(worker, _)| *worker == id).map(|(_, holder)| *holder).collect()
    }

    /// A worker reported its load.
    pub(crate) fn load(&mut self, id: WorkerId, sessions: u32) {
        if let Worker::Up(link) = &mut self.workers[id] {
            link.others = sessions.saturating_sub(link.sessions.get());
        }
    }

    /// Opens a session on the least busy worker that serves the guidance's reward model.
    ///
    /// # Errors
    /// No worker can take it.
    pub(crate) fn open(&mut self, holder: Holder, opening: &Opening<'_>) -> Result<Session, NoWorker> {
        let (worker, link) = self.choose(&opening.guidance.reward_model)?;
        let (outbox, sessions) = (Rc::clone(&link.outbox), Rc::clone(&link.sessions));
        self.last_id += 1;
        let id = self.last_id;
        self.routes.borrow_mut().insert(id, (worker, holder));
        sessions.set(sessions.get() + 1);
        let by = match opening.resolved {
            Some(resolved) => By::Resolved(resolved.clone()),
            None => By::Guidance(opening.guidance.clone()),
        };
        let session = Session { id, outbox, sessions, routes: Rc::clone(&self.routes) };
        session.send(Frame::Open(Open {
            session_id: id,
            owner: opening.owner.to_owned(),
            prompt: opening.resolved.is_none().then(|| opening.prompt.clone()),
            generated_tokens: opening.generated.to_vec(),
            by: Some(by),
        }));
        Ok(session)
    }

    fn choose(&self, model: &str) -> Result<(WorkerId, &Link), NoWorker> {
        let up = self.workers.iter().enumerate().filter_map(|(id, worker)| match worker {
            Worker::Up(link) => Some((id, &**link)),
            Worker::Down(_) => None,
        });
        let mut up = up.peekable();
        if up.peek().is_none() {
            return Err(self.nobody());
        }
        let mut served: Vec<&str> = Vec::new();
        up.inspect(|(_, link)| served.push(&link.description.model_id))
            .filter(|(_, link)| model.is_empty() || link.description.model_id == model)
            .min_by_key(|(_, link)| {
                // Sessions per slot, in parts of a thousand.
                u64::from(link.sessions.get() + link.others) * 1000 / u64::from(link.description.slots.max(1))
            })
            .ok_or(())
            .map_err(|()| NoWorker::NoSuchModel(served.join(", ")))
    }

    fn nobody(&self) -> NoWorker {
        let problems = self.workers.iter().filter_map(|w| match w {
            Worker::Down(problem) => Some(problem),
            Worker::Up(_) => None,
        });
        let mut unfit = None;
        let mut unreachable = None;
        for problem in problems {
            match problem {
                Problem::Unfit(message) => unfit = Some(message.clone()),
                Problem::Unreachable(message) => unreachable = Some(message.clone()),
            }
        }
        match (unreachable, unfit) {
            (Some(message), _) => NoWorker::Unreachable(message),
            (None, Some(message)) => NoWorker::Unfit(message),
            (None, None) => NoWorker::Unreachable("no reward worker is configured".into()),
        }
    }

    /// Whose session it is; `None` for one closed meanwhile.
    pub(crate) fn holder(&self, session: u64) -> Option<Holder> {
        self.routes.borrow().get(&session).map(|(_, holder)| *holder)
    }

    /// Sends what was gathered, one message a worker. Gives the workers that do not take it.
    pub(crate) fn flush(&mut self) -> Vec<WorkerId> {
        let mut stuck = Vec::new();
        for (id, worker) in self.workers.iter().enumerate() {
            let Worker::Up(link) = worker else { continue };
            let frames = link.outbox.take();
            if !frames.is_empty() && link.requests.try_send(ScoreRequest { frames }).is_err() {
                stuck.push(id);
            }
        }
        stuck
    }
}

/// A session on a worker, closed on drop.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    outbox: Rc<RefCell<Vec<RequestFrame>>>,
    sessions: Rc<Cell<u32>>,
    routes: Routes,
}

impl Session {
    /// Says which token was chosen at `step`.
    pub(crate) fn advance(&self, step: u32, token: u32) {
        self.send(Frame::Advance(Advance { session_id: self.id, step, token }));
    }

    /// Asks for the rewards of a step's candidates.
    pub(crate) fn candidates(&self, step: u32, token_ids: &[u32]) {
        let token_ids = token_ids.to_vec();
        self.send(Frame::Candidates(Candidates { session_id: self.id, step, token_ids }));
    }

    fn send(&self, frame: Frame) {
        self.outbox.borrow_mut().push(RequestFrame { frame: Some(frame) });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.routes.borrow_mut().remove(&self.id);
        self.sessions.set(self.sessions.get().saturating_sub(1));
        self.send(Frame::Close(Close { session_id: self.id }));
    }
}
