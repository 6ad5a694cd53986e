//! Which sessions read how much in the next forward pass, and which blocks they hold.
//!
//! Pure state: no clock, no channel, no tensor.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use attune_engine::kv::{BLOCK_SIZE, Block, BlockPool, blocks_for};
use attune_proto::reward::v1::FailureReason;

use crate::{
    failure::Failure,
    session::{Limits, Session},
    slots::{Slot, Slots},
};

/// A session on this worker, over all streams: counted up, so that a later one is a younger one.
pub(crate) type Key = u64;

/// What one session reads in a pass: tokens `start..start + len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The session.
    pub(crate) key: Key,
    /// The position of the first token.
    pub(crate) start: usize,
    /// How many tokens; at least one.
    pub(crate) len: usize,
    /// Whether the session has then read all it knows, so that its hidden state is wanted.
    pub(crate) last: bool,
}

/// The next forward pass.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Who reads what.
    pub(crate) runs: Vec<Run>,
    /// Sessions that made room for older ones; they are gone already.
    pub(crate) preempted: Vec<Key>,
}

struct Entry {
    session: Session,
    blocks: Vec<Block>,
    /// The blocks' indices, kept so that a step allocates nothing that grows with the context.
    ids: Vec<u32>,
    _slot: Option<Slot>,
}

/// All open sessions.
pub(crate) struct Scheduler {
    entries: BTreeMap<Key, Entry>,
    limits: Limits,
    slots: Slots,
    pool: BlockPool,
    /// Tokens of prompts, over all sessions, in one pass.
    chunk: usize,
    next: Key,
    /// The session whose prompt was read last: the others come before it again.
    turn: Key,
    admitted: usize,
}

impl Scheduler {
    /// No sessions yet; at most `slots` at once, in `blocks` blocks, reading `chunk` tokens of
    /// prompts a pass.
    ///
    /// The context is limited to what the blocks hold, so that a session alone always ends.
    pub(crate) fn new(limits: Limits, slots: usize, blocks: usize, chunk: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            limits: Limits { context: limits.context.min(blocks * BLOCK_SIZE), ..limits },
            slots: Slots::new(slots),
            pool: BlockPool::new(blocks),
            chunk: chunk.max(1),
            next: 1,
            turn: 0,
            admitted: 0,
        }
    }

    /// Starts a session behind `generated` tokens. It holds the slot until it is admitted or dropped.
    ///
    /// # Errors
    /// EXHAUSTED without a free slot, INVALID for tokens that can never be served.
    pub(crate) fn open(&mut self, generated: Vec<u32>) -> Result<(Key, Slot), Failure> {
        let session = Session::new(self.limits, generated)?;
        let slot = self.slots.take().ok_or_else(|| {
            exhausted(format!("all {} slots are taken; try again later or elsewhere", self.slots.total()))
        })?;
        let key = self.next;
        self.next += 1;
        self.entries.insert(key, Entry { session, blocks: vec![], ids: vec![], _slot: None });
        Ok((key, slot))
    }

    /// Admits a session with its prompt: it gets blocks for all that it knows and one more token.
    /// Nobody else has to go for it.
    ///
    /// # Errors
    /// EXHAUSTED without enough free blocks, INVALID for a prompt that can never be served.
    pub(crate) fn admit(&mut self, key: Key, slot: Slot, prompt: &[u32]) -> Result<(), Failure> {
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(()) };
        entry.session.set_prompt(prompt)?;
        let tokens = (entry.session.tokens().len() + 1).min(self.limits.context);
        entry.take(&self.pool, blocks_for(tokens)).ok_or_else(|| {
            exhausted("too little cache memory is free; try again later or elsewhere".to_owned())
        })?;
        entry._slot = Some(slot);
        self.admitted += 1;
        Ok(())
    }

    /// Ends a session and frees what it holds.
    pub(crate) fn remove(&mut self, key: Key) {
        if self.entries.remove(&key).is_some_and(|e| e._slot.is_some()) {
            self.admitted -= 1;
        }
    }

    /// A session, to hand it a frame.
    pub(crate) fn session(&mut self, key: Key) -> Option<&mut Session> {
        self.entries.get_mut(&key).map(|e| &mut e.session)
    }

    /// What bounds every session.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether a forward pass has anything to do.
    pub(crate) fn has_work(&self) -> bool {
        self.entries.values().any(|e| e.session.unread() > 0)
    }

    /// Sessions whose candidates can be answered now, oldest first.
    pub(crate) fn answerable(&self) -> impl Iterator<Item = (Key, &[u32])> {
        self.entries.iter().filter_map(|(&key, e)| Some((key, e.session.answerable()?)))
    }

    /// Admitted sessions, and blocks that they hold.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.admitted, self.pool.total() - self.pool.free())
    }

    /// Blocks in all.
    pub(crate) fn blocks(&self) -> usize {
        self.pool.total()
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.slots.total()
    }

    /// The tokens of a run and its session's blocks.
    pub(crate) fn rows(&self, run: &Run) -> Option<(&[u32], &[u32])> {
        let entry = self.entries.get(&run.key)?;
        Some((entry.session.tokens().get(run.start..run.start + run.len)?, &entry.ids))
    }

    /// Notes that a run's tokens have been read.
    pub(crate) fn done(&mut self, run: &Run) {
        if let Some(session) = self.session(run.key) {
            session.advance_read(run.len);
        }
    }

    /// Plans the next pass: every session with one token to read, and prompts in turn as far as the
    /// chunk goes. The youngest sessions make room where blocks run out.
    pub(crate) fn plan(&mut self) -> Plan {
        let preempted = self.grow();
        let mut runs = Vec::new();
        for (&key, entry) in &self.entries {
            if entry.session.unread() == 1 {
                runs.push(entry.run(key, 1));
            }
        }
        let mut left = self.chunk;
        let after = self.entries.range((Excluded(self.turn), Unbounded));
        let mut turn = self.turn;
        for (&key, entry) in after.chain(self.entries.range(..=self.turn)) {
            let unread = entry.session.unread();
            if unread < 2 || left == 0 {
                continue;
            }
            let len = unread.min(left);
            runs.push(entry.run(key, len));
            left -= len;
            turn = key;
        }
        self.turn = turn;
        Plan { runs, preempted }
    }

    /// Gives every session the blocks for what it knows, the oldest first.
    fn grow(&mut self) -> Vec<Key> {
        let mut preempted = Vec::new();
        let short =
            |e: &Entry| e.session.unread() > 0 && e.blocks.len() < blocks_for(e.session.tokens().len());
        let keys: Vec<Key> = self.entries.iter().filter(|(_, e)| short(e)).map(|(&k, _)| k).collect();
        for key in keys {
            while let Some(entry) = self.entries.get_mut(&key) {
                if entry.take(&self.pool, blocks_for(entry.session.tokens().len())).is_some() {
                    break;
                }
                // The youngest that holds blocks; at worst the session itself, and then the loop ends.
                let holders = self.entries.iter().rev();
                let youngest = holders.filter(|(_, e)| !e.blocks.is_empty()).map(|(&k, _)| k).next();
                let youngest = youngest.unwrap_or(key);
                self.remove(youngest);
                preempted.push(youngest);
            }
        }
        preempted
    }
}

impl Entry {
    /// Takes blocks until there are `total`, or none.
    fn take(&mut self, pool: &BlockPool, total: usize) -> Option<()> {
        let more = pool.take(total.saturating_sub(self.blocks.len()))?;
        self.ids.extend(more.iter().map(Block::id));
        self.blocks.extend(more);
        Some(())
    }

    fn run(&self, key: Key, len: usize) -> Run {
        Run { key, start: self.session.position(), len, last: len == self.session.unread() }
    }
}

fn exhausted(message: String) -> Failure {
    Failure::new(FailureReason::Exhausted, message)
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
