//! The sessions of one sequence: opened, answered, lost and opened anew.

use std::time::{Duration, Instant};

use attune_proto::reward::v1::{Failed, FailureReason, response_frame::Frame};
use attune_service::status;
use tonic::Status;

use crate::{
    pool::{NoWorker, Opening, Pool},
    scheduler::SequenceId,
    sequence::Sequence,
};

/// A worker that fails one session so often in a row will not carry it.
const MAX_LOSSES: u32 = 8;
const RETRY: Duration = Duration::from_millis(20);
const MAX_RETRY: Duration = Duration::from_millis(500);

/// What an event means for the whole text.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    Fine,
    /// It gives back all it holds and queues again after this long.
    Wait(Duration),
    /// It ends.
    Fail(Status),
}

/// Takes a worker's answer to guidance `index`.
pub(crate) fn answer(sequence: &mut Sequence, index: usize, frame: Frame, now: Instant) -> Verdict {
    match frame {
        Frame::Opened(opened) => {
            let guide = &mut sequence.guides[index];
            if guide.resolved.is_none() {
                guide.resolved = opened.guidance;
            }
            sequence.refusals = 0;
            Verdict::Fine
        }
        Frame::Rewards(rewards) => {
            if let Err(problem) = sequence.take_rewards(index, rewards.step, rewards.values) {
                tracing::warn!(problem, "a reward worker broke the protocol");
                lose(sequence, index, now);
            }
            Verdict::Fine
        }
        Frame::Failed(failed) => failure(sequence, index, &failed, now),
        Frame::Load(_) => Verdict::Fine,
    }
}

fn failure(sequence: &mut Sequence, index: usize, failed: &Failed, now: Instant) -> Verdict {
    let field = match failed.field.as_str() {
        "" => format!("guidances[{index}].guidance"),
        field => format!("guidances[{index}].guidance.{field}"),
    };
    let message = failed.message.as_str();
    match failed.reason() {
        FailureReason::Invalid => Verdict::Fail(status::invalid(field, message)),
        FailureReason::NotFound => Verdict::Fail(status::not_found("guidance", field, message)),
        FailureReason::Precondition => Verdict::Fail(status::precondition("GUIDANCE", field, message)),
        FailureReason::Unimplemented => Verdict::Fail(Status::unimplemented(format!("{field}: {message}"))),
        FailureReason::Exhausted => {
            // Nobody may hold blocks here while waiting for a slot there.
            sequence.refusals += 1;
            Verdict::Wait(backoff(sequence.refusals))
        }
        reason => {
            tracing::warn!(reason = reason.as_str_name(), message, "a reward session failed");
            lose(sequence, index, now);
            Verdict::Fine
        }
    }
}

/// Notes that guidance `index` has no session any more.
pub(crate) fn lose(sequence: &mut Sequence, index: usize, now: Instant) {
    let Some(guide) = sequence.guides.get_mut(index) else { return };
    guide.session = None;
    guide.rewards = None;
    guide.losses += 1;
    guide.lost_since.get_or_insert(now);
    // A first loss is made good at once: a worker has gone and another may be there.
    guide.retry_at = Some(if guide.losses == 1 { now } else { now + backoff(guide.losses) });
}

/// Opens the sessions that a running sequence lacks, and asks them for the pending step.
pub(crate) fn open(
    sequence: &mut Sequence,
    id: SequenceId,
    pool: &mut Pool,
    patience: Duration,
    now: Instant,
) -> Verdict {
    let step = sequence.step();
    let overdue = sequence.pending.as_ref().is_some_and(|p| now >= p.since + patience);
    for index in 0..sequence.guides.len() {
        let guide = &sequence.guides[index];
        if overdue && guide.rewards.is_none() {
            return give_up(sequence, "the reward worker did not answer in time");
        }
        if guide.session.is_some() {
            continue;
        }
        if guide.losses > MAX_LOSSES {
            return give_up(sequence, "the reward workers keep failing this text");
        }
        if guide.retry_at.is_some_and(|at| now < at) {
            continue;
        }
        let opening = Opening {
            owner: &sequence.owner,
            prompt: &sequence.request.prompt,
            generated: sequence.generated(),
            guidance: &guide.asked.guidance,
            resolved: guide.resolved.as_ref(),
        };
        match pool.open((id, index), &opening) {
            Ok(session) => {
                if let Some(pending) = &sequence.pending {
                    session.candidates(step, &pending.candidates.ids);
                }
                sequence.guides[index].session = Some(session);
            }
            Err(NoWorker::NoSuchModel(served)) => {
                let asked = &guide.asked.guidance.reward_model;
                let message = format!("no reward model `{asked}` is served; there are: {served}");
                return Verdict::Fail(status::not_found("reward_model", asked.clone(), message));
            }
            Err(NoWorker::Unfit(message)) => {
                return Verdict::Fail(status::precondition("REWARD_MODEL", "reward worker", message));
            }
            Err(NoWorker::Unreachable(message)) => {
                let guide = &mut sequence.guides[index];
                if now >= *guide.lost_since.get_or_insert(now) + patience {
                    return give_up(sequence, &format!("no reward worker can be reached: {message}"));
                }
                guide.retry_at = Some(now + MAX_RETRY);
            }
        }
    }
    Verdict::Fine
}

/// Nobody can reward this text: it ends, or goes on without, as its client said beforehand.
fn give_up(sequence: &mut Sequence, problem: &str) -> Verdict {
    if sequence.request.continue_unguided {
        tracing::warn!(problem, "a text goes on unguided");
        sequence.guides.clear();
        return Verdict::Fine;
    }
    let message = format!("{problem}; {} tokens were generated", sequence.step());
    Verdict::Fail(status::unavailable(message, Duration::from_secs(1)))
}

/// When the sequence must be looked at though nothing arrives.
pub(crate) fn next_deadline(sequence: &Sequence, patience: Duration) -> Option<Instant> {
    let pending = sequence.pending.as_ref().filter(|_| !sequence.guides.is_empty());
    let step = pending.map(|p| p.since + patience);
    let lost = sequence.guides.iter().filter(|g| g.session.is_none());
    lost.filter_map(|g| g.retry_at).chain(step).min()
}

fn backoff(times: u32) -> Duration {
    (RETRY * 2u32.saturating_pow(times.saturating_sub(1).min(10))).min(MAX_RETRY)
}
