//! A session on a worker: what it is opened with, and that it is closed on drop.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use attune_proto::reward::v1::{
    Advance, Candidates, Close, Guidance, Prompt, RequestFrame, ResolvedGuidance, request_frame::Frame,
};
use tracing::Span;

use super::Routes;
use crate::{choice::Wanted, worker::WorkerId};

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
    /// What became of its session before this one.
    pub(crate) before: Before,
    /// The request that it is for.
    pub(crate) request: &'a Span,
}

/// What became of the session before the one to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// There was none, or it was given back.
    Nothing,
    /// Its worker leaves: that is nobody's failure.
    Moved,
    /// It was lost on this worker.
    Lost(WorkerId),
}

impl Opening<'_> {
    /// What the worker has to serve.
    pub(super) fn wanted(&self) -> Wanted<'_> {
        Wanted::of(self.guidance, self.resolved)
    }
}

/// A session on a worker, closed on drop.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) id: u64,
    pub(super) span: Span,
    pub(super) worker: WorkerId,
    pub(super) outbox: Rc<RefCell<Vec<RequestFrame>>>,
    pub(super) sessions: Rc<Cell<u32>>,
    pub(super) routes: Routes,
}

impl Session {
    /// Where it is.
    pub(crate) fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Notes that it ends before its time.
    pub(crate) fn lost(&self) {
        self.span.record("otel.status_code", "ERROR");
    }

    /// Says which token was chosen at `step`.
    pub(crate) fn advance(&self, step: u32, token: u32) {
        self.send(Frame::Advance(Advance { session_id: self.id, step, token }));
    }

    /// Asks for the rewards of a step's candidates.
    pub(crate) fn candidates(&self, step: u32, token_ids: &[u32]) {
        let token_ids = token_ids.to_vec();
        self.send(Frame::Candidates(Candidates { session_id: self.id, step, token_ids }));
    }

    pub(super) fn send(&self, frame: Frame) {
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
