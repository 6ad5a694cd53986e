//! The end of a step: rewards and base log-probabilities are fused, and a token is chosen. All steps that end at once
//! are fused in one batch.

use std::time::Instant;

use attune_engine::Assets;
use attune_guidance::{Candidates, RowError, Sampling, Term, fuse};
use attune_kernels::{Chosen, FuseRow};
use attune_proto::generator::v1::{Candidate, FinishReason, Token};

use super::{Guide, Next, Pending, Sequence};
use crate::metrics::Instruments;

/// A step whose rewards are all there.
pub(crate) struct Rewarded {
    candidates: Candidates,
    rewards: Vec<Reward>,
    min_p: f32,
    sampling: Sampling,
    /// When the candidates were sent.
    since: Instant,
    /// The choice in a trace.
    _fuse: tracing::Span,
}

/// What one guidance says of the candidates.
struct Reward {
    strength: f32,
    clip: Option<f32>,
    values: Vec<f32>,
}

impl Reward {
    fn term(&self) -> Term<'_> {
        Term { strength: self.strength, clip: self.clip, rewards: &self.values }
    }
}

impl Rewarded {
    /// The guidances' terms.
    pub(crate) fn terms(&self) -> Vec<Term<'_>> {
        self.rewards.iter().map(Reward::term).collect()
    }

    /// The step as it is fused, with its terms.
    pub(crate) fn row<'a>(&'a self, terms: &'a [Term<'a>]) -> FuseRow<'a> {
        FuseRow { candidates: &self.candidates, terms, min_p: self.min_p, sampling: self.sampling }
    }
}

impl Sequence {
    /// Takes the pending step, where all its rewards are there.
    ///
    /// # Errors
    /// Numbers that are not finite: this text fails, alone.
    pub(crate) fn rewarded(&mut self) -> Option<Result<Rewarded, RowError>> {
        if !self.ready() {
            return None;
        }
        let Pending { candidates, since, .. } = self.pending.take()?;
        let of = |guide: &mut Guide| {
            let (strength, clip) = (guide.asked.strength, guide.asked.clip);
            Ok(Reward { strength, clip, values: guide.rewards(&candidates)? })
        };
        let rewards = match self.guides.iter_mut().map(of).collect() {
            Ok(rewards) => rewards,
            Err(error) => return Some(Err(error)),
        };
        let (index, sampling) = (self.step(), &self.request.sampling);
        Some(Ok(Rewarded {
            candidates,
            rewards,
            min_p: sampling.min_p,
            sampling: Sampling {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                seed: sampling.seed,
                index,
            },
            since,
            _fuse: tracing::debug_span!(parent: self.trail.span(), "fuse"),
        }))
    }

    /// Goes on behind the token chosen at a step, and tells the sessions. The client hears of it by [`Sequence::tell`].
    ///
    /// # Errors
    /// Numbers that are not finite: this text fails, alone.
    pub(crate) fn choose(
        &mut self,
        rewarded: &Rewarded,
        chosen: &Chosen,
        assets: &Assets,
        instruments: &Instruments,
        now: Instant,
    ) -> Result<Next, RowError> {
        let token = self.describe(&rewarded.candidates, &rewarded.terms(), chosen)?;
        let (step, sampling) = (self.step(), &self.request.sampling);
        if !self.guides.is_empty() {
            let wait = now.saturating_duration_since(rewarded.since);
            instruments.reward_wait.record(wait);
            self.trail.waited(wait.as_secs_f64());
        }
        self.trail.token(self.request.prompt_ids.len(), now);
        self.tokens.push(chosen.id);
        if let (true, Err(at)) = (sampling.repetition_penalty != 1.0, self.seen.binary_search(&chosen.id)) {
            self.seen.insert(at, chosen.id);
        }
        self.place.take(1);
        let stopped = self.output.token(token, assets.tokenizer.output_bytes(chosen.id));
        let reason = if sampling.eos.contains(&chosen.id) {
            FinishReason::Eos
        } else if stopped {
            FinishReason::Stop
        } else if self.step() as usize >= sampling.max_tokens {
            FinishReason::Length
        } else {
            for guide in &self.guides {
                if let Some(session) = &guide.session {
                    session.advance(step, chosen.id);
                }
            }
            return Ok(Next::Continue(chosen.id));
        };
        Ok(Next::Finish(reason))
    }

    /// The token as the client sees it.
    fn describe(
        &self,
        candidates: &Candidates,
        terms: &[Term<'_>],
        chosen: &Chosen,
    ) -> Result<Token, RowError> {
        let output = self.request.output;
        let rewards = |i: usize| terms.iter().map(|t| t.rewards[i]).collect::<Vec<f32>>();
        let told = output.token_rewards || output.candidate_tables;
        let contributed: Vec<Vec<f64>> =
            if told { terms.iter().map(Term::contributions).collect() } else { Vec::new() };
        let contributions = |i: usize| contributed.iter().map(|c| c[i] as f32).collect::<Vec<f32>>();
        let table = if output.candidate_tables {
            let scores = fuse(candidates, terms, self.request.sampling.min_p)?.scores;
            let row = |(i, score): (usize, f64)| Candidate {
                id: candidates.ids[i],
                base_log_prob: candidates.log_prob(i) as f32,
                rewards: rewards(i),
                score: score as f32,
                contributions: contributions(i),
            };
            scores.into_iter().enumerate().map(row).collect()
        } else {
            Vec::new()
        };
        Ok(Token {
            id: chosen.id,
            base_log_prob: chosen.base_log_prob,
            fused_log_prob: chosen.fused_log_prob,
            guided: !self.guides.is_empty(),
            unguided_id: chosen.unguided_id,
            rewards: if output.token_rewards { rewards(chosen.index) } else { Vec::new() },
            contributions: if output.token_rewards { contributions(chosen.index) } else { Vec::new() },
            candidates: table,
        })
    }
}
