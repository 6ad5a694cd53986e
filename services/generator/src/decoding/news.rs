//! What becomes of sequences when something is heard of a worker: it comes, answers, fails, or leaves.

use std::time::Instant;

use attune_proto::reward::v1::response_frame::Frame;

use super::Decoding;
use crate::{
    guides::{self, Loss, Verdict},
    scheduler::SequenceId,
    worker::{Event, Problem, WorkerId},
};

impl Decoding {
    /// Takes news of a worker.
    pub(crate) fn worker(&mut self, worker: WorkerId, event: Event, now: Instant) {
        match event {
            Event::Found(name) => self.pool.found(worker, name),
            Event::Up(description, requests) => {
                self.pool.up(worker, *description, requests);
                for guide in self.sequences.values_mut().flat_map(|s| &mut s.guides) {
                    guide.retry_at = None;
                }
            }
            Event::Frames(frames, _permit) => {
                for frame in frames {
                    self.answer(worker, frame, now);
                }
            }
            Event::Down(problem) => self.down(worker, problem, true, now),
            Event::Ended => {
                self.down(worker, Problem::Unreachable("the worker ended the stream".into()), false, now);
            }
            Event::Leaving => self.pool.leaving(worker),
            Event::Gone => {
                self.down(worker, Problem::Unreachable("the worker was removed".into()), false, now);
                self.pool.gone(worker);
            }
        }
    }

    pub(super) fn down(&mut self, worker: WorkerId, problem: Problem, failed: bool, now: Instant) {
        let (holders, failed) = self.pool.down(worker, problem, failed, now);
        for (id, index) in holders {
            self.lose(id, index, if failed { Loss::Fault } else { Loss::Circumstance }, now);
        }
    }

    fn lose(&mut self, id: SequenceId, index: usize, loss: Loss, now: Instant) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            guides::lose(sequence, index, loss, &mut self.pool, now);
        }
    }

    /// A worker's answer to one session.
    fn answer(&mut self, worker: WorkerId, frame: Frame, now: Instant) {
        let session = match &frame {
            Frame::Load(load) => return self.pool.load(worker, load),
            Frame::Opened(opened) => opened.session_id,
            Frame::Rewards(rewards) => rewards.session_id,
            Frame::Failed(failed) => failed.session_id,
        };
        // Of a session closed meanwhile: whoever was merely slow is heard no more.
        let Some((at, (id, index))) = self.pool.route(session) else {
            return self.pool.counters().late.add();
        };
        if at != worker {
            return self.distrust(worker, "it answered for a session of another worker", now);
        }
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match guides::answer(sequence, index, frame, worker, &mut self.pool, now) {
            Verdict::Distrust(problem) => self.distrust(worker, &problem, now),
            verdict => self.follow(id, verdict, now),
        }
    }

    fn distrust(&mut self, worker: WorkerId, problem: &str, now: Instant) {
        for (id, index) in self.pool.distrust(worker, problem, now) {
            self.lose(id, index, Loss::Circumstance, now);
        }
    }

    pub(super) fn follow(&mut self, id: SequenceId, verdict: Verdict, now: Instant) {
        match verdict {
            Verdict::Wait(pause) => {
                self.withdraw(id);
                self.parked.push((now + pause, id));
            }
            Verdict::WaitForRoom => {
                self.withdraw(id);
                self.roomless.insert(id);
            }
            Verdict::Fail(status) => self.fail(id, status),
            Verdict::Fine | Verdict::Distrust(_) => {}
        }
    }

    /// Takes from a sequence all that it holds.
    fn withdraw(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.release();
        }
    }
}
