//! What a generator says on a call: sessions are opened, asked, advanced and closed.

use std::time::Instant;

use attune_engine::kv::Writes;
use attune_proto::reward::v1::{
    FailureReason, Normalization, Open, Opened, Reference, Weights, request_frame, response_frame,
};

use super::{Active, Engine, internal};
use crate::{
    failure::Failure, model::Features, person::Person, prompts::Job, resolve::Resolved, scheduler::Key,
    slots::Slot, streams::StreamId, trail::Trail,
};

impl Engine {
    pub(super) fn frame(&mut self, stream: StreamId, frame: request_frame::Frame, at: Instant) {
        use request_frame::Frame;
        if !self.streams.contains(stream) {
            return;
        }
        let (session_id, result) = match frame {
            Frame::Open(open) => (open.session_id, self.open(stream, open)),
            Frame::Advance(advance) => {
                let session_id = advance.session_id;
                let key = self.find(stream, session_id);
                let result = key.and_then(|key| match self.scheduler.session(key) {
                    Some(session) => session.advance(advance.step, advance.token),
                    None => Err(unknown()),
                });
                (session_id, result)
            }
            Frame::Candidates(candidates) => {
                let session_id = candidates.session_id;
                let key = self.find(stream, session_id);
                let result = key.and_then(|key| match self.scheduler.session(key) {
                    Some(session) => {
                        session.candidates(candidates.step, candidates.token_ids)?;
                        self.sessions.entry(key).and_modify(|active| active.asked = at);
                        Ok(())
                    }
                    None => Err(unknown()),
                });
                (session_id, result)
            }
            Frame::Close(close) => {
                if let Some(key) = self.streams.unbind(stream, close.session_id) {
                    self.remove(key);
                }
                return;
            }
        };
        if let Err(failure) = result {
            self.fail_id(stream, session_id, failure);
        }
    }

    fn open(&mut self, stream: StreamId, open: Open) -> Result<(), Failure> {
        if self.draining {
            let message = "the worker is shutting down; open the session on another";
            return Err(Failure::new(FailureReason::Draining, message));
        }
        if open.session_id == 0 {
            return Err(Failure::invalid("session_id", "a session's id is never 0"));
        }
        if self.streams.find(stream, open.session_id).is_some() {
            return Err(Failure::out_of_order(
                "the session is open already; every Open needs an id of its own",
            ));
        }
        let now = Instant::now();
        let trail = Trail::new(&open.traceparent, open.generated_tokens.len());
        let opened = self.scheduler.open(&open.owner, open.generated_tokens, now);
        let (key, slot) = opened.inspect_err(|failure| trail.failed(failure.reason))?;
        self.streams.bind(stream, open.session_id, key);
        let active = Active {
            stream,
            session_id: open.session_id,
            person: Person::Ones,
            against_model: false,
            over_vocabulary: false,
            features: Features::default(),
            ready: now,
            asked: now,
            trail,
        };
        let span = active.trail.prompt();
        self.sessions.insert(key, active);
        // Encoding a long text takes longer than a step: another thread does it.
        let Open { prompt, by, owner, .. } = open;
        self.desk.take(Job { key, slot, prompt, by, owner, profile: None, span })
    }

    /// Admits a session whose guidance is settled.
    pub(super) fn admit(&mut self, key: Key, slot: Slot, resolved: Resolved) -> Result<(), Failure> {
        let Some(active) = self.sessions.get_mut(&key) else { return Ok(()) };
        let Resolved { mut guidance, head_text } = resolved;
        let against_model = guidance.reference() == Reference::Model;
        let writes = if against_model { Writes::Both } else { Writes::One };
        let cached = self.scheduler.admit(key, slot, &guidance.prompt_token_ids, writes)?;
        active.trail.admitted(&guidance.method, cached);
        self.instruments.opened();
        if let Some(text) = head_text {
            let weights = self.model.preference_weights(&text).map_err(|e| internal(&e))?;
            if weights.iter().flatten().any(|w| !w.is_finite()) {
                let message = "the weight head gives weights that are not finite: the model is damaged";
                return Err(Failure::new(FailureReason::Internal, message));
            }
            guidance.weights = weights.map(|values| Weights { values });
        }
        active.person = Person::of(&guidance, self.model.persrm()).map_err(|e| internal(&e))?;
        active.against_model = against_model;
        active.over_vocabulary = guidance.normalization() == Normalization::Vocabulary;
        let opened = Opened { session_id: active.session_id, guidance: Some(guidance) };
        self.streams.push(active.stream, response_frame::Frame::Opened(opened));
        Ok(())
    }

    fn find(&self, stream: StreamId, session_id: u64) -> Result<Key, Failure> {
        self.streams.find(stream, session_id).ok_or_else(unknown)
    }
}

fn unknown() -> Failure {
    let message = "no session of this id is open on this call; open it first";
    Failure::new(FailureReason::UnknownSession, message)
}
