//! What the engine computes: forward passes, and the answers that they make possible.

use std::time::Instant;

use attune_engine::{Feature, ForwardError, Question, Side};
use attune_guidance::RowError;
use attune_proto::reward::v1::{FailureReason, Rewards, response_frame};
use attune_service::telemetry::trace;

use super::{Engine, internal};
use crate::{
    failure::Failure,
    model::Rows,
    scheduler::{Key, Run},
};

impl Engine {
    /// One forward pass: the policy for all, the reference for those that are measured against it.
    pub(super) fn step(&mut self) {
        let plan = self.scheduler.plan();
        self.instruments.preempted(plan.preempted.len());
        let rows = plan.runs.iter().map(|r| r.len).sum();
        self.instruments.pass(rows);
        let step = tracing::debug_span!("step", rows);
        self.link(&step, plan.runs.iter().map(|run| run.key));
        let _step = step.enter();
        let span = tracing::debug_span!("forward", rows).entered();
        let start = Instant::now();
        for key in plan.preempted {
            let message = "the session had to make room for an older one; open it again later";
            self.fail(key, Failure::new(FailureReason::Preempted, message));
        }
        let measured: Vec<Run> = plan
            .runs
            .iter()
            .copied()
            .filter(|r| self.sessions.get(&r.key).is_some_and(|s| s.against_model))
            .collect();
        let read = self.forward(Side::Policy, &plan.runs).and_then(|policy| {
            let none = measured.is_empty();
            Ok((policy, if none { Vec::new() } else { self.forward(Side::Reference, &measured)? }))
        });
        let (policy, reference) = match read {
            Ok(read) => read,
            Err(error) => return self.failed(&plan.runs, error),
        };
        self.model.persrm().rest();
        let now = Instant::now();
        drop(span);
        self.instruments.forward.record(now.saturating_duration_since(start));
        if let Err(error) = self.take(policy, reference, now) {
            return self.failed(&plan.runs, error);
        }
        plan.runs.iter().for_each(|run| self.scheduler.done(run));
    }

    /// Hands the sessions their features, turned into their persons'.
    fn take(
        &mut self,
        policy: Vec<(Key, Feature)>,
        reference: Vec<(Key, Feature)>,
        now: Instant,
    ) -> Result<(), ForwardError> {
        for (key, mut feature) in policy {
            if let Some(active) = self.sessions.get_mut(&key) {
                active.person.policy(self.model.persrm(), &mut feature)?;
                active.features.policy = Some(feature);
                active.ready = now;
                active.trail.ready();
            }
        }
        for (key, mut feature) in reference {
            if let Some(active) = self.sessions.get_mut(&key) {
                active.person.reference(&mut feature);
                active.features.reference = Some(feature);
            }
        }
        Ok(())
    }

    /// Reads the runs with one side; gives the features of those that have read all.
    fn forward(&self, side: Side, runs: &[Run]) -> Result<Vec<(Key, Feature)>, ForwardError> {
        let mut wanted = Vec::with_capacity(runs.len());
        let mut rows = Vec::with_capacity(runs.len());
        for run in runs {
            if let Some((tokens, blocks)) = self.scheduler.rows(run) {
                rows.push(Rows { tokens, start: run.start, blocks, last: run.last });
                if run.last {
                    wanted.push(run.key);
                }
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        Ok(wanted.into_iter().zip(self.model.forward(side, &rows)?).collect())
    }

    /// The pass over these runs failed. Where the device's memory was too small, the newest session makes
    /// room and the others are read again; else all of them fail.
    fn failed(&mut self, runs: &[Run], error: ForwardError) {
        tracing::error!(%error, sessions = runs.len(), "a forward pass failed");
        if error.is_out_of_memory() {
            if let Some(newest) = runs.iter().map(|run| run.key).max() {
                self.fail(newest, internal(&error));
            }
            return;
        }
        for run in runs {
            self.fail(run.key, internal(&error));
        }
        if error.is_fatal() {
            self.broken = Some(error);
        }
    }

    /// Answers every session whose candidates and hidden state are there, in one batch.
    pub(super) fn answer(&mut self) {
        let mut keys = Vec::new();
        let mut questions = Vec::new();
        for (key, ids) in self.scheduler.answerable() {
            let Some(active) = self.sessions.get(&key) else { continue };
            if let Some(policy) = &active.features.policy {
                keys.push(key);
                questions.push(Question {
                    policy,
                    reference: active.features.reference.as_ref(),
                    ids,
                    over_vocabulary: active.over_vocabulary,
                });
            }
        }
        if keys.is_empty() {
            return;
        }
        let start = Instant::now();
        let answers = {
            let span = tracing::debug_span!("score", rows = questions.len());
            self.link(&span, keys.iter().copied());
            let _span = span.enter();
            self.model.score(&questions)
        };
        self.model.persrm().rest();
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => return self.not_scored(&keys, error),
        };
        let now = Instant::now();
        self.instruments.score.record(now.saturating_duration_since(start));
        self.batching.answered(attune_service::now());
        for (key, answer) in keys.into_iter().zip(answers) {
            match answer {
                Ok(values) => self.reply(key, values, now),
                Err(error) => self.fail_score(key, &error),
            }
        }
    }

    /// The device could not score these sessions. Too little memory is the newest one's loss, and the others
    /// are asked again.
    fn not_scored(&mut self, keys: &[Key], error: ForwardError) {
        tracing::error!(%error, sessions = keys.len(), "candidates could not be scored");
        let failed = if error.is_out_of_memory() { &keys[keys.len().saturating_sub(1)..] } else { keys };
        for &key in failed {
            self.fail(key, internal(&error));
        }
        if error.is_fatal() {
            self.broken = Some(error);
        }
    }

    /// Links a batch's span to the sessions in it.
    fn link(&self, span: &tracing::Span, keys: impl Iterator<Item = Key>) {
        trace::link(span, keys.filter_map(|key| Some(self.sessions.get(&key)?.trail.context())));
    }

    fn reply(&mut self, key: Key, values: Vec<f32>, now: Instant) {
        let (Some(session), Some(active)) = (self.scheduler.session(key), self.sessions.get(&key)) else {
            return;
        };
        session.answered();
        self.instruments.answer.record(now.saturating_duration_since(active.asked));
        let since = active.asked.max(active.ready);
        let rewards = Rewards {
            session_id: active.session_id,
            step: u32::try_from(session.step()).unwrap_or(u32::MAX),
            values,
            work_seconds: now.saturating_duration_since(since).as_secs_f32(),
        };
        self.streams.push(active.stream, response_frame::Frame::Rewards(rewards));
    }

    fn fail_score(&mut self, key: Key, error: &RowError) {
        let field = self.sessions.get(&key).and_then(|s| s.person.field());
        let failure = if let Some(field) = field {
            Failure::invalid(field, "these numbers make rewards that are not finite; send smaller ones")
        } else {
            tracing::error!(%error, "the model's rewards are not finite");
            Failure::new(FailureReason::Internal, "the model's rewards are not finite: the model is damaged")
        };
        self.fail(key, failure);
    }
}
