//! The sessions of a timed worker: pure state, told what time it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use attune_proto::reward::v1::{
    Failed, FailureReason, Load, Normalization, Open, Opened, Reference, ResolvedGuidance, Rewards, open::By,
    prompt::Kind, request_frame, response_frame::Frame,
};
use attune_service::batching::{Batching, Begin, Demand};

use super::TimedConfig;

/// A session of a call.
type Key = (u64, u64);

#[derive(Debug)]
struct Session {
    /// Tokens generated before the step that is next.
    step: u32,
    /// Whether its prompt has been read.
    begun: bool,
    /// Whether a token came (or the prompt) that no forward has read.
    unread: bool,
    asked: Option<(Vec<u32>, Instant)>,
    /// When the hidden state of the step was there.
    ready: Instant,
    /// Whether its rewards left, so that the token chosen by them is awaited.
    answered: bool,
}

/// A forward pass under way.
#[derive(Debug)]
struct Forward {
    ends: Instant,
    /// Who is in it, and at which step.
    batch: Vec<(Key, u32)>,
}

/// All sessions, and the forward pass that serves them.
#[derive(Debug)]
pub(super) struct Sessions {
    slots: usize,
    forward: Duration,
    on_card: bool,
    vocab: u32,
    forwards: u64,
    open: BTreeMap<Key, Session>,
    running: Option<Forward>,
    batching: Batching,
    /// When the next forward begins though nothing comes.
    begins: Option<Instant>,
}

impl Sessions {
    pub(super) fn new(config: &TimedConfig) -> Self {
        let &TimedConfig { slots, forward, on_card, vocab, .. } = config;
        let (slots, batching) = (slots.max(1) as usize, Batching::new(on_card));
        let open = BTreeMap::new();
        Self { slots, forward, on_card, vocab, forwards: 0, open, running: None, batching, begins: None }
    }

    pub(super) fn set_forward(&mut self, forward: Duration) {
        self.forward = forward;
    }

    /// When something is to be done though nothing comes: the running forward ends, or the next begins.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running.as_ref().map(|forward| forward.ends).or(self.begins)
    }

    fn demand(&self) -> Demand {
        let mut demand = Demand::default();
        for session in self.open.values() {
            *match (session.unread, session.begun) {
                (false, _) => {
                    demand.answered += usize::from(session.answered);
                    &mut demand.resting
                }
                (true, true) => &mut demand.tokens,
                (true, false) => &mut demand.prompts,
            } += 1;
        }
        demand
    }

    /// Forward passes begun so far.
    pub(super) fn forwards(&self) -> u64 {
        self.forwards
    }

    pub(super) fn load(&self) -> Load {
        let (sessions, slots) = (self.open.len() as u32, self.slots as u32);
        Load { sessions, slots, ..Load::default() }
    }

    /// Takes a frame that came at `at`; gives what is answered at once.
    pub(super) fn handle(&mut self, call: u64, frame: request_frame::Frame, at: Instant) -> Option<Frame> {
        use request_frame::Frame as Asked;
        let (session_id, done) = match frame {
            Asked::Open(open) => {
                let session_id = open.session_id;
                match self.open(call, open, at) {
                    Ok(opened) => return Some(Frame::Opened(opened)),
                    Err(failure) => (session_id, Err(failure)),
                }
            }
            Asked::Advance(advance) => {
                let done = self.at_step(call, advance.session_id, advance.step).map(|session| {
                    session.step += 1;
                    session.unread = true;
                    session.asked = None;
                    session.answered = false;
                });
                (advance.session_id, done)
            }
            Asked::Candidates(candidates) => {
                let vocab = self.vocab;
                let fit = |ids: &[u32]| !ids.is_empty() && ids.iter().all(|&id| id < vocab);
                let done = self.at_step(call, candidates.session_id, candidates.step).and_then(|session| {
                    if !fit(&candidates.token_ids) {
                        return Err((
                            FailureReason::Invalid,
                            "candidates: at least one, each below the vocabulary size",
                        ));
                    }
                    session.asked = Some((candidates.token_ids, at));
                    Ok(())
                });
                (candidates.session_id, done)
            }
            Asked::Close(close) => {
                self.open.remove(&(call, close.session_id));
                return None;
            }
        };
        let (reason, message) = done.err()?;
        self.open.remove(&(call, session_id));
        Some(Frame::Failed(Failed {
            session_id,
            reason: reason.into(),
            message: message.to_owned(),
            field: String::new(),
        }))
    }

    fn open(&mut self, call: u64, open: Open, at: Instant) -> Result<Opened, (FailureReason, &'static str)> {
        if self.open.len() >= self.slots {
            return Err((FailureReason::Exhausted, "all slots are taken; try again later or elsewhere"));
        }
        if open.session_id == 0 || self.open.contains_key(&(call, open.session_id)) {
            return Err((FailureReason::OutOfOrder, "every Open needs an id of its own, never 0"));
        }
        let ids = match open.prompt.and_then(|p| p.kind) {
            Some(Kind::TokenIds(ids)) if !ids.ids.is_empty() => ids.ids,
            // It reads nothing, so that it has no tokenizer either.
            _ => vec![0],
        };
        let guidance = match open.by {
            Some(By::Resolved(resolved)) => resolved,
            Some(By::Guidance(asked)) => ResolvedGuidance {
                reward_model: asked.reward_model.clone(),
                model_revision: "timed".to_owned(),
                method: "pad".to_owned(),
                reference: match asked.reference() {
                    Reference::Generator => Reference::Generator.into(),
                    _ => Reference::None.into(),
                },
                normalization: Normalization::Candidates.into(),
                context: asked.context,
                text: asked.text,
                weights: asked.weights,
                prompt_token_ids: ids,
                ..ResolvedGuidance::default()
            },
            None => return Err((FailureReason::Invalid, "a guidance is required")),
        };
        let session = Session {
            step: open.generated_tokens.len() as u32,
            begun: false,
            unread: true,
            asked: None,
            ready: at,
            answered: false,
        };
        self.open.insert((call, open.session_id), session);
        Ok(Opened { session_id: open.session_id, guidance: Some(guidance) })
    }

    fn at_step(
        &mut self,
        call: u64,
        session_id: u64,
        step: u32,
    ) -> Result<&mut Session, (FailureReason, &'static str)> {
        match self.open.get_mut(&(call, session_id)) {
            Some(session) if session.step == step => Ok(session),
            Some(_) => {
                Err((FailureReason::OutOfOrder, "the frame is of another step; open the session again"))
            }
            None => Err((FailureReason::UnknownSession, "no session of this id is open on this call")),
        }
    }

    pub(super) fn disconnect(&mut self, call: u64) {
        self.open.retain(|key, _| key.0 != call);
    }

    /// Ends the forward that is over, starts the next for all who have something to read, and answers
    /// whose hidden state is there.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<(u64, Frame)> {
        if self.running.as_ref().is_some_and(|f| f.ends <= now)
            && let Some(done) = self.running.take()
        {
            for (key, step) in done.batch {
                let Some(session) = self.open.get_mut(&key) else { continue };
                session.begun = true;
                // Who moved on meanwhile is read by the next forward.
                if session.step == step {
                    session.unread = false;
                    session.ready = now;
                }
            }
        }
        let busy = self.on_card && self.running.is_some();
        let mut answers = Vec::new();
        for (&(call, session_id), session) in &mut self.open {
            if session.unread || busy {
                continue;
            }
            if let Some((ids, at)) = session.asked.take() {
                session.answered = true;
                self.batching.answered(now);
                let work = now.saturating_duration_since(at.max(session.ready));
                answers.push((
                    call,
                    Frame::Rewards(Rewards {
                        session_id,
                        step: session.step,
                        values: ids.iter().map(|&id| reward(session.step, id)).collect(),
                        work_seconds: work.as_secs_f32(),
                    }),
                ));
            }
        }
        if self.running.is_none() {
            self.begins = match self.batching.begin(self.demand(), now) {
                Begin::Never => None,
                Begin::Later(moment) => Some(moment),
                Begin::Now => {
                    let unread = self.open.iter().filter(|(_, s)| s.unread);
                    let batch = unread.map(|(&key, s)| (key, s.step)).collect();
                    self.forwards += 1;
                    self.running = Some(Forward { ends: now + self.forward, batch });
                    None
                }
            };
        }
        answers
    }
}

/// A reward in [-1, 0) that depends on nothing but step and token.
fn reward(step: u32, id: u32) -> f32 {
    let mixed = (u64::from(step) << 32 | u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as f32 / 16_777_216.0 - 1.0
}

#[cfg(test)]
mod tests {
    use attune_proto::reward::v1::{Advance, Candidates, Close, Guidance};
    use request_frame::Frame as Asked;

    use super::*;

    const FORWARD: Duration = Duration::from_millis(10);

    fn sessions(slots: u32, on_card: bool) -> Sessions {
        let (fingerprint, model_id) = (String::new(), String::new());
        Sessions::new(&TimedConfig { slots, forward: FORWARD, on_card, fingerprint, vocab: 10, model_id })
    }

    fn open(id: u64) -> Asked {
        Asked::Open(Open { session_id: id, by: Some(By::Guidance(Guidance::default())), ..Open::default() })
    }

    fn ask(session_id: u64, step: u32) -> Asked {
        Asked::Candidates(Candidates { session_id, step, token_ids: vec![3, 4] })
    }

    fn answered(answers: &[(u64, Frame)]) -> Vec<(u64, u32)> {
        let rewards = |(_, frame): &(u64, Frame)| match frame {
            Frame::Rewards(r) => Some((r.session_id, r.step)),
            _ => None,
        };
        answers.iter().filter_map(rewards).collect()
    }

    #[test]
    fn one_forward_serves_all_and_answers_when_it_is_over() {
        let mut s = sessions(4, false);
        let t = Instant::now();
        for id in [1, 2] {
            assert!(matches!(s.handle(1, open(id), t), Some(Frame::Opened(_))));
            assert!(s.handle(1, ask(id, 0), t).is_none());
        }
        assert!(s.tick(t).is_empty());
        assert_eq!(s.deadline(), Some(t + FORWARD));
        // It comes while the others' forward runs, so that it waits for its own.
        s.handle(1, open(3), t + FORWARD / 2);
        s.handle(1, ask(3, 0), t + FORWARD / 2);
        assert!(s.tick(t + FORWARD / 2).is_empty());
        assert_eq!(answered(&s.tick(t + FORWARD)), [(1, 0), (2, 0)]);
        assert_eq!(answered(&s.tick(t + FORWARD * 2)), [(3, 0)]);
        assert_eq!(s.deadline(), None, "nothing to read, nothing to wait for");
    }

    #[test]
    fn an_advance_starts_the_wait_and_candidates_find_it_over() {
        let mut s = sessions(1, false);
        let t = Instant::now();
        s.handle(1, open(1), t);
        s.tick(t);
        s.tick(t + FORWARD);
        s.handle(1, Asked::Advance(Advance { session_id: 1, step: 0, token: 3 }), t + FORWARD);
        s.tick(t + FORWARD);
        s.tick(t + FORWARD * 2);
        s.handle(1, ask(1, 1), t + FORWARD * 3);
        let answers = s.tick(t + FORWARD * 3);
        assert_eq!(answered(&answers), [(1, 1)]);
        let Frame::Rewards(rewards) = &answers[0].1 else { panic!("{answers:?}") };
        assert_eq!(rewards.work_seconds, 0.0);
        assert_eq!(rewards.values, [reward(1, 3), reward(1, 4)]);
    }

    #[test]
    fn on_a_card_prompts_go_with_the_others_tokens_and_answers_wait_for_the_pass() {
        let mut s = sessions(3, true);
        let t = Instant::now();
        let at = |tenths: u32| t + FORWARD * tenths / 10;
        let advance = |step| Asked::Advance(Advance { session_id: 1, step, token: 3 });
        s.handle(1, open(1), t);
        s.handle(1, ask(1, 0), t);
        s.tick(t);
        assert_eq!(answered(&s.tick(at(10))), [(1, 0)]);
        s.handle(1, advance(0), at(10));
        s.tick(at(10));
        s.handle(1, ask(1, 1), at(15));
        assert!(s.tick(at(15)).is_empty());
        assert_eq!(answered(&s.tick(at(20))), [(1, 1)]);
        s.handle(1, advance(1), at(21));
        s.tick(at(21));
        s.tick(at(31));
        assert_eq!((s.forwards(), s.deadline()), (3, None));
        // A step took eleven tenths: the prompt waits for the next token, and for no longer than two of them.
        s.handle(1, open(2), at(31));
        s.tick(at(31));
        assert_eq!((s.forwards(), s.deadline()), (3, Some(at(21) + FORWARD * 22 / 10)));
        s.handle(1, ask(1, 2), at(32));
        assert_eq!(answered(&s.tick(at(32))), [(1, 2)], "no pass is under way");
        s.handle(1, advance(2), at(33));
        s.tick(at(33));
        assert_eq!((s.forwards(), s.deadline()), (4, Some(at(43))));
        s.handle(1, ask(2, 0), at(34));
        s.handle(1, ask(1, 3), at(34));
        assert_eq!(answered(&s.tick(at(43))), [(1, 3), (2, 0)], "one pass read both");
    }

    #[test]
    fn slots_are_limited_and_come_back() {
        let mut s = sessions(1, false);
        let t = Instant::now();
        s.handle(1, open(1), t);
        let Some(Frame::Failed(failed)) = s.handle(2, open(1), t) else { panic!("one slot, two sessions") };
        assert_eq!(failed.reason(), FailureReason::Exhausted);
        s.handle(1, Asked::Close(Close { session_id: 1 }), t);
        assert!(matches!(s.handle(2, open(1), t), Some(Frame::Opened(_))));
        s.disconnect(2);
        assert_eq!(s.load().sessions, 0);
    }

    #[test]
    fn frames_of_another_step_end_their_session_alone() {
        let mut s = sessions(2, false);
        let t = Instant::now();
        s.handle(1, open(1), t);
        s.handle(1, open(2), t);
        let Some(Frame::Failed(failed)) = s.handle(1, ask(1, 7), t) else { panic!("step 7 is not next") };
        assert_eq!(failed.reason(), FailureReason::OutOfOrder);
        assert_eq!(s.load().sessions, 1);
        s.handle(1, ask(2, 0), t);
        s.tick(t);
        assert_eq!(answered(&s.tick(t + FORWARD)), [(2, 0)]);
    }
}
