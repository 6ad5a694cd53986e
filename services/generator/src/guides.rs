//! The sessions of one sequence: opened, answered, lost, moved and opened anew.

use std::time::{Duration, Instant};

use attune_proto::reward::v1::{Failed, FailureReason, response_frame::Frame};
use attune_service::status;
use tonic::Status;

use crate::{
    backoff::pause,
    choice::{self, NoWorker, Wanted},
    pool::{Before, Opening, Pool},
    scheduler::SequenceId,
    sequence::{Guide, Received, Sequence},
    worker::WorkerId,
};

/// A text at which workers fail or die so often in a row is not tried on yet another: it may be what fails
/// them.
const MAX_FAULTS: u32 = 8;
/// The first and the longest pause before a session is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// When a client does well to ask again for what cannot be looked up.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);
/// Each loss doubles the next deadline, up to so many times: a slow worker gets the time it needs.
const MAX_DOUBLINGS: u32 = 4;

/// How long sequences wait for others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// How long runnable rows wait for the rewards of the others, to share an iteration.
    pub(crate) grace: Duration,
    /// How long a step's rewards may take; then its session moves.
    pub(crate) step: Duration,
    /// The same for the first rewards of a session, which reads the whole context before.
    pub(crate) prefill: Duration,
    /// How long a text waits while no worker can take its session.
    pub(crate) lost: Duration,
}

/// What an event means for the whole text.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    Fine,
    /// It gives back all it holds and queues again after this long.
    Wait(Duration),
    /// It gives back all it holds and queues again when a worker has room.
    WaitForRoom,
    /// It ends.
    Fail(Status),
    /// The worker broke the protocol, in words.
    Distrust(String),
}

/// Takes the answer of `worker` to guidance `index`.
pub(crate) fn answer(
    sequence: &mut Sequence,
    index: usize,
    frame: Frame,
    worker: WorkerId,
    pool: &mut Pool,
    now: Instant,
) -> Verdict {
    match frame {
        Frame::Opened(opened) => {
            let Some(resolved) = opened.guidance else {
                return Verdict::Distrust("a session was opened without its guidance".into());
            };
            let guide = &mut sequence.guides[index];
            if let Some(revision) = guide.asked.revision.as_ref().filter(|r| **r != resolved.model_revision) {
                let message = format!(
                    "`{}` contrasts the base model with itself: its worker must serve revision `{revision}`, \
                     but `{}` is revision `{}`; name another in `reward_model`",
                    resolved.method, resolved.reward_model, resolved.model_revision
                );
                let field = format!("guidances[{index}].guidance.reward_model");
                return Verdict::Fail(status::precondition("GUIDANCE", field, message));
            }
            guide.resolved.get_or_insert(resolved);
            sequence.refusals = 0;
            Verdict::Fine
        }
        Frame::Rewards(rewards) => match sequence.take_rewards(index, rewards.step, rewards.values) {
            Ok(Received::InTime) => {
                pool.succeeded(worker);
                Verdict::Fine
            }
            Ok(Received::Late) => {
                pool.counters().late.add();
                Verdict::Fine
            }
            Err(problem) => Verdict::Distrust(problem),
        },
        Frame::Failed(failed) => failure(sequence, index, &failed, worker, pool, now),
        Frame::Load(_) => Verdict::Fine,
    }
}

fn failure(
    sequence: &mut Sequence,
    index: usize,
    failed: &Failed,
    worker: WorkerId,
    pool: &mut Pool,
    now: Instant,
) -> Verdict {
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
        FailureReason::Unavailable => {
            Verdict::Fail(status::unavailable(format!("{field}: {message}"), UNAVAILABLE_RETRY))
        }
        FailureReason::Exhausted => {
            // Nobody may hold blocks here while waiting for a slot there.
            sequence.refusals += 1;
            Verdict::Wait(pause(RETRY.0, RETRY.1, sequence.refusals, &mut pool.dice))
        }
        reason @ (FailureReason::Preempted | FailureReason::Draining) => {
            tracing::debug!(reason = reason.as_str_name(), message, "a reward session has to move");
            lose(sequence, index, Loss::Circumstance, pool, now);
            let guide = &mut sequence.guides[index];
            // It made room: it must not take it back at once.
            guide.retry_at = Some(now + pause(RETRY.0, RETRY.1, guide.losses, &mut pool.dice));
            Verdict::Fine
        }
        reason => {
            let _request = sequence.trail.attach();
            tracing::warn!(reason = reason.as_str_name(), message, "a reward session failed");
            pool.failed(worker, now);
            lose(sequence, index, Loss::Fault, pool, now);
            Verdict::Fine
        }
    }
}

/// Why a session was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Its worker failed at it, or died.
    Fault,
    /// Its worker was slow, was distrusted, or needed the room.
    Circumstance,
}

/// Notes that guidance `index` has no session any more.
pub(crate) fn lose(sequence: &mut Sequence, index: usize, loss: Loss, pool: &mut Pool, now: Instant) {
    let Some(guide) = sequence.guides.get_mut(index) else { return };
    let Some(session) = guide.session.take() else { return };
    pool.counters().failed.add();
    session.lost();
    guide.before = Before::Lost(session.worker());
    guide.rewards = None;
    guide.losses += 1;
    guide.faults += u32::from(loss == Loss::Fault);
    guide.lost_since.get_or_insert(now);
    // A first loss is made good at once: a worker has gone and another may be there.
    let wait = match guide.losses {
        1 => Duration::ZERO,
        losses => pause(RETRY.0, RETRY.1, losses, &mut pool.dice),
    };
    guide.retry_at = Some(now + wait);
}

/// Moves the sessions whose workers are late or leave, opens those that a running sequence lacks, and
/// asks the new ones for the pending step.
pub(crate) fn open(
    sequence: &mut Sequence,
    id: SequenceId,
    pool: &mut Pool,
    patience: &Patience,
    now: Instant,
) -> Verdict {
    for index in 0..sequence.guides.len() {
        release_late(sequence, index, pool, patience, now);
        let guide = &sequence.guides[index];
        if guide.session.is_some() {
            continue;
        }
        if guide.faults > MAX_FAULTS {
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
            before: guide.before,
            request: sequence.trail.span(),
        };
        match pool.open((id, index), &opening, now) {
            Ok(session) => sequence.opened(index, session, now),
            Err(NoWorker::Full) => {
                return too_many(sequence, index, pool).map_or(Verdict::WaitForRoom, Verdict::Fail);
            }
            Err(NoWorker::NoSuchModel(served)) => {
                let asked = &guide.asked.guidance.reward_model;
                let message = format!("no reward model `{asked}` is served; there are: {served}");
                return Verdict::Fail(status::not_found("reward_model", asked.clone(), message));
            }
            Err(NoWorker::Ambiguous(served)) => {
                let field = format!("guidances[{index}].guidance.reward_model");
                let message =
                    format!("is empty, but several reward models are served; name one of: {served}");
                return Verdict::Fail(status::invalid(field, message));
            }
            Err(NoWorker::Unfit(message)) => {
                return Verdict::Fail(status::precondition("REWARD_MODEL", "reward worker", message));
            }
            Err(NoWorker::Unreachable(message) | NoWorker::Later(message)) => {
                let wait = pause(RETRY.1, RETRY.1, 1, &mut pool.dice);
                let guide = &mut sequence.guides[index];
                guide.stranded = true;
                let until = *guide.lost_since.get_or_insert(now) + patience.lost;
                if now >= until {
                    return give_up(sequence, &format!("no reward worker can go on: {message}"));
                }
                guide.retry_at = Some(until.min(now + wait));
            }
        }
    }
    Verdict::Fine
}

/// Takes a session off a worker that is late with its rewards, or that leaves while another has room.
fn release_late(sequence: &mut Sequence, index: usize, pool: &mut Pool, patience: &Patience, now: Instant) {
    let guide = &sequence.guides[index];
    let Some(session) = &guide.session else { return };
    if due(guide, patience).is_some_and(|due| due <= now) {
        pool.counters().timeouts.add();
        let _request = sequence.trail.attach();
        tracing::warn!(step = sequence.step(), "the rewards of a step are late; its session moves");
        pool.failed(session.worker(), now);
        lose(sequence, index, Loss::Circumstance, pool, now);
    } else if guide.rewards.is_none()
        && pool.should_move(session, &Wanted::of(&guide.asked.guidance, guide.resolved.as_ref()), now)
    {
        let guide = &mut sequence.guides[index];
        guide.session = None;
        guide.before = Before::Moved;
        guide.retry_at = None;
    }
}

/// When the rewards that a session owes are late.
fn due(guide: &Guide, patience: &Patience) -> Option<Instant> {
    let limit = if guide.warm { patience.step } else { patience.prefill };
    let doubled = limit.saturating_mul(1 << guide.losses.min(MAX_DOUBLINGS));
    guide.awaiting.filter(|_| guide.session.is_some() && guide.rewards.is_none()).map(|since| since + doubled)
}

/// Nobody can reward this text: it ends, or goes on without, as its client said beforehand.
fn give_up(sequence: &mut Sequence, problem: &str) -> Verdict {
    if sequence.request.continue_unguided {
        let _request = sequence.trail.attach();
        tracing::warn!(problem, "a text goes on unguided");
        sequence.guides.clear();
        return Verdict::Fine;
    }
    Verdict::Fail(sequence.interrupted(problem))
}

/// Whether the sequence would be turned away for want of room.
pub(crate) fn lacks_room(sequence: &Sequence, pool: &Pool, now: Instant) -> bool {
    sequence.guides.iter().any(|guide| {
        let wanted = Wanted::of(&guide.asked.guidance, guide.resolved.as_ref());
        choice::room(pool, &wanted, now).is_some_and(|room| room < needed(sequence, &wanted))
    })
}

/// Sessions of the same kind that the sequence needs at once.
fn needed(sequence: &Sequence, wanted: &Wanted<'_>) -> u32 {
    let of = |g: &&Guide| Wanted::of(&g.asked.guidance, g.resolved.as_ref()) == *wanted;
    sequence.guides.iter().filter(of).count() as u32
}

/// Why a text can never run: it needs more sessions than there are slots. One that has begun did fit, and
/// waits for its workers to come back.
fn too_many(sequence: &Sequence, index: usize, pool: &Pool) -> Option<Status> {
    let guide = &sequence.guides[index];
    let wanted = Wanted::of(&guide.asked.guidance, guide.resolved.as_ref());
    let (needed, slots) = (needed(sequence, &wanted), choice::capacity(pool, &wanted)?);
    (sequence.generated().is_empty() && needed > slots).then(|| {
        let message = format!(
            "the text needs {needed} reward sessions at once, and the reward workers have {slots} slots in all; \
             ask for fewer guidances, or run more workers"
        );
        status::precondition("REWARD_SLOTS", "reward workers", message)
    })
}

/// When the sequence must be looked at though nothing arrives.
pub(crate) fn next_deadline(sequence: &Sequence, patience: &Patience) -> Option<Instant> {
    let guides = sequence.guides.iter();
    let due = guides.clone().filter_map(|g| due(g, patience));
    let retry = guides.filter(|g| g.session.is_none()).filter_map(|g| g.retry_at);
    due.chain(retry).min()
}
