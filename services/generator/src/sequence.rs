//! One text while it is generated: its tokens, its guidances, and the step it is at.

mod fusing;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_guidance::{Candidates, RowError, against_generator};
use attune_kernels::Edits;
use attune_proto::{
    generator::v1::{Finish, FinishReason, Usage},
    reward::v1::{Normalization, Reference, ResolvedGuidance},
};
use attune_service::status;
use tonic::Status;

use crate::{
    api::Place,
    metrics::{Instruments, Lap},
    output::Output,
    pool::{Before, Session},
    trail::Trail,
    validate::{ValidGuidance, ValidRequest},
};

/// When an interrupted client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A text that has just arrived, on its way to the engine's thread.
#[derive(Debug)]
pub(crate) struct Submission {
    /// What is asked for.
    pub(crate) request: ValidRequest,
    /// Whose text it is.
    pub(crate) owner: String,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    /// The client's side.
    pub(crate) output: Output,
    /// The client's place among those that run or wait.
    pub(crate) place: Arc<Place>,
    /// What is recorded of it.
    pub(crate) trail: Trail,
}

/// A running or waiting text.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// What was asked for.
    pub(crate) request: ValidRequest,
    /// Whose text it is.
    pub(crate) owner: String,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    /// The prompt and all tokens of the text, those resumed included.
    pub(crate) tokens: Vec<u32>,
    /// Its guidances; empty once it goes on unguided.
    pub(crate) guides: Vec<Guide>,
    /// The step whose candidates wait for rewards.
    pub(crate) pending: Option<Pending>,
    /// How often a worker had no room for it in a row.
    pub(crate) refusals: u32,
    /// What is recorded of it.
    pub(crate) trail: Trail,
    output: Output,
    /// Distinct tokens so far, kept only where a repetition penalty asks for them.
    seen: Vec<u32>,
    /// Prompt tokens whose prefill was found in the cache; `None` before the first step.
    cached: Option<usize>,
    place: Arc<Place>,
}

/// One guidance and its session.
#[derive(Debug)]
pub(crate) struct Guide {
    /// What was asked for.
    pub(crate) asked: ValidGuidance,
    /// What it was resolved to, once a worker said so.
    pub(crate) resolved: Option<ResolvedGuidance>,
    /// The open session.
    pub(crate) session: Option<Session>,
    /// The rewards of the pending step, once they are here.
    pub(crate) rewards: Option<Vec<f32>>,
    /// Since when the open session owes the rewards of the pending step.
    pub(crate) awaiting: Option<Instant>,
    /// Whether the open session has given rewards: it has read the context, and steps are quick.
    pub(crate) warm: bool,
    /// What became of the session before.
    pub(crate) before: Before,
    /// How often a session was lost since the last rewards.
    pub(crate) losses: u32,
    /// How many of these were its worker's failure.
    pub(crate) faults: u32,
    /// Since when it is without a session.
    pub(crate) lost_since: Option<Instant>,
    /// No worker was there to take it when last one was looked for: not the same as one that is busy.
    pub(crate) stranded: bool,
    /// When to try again to open one.
    pub(crate) retry_at: Option<Instant>,
}

/// A step that waits for rewards.
#[derive(Debug)]
pub(crate) struct Pending {
    /// What `select` found.
    pub(crate) candidates: Candidates,
    /// When they were sent.
    pub(crate) since: Instant,
    /// The wait in a trace.
    _wait: tracing::Span,
}

impl Sequence {
    /// The state of a text that has not started.
    pub(crate) fn new(submission: Submission) -> Self {
        let Submission { request, owner, deadline, output, place, trail } = submission;
        let tokens = [&request.prompt_ids[..], &request.resumed].concat();
        let mut seen = Vec::new();
        if request.sampling.repetition_penalty != 1.0 {
            seen.clone_from(&tokens);
            seen.sort_unstable();
            seen.dedup();
        }
        let guides = request.guidances.iter().cloned().map(Guide::new).collect();
        Self {
            request,
            owner,
            deadline,
            tokens,
            guides,
            pending: None,
            refusals: 0,
            trail,
            output,
            seen,
            cached: None,
            place,
        }
    }

    /// Tokens of the text so far: the step that is next.
    pub(crate) fn step(&self) -> u32 {
        (self.tokens.len() - self.request.prompt_ids.len()) as u32
    }

    /// The tokens of the text so far.
    pub(crate) fn generated(&self) -> &[u32] {
        &self.tokens[self.request.prompt_ids.len()..]
    }

    /// What the request changes in the next row of logits.
    pub(crate) fn edits(&self) -> Edits<'_> {
        let sampling = &self.request.sampling;
        let early = (self.step() as usize) < sampling.min_tokens;
        Edits {
            bias: &sampling.bias,
            banned: if early { &sampling.eos } else { &[] },
            penalty: sampling.repetition_penalty,
            seen: &self.seen,
        }
    }

    /// Notes that the prefill is done, `found` tokens of it found in the cache. The first one counts: a
    /// sequence that comes back finds what it had computed itself.
    pub(crate) fn prefilled(&mut self, found: usize) {
        self.cached.get_or_insert(found.min(self.request.prompt_ids.len()));
    }

    /// Asks every open session for the rewards of the step's candidates.
    pub(crate) fn ask(&mut self, candidates: Candidates, now: Instant) {
        let step = self.step();
        for guide in &mut self.guides {
            guide.rewards = None;
            if let Some(session) = &guide.session {
                session.candidates(step, &candidates.ids);
                guide.awaiting = Some(now);
            }
        }
        let wait = if self.guides.is_empty() {
            tracing::Span::none()
        } else {
            tracing::debug_span!(parent: self.trail.span(), "reward_wait", step = self.step())
        };
        self.pending = Some(Pending { candidates, since: now, _wait: wait });
    }

    /// Takes a newly opened session for guidance `index`, and asks it for the pending step.
    pub(crate) fn opened(&mut self, index: usize, session: Session, now: Instant) {
        let step = self.step();
        if let Some(pending) = &self.pending {
            session.candidates(step, &pending.candidates.ids);
        }
        let guide = &mut self.guides[index];
        guide.awaiting = self.pending.as_ref().map(|_| now);
        guide.warm = false;
        guide.stranded = false;
        guide.session = Some(session);
    }

    /// Takes the rewards of guidance `index`, checked against the pending step.
    ///
    /// # Errors
    /// The worker broke the protocol, in words.
    pub(crate) fn take_rewards(
        &mut self,
        index: usize,
        step: u32,
        values: Vec<f32>,
    ) -> Result<Received, String> {
        if step < self.step() {
            return Ok(Received::Late);
        }
        if step > self.step() {
            return Err(format!("rewards of step {step} came at step {}", self.step()));
        }
        let Some(pending) = &self.pending else {
            return Err("rewards came before their candidates".into());
        };
        let want = pending.candidates.len();
        if values.len() != want {
            return Err(format!("{} rewards came for {want} candidates", values.len()));
        }
        if !values.iter().all(|v| v.is_finite()) {
            return Err("a reward is not finite".into());
        }
        let guide = &mut self.guides[index];
        if guide.rewards.replace(values).is_some() {
            return Err("the rewards of one step came twice".into());
        }
        (guide.warm, guide.awaiting) = (true, None);
        guide.found();
        Ok(Received::InTime)
    }

    /// Whether the pending step has all its rewards.
    pub(crate) fn ready(&self) -> bool {
        self.pending.is_some() && self.guides.iter().all(|g| g.rewards.is_some())
    }

    /// Whether the client has gone.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.output.is_closed()
    }

    /// Closes all sessions and forgets the pending step: the text waits, and goes on later from its
    /// tokens and the guidances as they were resolved.
    pub(crate) fn release(&mut self) {
        self.pending = None;
        self.trail.queued();
        for guide in &mut self.guides {
            guide.session = None;
            guide.rewards = None;
            guide.before = Before::Nothing;
            guide.found();
        }
    }

    /// Whether it waits for a worker to be there at all.
    pub(crate) fn is_stranded(&self) -> bool {
        self.guides.iter().any(|g| g.stranded)
    }

    /// UNAVAILABLE, with what the client needs beside the tokens it has to go on from there.
    pub(crate) fn interrupted(&self, problem: &str) -> Status {
        let step = self.step();
        let seed = self.request.sampling.seed;
        let message = format!(
            "{problem}; {step} tokens are there: to go on, send the request again with `resume` = those tokens \
             and seed {seed}"
        );
        status::interrupted(
            message,
            RETRY_AFTER,
            [("resume_tokens", step.to_string()), ("resume_seed", seed.to_string())],
        )
    }

    /// Ends the text.
    pub(crate) fn finish(self, reason: FinishReason, now: Instant) {
        let usage = Usage {
            prompt_tokens: self.request.prompt_ids.len() as u32,
            generated_tokens: self.step() - self.request.resumed.len() as u32,
            cached_tokens: self.cached.unwrap_or(0) as u32,
        };
        let finish = Finish {
            reason: reason.into(),
            usage: Some(usage),
            timings: Some(self.trail.timings(now)),
            seed: self.request.sampling.seed,
            guidances: self.guides.iter().filter_map(|g| g.resolved.clone()).collect(),
        };
        // Its sessions are part of its trail, and end before it.
        drop(self.guides);
        self.trail.finished(reason, &usage);
        // Who has read the end must find the place free.
        drop(self.place);
        self.output.finish(finish);
    }

    /// Sends the client the token that was chosen last.
    pub(crate) fn tell(&mut self, instruments: &Instruments) {
        let mut lap = Lap::start();
        self.output.tell();
        instruments.emit.record(lap.time());
    }

    /// Ends the text with an error.
    pub(crate) fn fail(self, status: Status) {
        drop(self.guides);
        self.trail.failed(status.code());
        drop(self.place);
        self.output.fail(status);
    }
}

/// Rewards that keep the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// The pending step's.
    InTime,
    /// Of a step that is over: ignored.
    Late,
}

/// What follows a chosen token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another step, behind this token.
    Continue(u32),
    /// The text has ended.
    Finish(FinishReason),
}

impl Guide {
    fn new(asked: ValidGuidance) -> Self {
        Self {
            asked,
            resolved: None,
            session: None,
            rewards: None,
            awaiting: None,
            warm: false,
            before: Before::Nothing,
            losses: 0,
            faults: 0,
            lost_since: None,
            stranded: false,
            retry_at: None,
        }
    }

    /// All is well: earlier losses count no more.
    fn found(&mut self) {
        (self.losses, self.faults) = (0, 0);
        (self.lost_since, self.retry_at) = (None, None);
    }

    /// `r_j` of the candidates: what the worker sent, less the base model's own values where the
    /// reference is the generator.
    fn rewards(&mut self, candidates: &Candidates) -> Result<Vec<f32>, RowError> {
        let values = self.rewards.take().ok_or(RowError::Length { want: candidates.len(), got: 0 })?;
        let (reference, normalization) =
            self.resolved.as_ref().map(|r| (r.reference(), r.normalization())).unwrap_or_default();
        if reference == Reference::Generator {
            against_generator(&values, candidates, normalization == Normalization::Vocabulary)
        } else {
            Ok(values)
        }
    }
}
