//! Which worker a new session goes to: of those that serve its reward model, have room and are trusted,
//! the less busy of two drawn at random.
//!
//! Two draws spread load nearly as well as a look at all, and do not send every generator to the one
//! worker that reported the lowest load last.

use std::time::Instant;

use attune_proto::reward::v1::{DescribeResponse, Guidance, ResolvedGuidance};
use rand::RngExt as _;

use crate::{
    pool::{Link, Pool, State, Worker},
    worker::{Problem, WorkerId},
};

/// What a worker has to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    /// The reward model's id. Empty: the one that is served.
    model: &'a str,
    /// Its very weights, once a session has run with them.
    revision: Option<&'a str>,
}

/// Why no session could be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoWorker {
    /// None is there now; one may be soon.
    Unreachable(String),
    /// Some are there, but none may be given a session yet.
    Later(String),
    /// All are full.
    Full,
    /// What is there does not fit the base model.
    Unfit(String),
    /// Those there serve other reward models.
    NoSuchModel(String),
    /// No model is named, and several are served.
    Ambiguous(String),
}

impl<'a> Wanted<'a> {
    /// What the guidance asks for; once resolved, exactly what it was resolved to.
    pub(crate) fn of(guidance: &'a Guidance, resolved: Option<&'a ResolvedGuidance>) -> Self {
        match resolved {
            Some(r) => Self { model: &r.reward_model, revision: Some(&r.model_revision) },
            None => Self { model: &guidance.reward_model, revision: None },
        }
    }

    fn is_served_by(&self, description: &DescribeResponse) -> bool {
        (self.model.is_empty() || self.model == description.model_id)
            && self.revision.is_none_or(|r| r == description.model_revision)
    }
}

/// Chooses a worker; one other than `avoid` where there is one.
///
/// # Errors
/// No worker can take the session, and why.
pub(crate) fn choose(
    pool: &mut Pool,
    wanted: &Wanted<'_>,
    avoid: Option<WorkerId>,
    now: Instant,
) -> Result<WorkerId, NoWorker> {
    let open = open(pool, wanted, now)?;
    let with_room: Vec<(WorkerId, &Link)> =
        open.into_iter().filter(|(_, link)| link.sessions() < link.slots()).collect();
    let others: Vec<(WorkerId, &Link)> =
        with_room.iter().copied().filter(|(id, _)| Some(*id) != avoid).collect();
    let from = if others.is_empty() { with_room } else { others };
    // Sessions per slot; compared as fractions.
    let load = |(id, link): (WorkerId, &Link)| (id, u64::from(link.sessions()), u64::from(link.slots()));
    let from: Vec<(WorkerId, u64, u64)> = from.into_iter().map(load).collect();
    match from.len() {
        0 => Err(NoWorker::Full),
        1 => Ok(from[0].0),
        n => {
            let first = pool.dice.random_range(0..n);
            let second = (first + pool.dice.random_range(1..n)) % n;
            let (a, b) = (from[first], from[second]);
            Ok(if b.1 * a.2 < a.1 * b.2 { b.0 } else { a.0 })
        }
    }
}

/// How many more sessions there is room for; `None` where nobody can be asked, so that waiting for room
/// is no use.
pub(crate) fn room(pool: &Pool, wanted: &Wanted<'_>, now: Instant) -> Option<u32> {
    let open = open(pool, wanted, now).ok()?;
    Some(open.into_iter().map(|(_, link)| link.slots().saturating_sub(link.sessions())).sum())
}

/// The slots of all workers that serve it, whatever state they are in; `None` while there is one of which
/// nothing is known yet.
pub(crate) fn capacity(pool: &Pool, wanted: &Wanted<'_>) -> Option<u32> {
    let slots = |worker: &Worker| {
        let description = worker.description.as_ref()?;
        let slots = worker.link().map_or(description.slots, Link::slots);
        Some(if wanted.is_served_by(description) { slots } else { 0 })
    };
    pool.workers.values().map(slots).sum()
}

/// The workers that may be given such a session now, full or not.
fn open<'p>(
    pool: &'p Pool,
    wanted: &Wanted<'_>,
    now: Instant,
) -> Result<Vec<(WorkerId, &'p Link)>, NoWorker> {
    let up = || pool.workers.iter().filter_map(|(&id, w)| Some((id, w, w.link()?, w.description.as_ref()?)));
    if up().next().is_none() {
        return Err(nobody(pool));
    }
    let serving: Vec<_> = up().filter(|(_, _, _, d)| wanted.is_served_by(d)).collect();
    if serving.is_empty() {
        // Once resolved, the model was there; and one that is down may serve it.
        let may_come = |w: &Worker| match (&w.state, &w.description) {
            (State::Down(Problem::Unreachable(_)), None) => true,
            (State::Down(Problem::Unreachable(_)), Some(d)) => wanted.is_served_by(d),
            _ => false,
        };
        if wanted.revision.is_some() || pool.workers.values().any(may_come) {
            let model = wanted.model;
            return Err(NoWorker::Unreachable(format!("no worker that serves `{model}` is connected")));
        }
        return Err(NoWorker::NoSuchModel(names(up().map(|(_, _, _, d)| d))));
    }
    if wanted.model.is_empty() && serving.iter().any(|s| s.3.model_id != serving[0].3.model_id) {
        return Err(NoWorker::Ambiguous(names(serving.iter().map(|s| s.3))));
    }
    let staying: Vec<_> = serving.into_iter().filter(|(_, worker, ..)| !worker.retiring()).collect();
    if staying.is_empty() {
        return Err(NoWorker::Unreachable("every worker that serves it is shutting down".into()));
    }
    let trusted: Vec<_> = staying.into_iter().filter(|(_, worker, ..)| worker.breaker.allows(now)).collect();
    if trusted.is_empty() {
        return Err(NoWorker::Later("every worker that serves it has failed lately".into()));
    }
    Ok(trusted.into_iter().map(|(id, _, link, _)| (id, link)).collect())
}

fn names<'d>(descriptions: impl Iterator<Item = &'d DescribeResponse>) -> String {
    let mut names: Vec<&str> = descriptions.map(|d| d.model_id.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn nobody(pool: &Pool) -> NoWorker {
    let mut unfit = None;
    let mut unreachable = None;
    for worker in pool.workers.values() {
        match &worker.state {
            State::Down(Problem::Unfit(message)) => unfit = Some(message.clone()),
            State::Down(Problem::Unreachable(message)) => unreachable = Some(message.clone()),
            State::Up(_) => {}
        }
    }
    match (unreachable, unfit) {
        (Some(message), _) => NoWorker::Unreachable(message),
        (None, Some(message)) => NoWorker::Unfit(message),
        (None, None) => NoWorker::Unreachable("no reward worker is known".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use attune_proto::reward::v1::{Load, Prompt, ScoreRequest};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        counters::Counters,
        pool::{Before, Opening, Session},
    };

    struct Fixture {
        pool: Pool,
        now: Instant,
        wires: Vec<mpsc::Receiver<ScoreRequest>>,
    }

    impl Fixture {
        /// Workers 1, 2, ... of 8 slots, serving these models.
        fn new(models: &[&str]) -> Self {
            let mut f = Self {
                pool: Pool::new(1, Arc::new(Counters::default())),
                now: Instant::now(),
                wires: vec![],
            };
            for (id, model) in (1..).zip(models) {
                let (requests, wire) = mpsc::channel(8);
                let (model_id, model_revision) = ((*model).to_owned(), format!("{model}@1"));
                let description =
                    DescribeResponse { model_id, model_revision, slots: 8, ..DescribeResponse::default() };
                f.pool.found(id, format!("http://{id}/"));
                f.pool.up(id, description, requests);
                f.wires.push(wire);
            }
            f
        }

        fn open(&mut self, model: &str, before: Before) -> Result<Session, NoWorker> {
            let guidance = Guidance { reward_model: model.to_owned(), ..Guidance::default() };
            let opening = Opening {
                owner: "local",
                prompt: &Prompt::default(),
                generated: &[],
                guidance: &guidance,
                resolved: None,
                before,
                request: &tracing::Span::none(),
            };
            self.pool.open((1, 0), &opening, self.now)
        }
    }

    #[test]
    fn load_spreads_and_the_full_are_left_alone() {
        let mut f = Fixture::new(&["a", "a", "a"]);
        let mut sessions: Vec<Session> = (0..12).map(|_| f.open("", Before::Nothing).unwrap()).collect();
        for worker in 1..=3 {
            let on_it = sessions.iter().filter(|s| s.worker() == worker).count();
            assert!((3..=5).contains(&on_it), "{on_it} of 12 on worker {worker}");
        }
        sessions.extend((0..12).map(|_| f.open("", Before::Nothing).unwrap()));
        assert_eq!(f.open("", Before::Nothing).unwrap_err(), NoWorker::Full);
        assert_eq!(room(&f.pool, &Wanted { model: "", revision: None }, f.now), Some(0));
        let freed = sessions.pop().unwrap().worker();
        assert_eq!(f.open("", Before::Nothing).unwrap().worker(), freed);
    }

    #[test]
    fn sessions_of_other_generators_count() {
        let mut f = Fixture::new(&["a", "a"]);
        f.pool.load(1, &Load { sessions: 7, slots: 8, ..Load::default() });
        let workers: Vec<WorkerId> = (0..5)
            .map(|_| f.open("", Before::Nothing).unwrap())
            .collect::<Vec<Session>>()
            .iter()
            .map(Session::worker)
            .collect();
        assert_eq!(workers, [2; 5]);
    }

    #[test]
    fn each_model_has_its_workers() {
        let mut f = Fixture::new(&["a", "b", "b"]);
        assert_eq!(f.open("a", Before::Nothing).unwrap().worker(), 1);
        assert_ne!(f.open("b", Before::Nothing).unwrap().worker(), 1);
        assert_eq!(f.open("", Before::Nothing).unwrap_err(), NoWorker::Ambiguous("a, b".into()));
        assert_eq!(f.open("c", Before::Nothing).unwrap_err(), NoWorker::NoSuchModel("a, b".into()));
        // A worker that is down, and may serve it, is worth waiting for.
        f.pool.found(9, "http://9/".into());
        assert!(matches!(f.open("c", Before::Nothing), Err(NoWorker::Unreachable(_))));
        // Once resolved, only the very same weights will do.
        let resolved =
            ResolvedGuidance { reward_model: "b".into(), model_revision: "b@2".into(), ..Default::default() };
        let guidance = Guidance::default();
        let wanted = Wanted::of(&guidance, Some(&resolved)).revision;
        assert_eq!(wanted, Some("b@2"));
        let wanted = Wanted { model: "b", revision: Some("b@2") };
        let now = f.now;
        assert!(matches!(choose(&mut f.pool, &wanted, None, now), Err(NoWorker::Unreachable(_))));
    }

    #[test]
    fn who_failed_leaves_or_lied_is_passed_over() {
        let mut f = Fixture::new(&["a", "a", "a"]);
        for _ in 0..20 {
            assert_ne!(f.open("", Before::Lost(2)).unwrap().worker(), 2);
        }
        f.pool.distrust(1, "a lie", f.now);
        f.pool.load(3, &Load { sessions: 0, slots: 8, draining: true, ..Load::default() });
        // The one that failed it last is better than none.
        assert_eq!(f.open("", Before::Lost(2)).unwrap().worker(), 2);
        f.pool.leaving(2);
        assert!(matches!(f.open("", Before::Nothing), Err(NoWorker::Later(_))));
        f.now += std::time::Duration::from_secs(60);
        assert_eq!(f.open("", Before::Nothing).unwrap().worker(), 1);
    }

    #[test]
    fn the_last_frames_of_a_worker_that_leaves_end_its_call() {
        let mut f = Fixture::new(&["a"]);
        let session = f.open("", Before::Nothing).unwrap();
        f.pool.leaving(1);
        f.pool.flush();
        assert!(f.wires[0].try_recv().is_ok());
        drop(session);
        f.pool.flush();
        assert!(f.wires[0].try_recv().is_ok(), "the session is closed");
        assert_eq!(f.wires[0].try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    }
}
