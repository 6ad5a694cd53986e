//! Which sessions read how much in the next forward pass, and which blocks they hold.
//!
//! Pure state: no clock, no channel, no tensor.

use std::{collections::BTreeMap, time::Instant};

use attune_engine::kv::{BLOCK_SIZE, BlockPool, BlockTable, CacheStats, Reader, Sharing, Writes};
use attune_proto::reward::v1::FailureReason;
use attune_service::batching::Demand;

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
    owner: String,
    /// From its admission on.
    held: Option<Held>,
    /// The pass behind which it was opened.
    opened: u64,
    /// The pass that read some of its owner's prompts last, when it was opened; then of its own prompt.
    turn: u64,
}

/// What an admitted session holds.
struct Held {
    table: BlockTable,
    _slot: Slot,
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
    /// Passes planned so far.
    passes: u64,
}

impl Scheduler {
    /// No sessions yet; at most `slots` at once, in `blocks` blocks, reading `chunk` tokens of
    /// prompts a pass.
    ///
    /// The context is limited to what the blocks hold, so that a session alone always ends.
    pub(crate) fn new(limits: Limits, slots: usize, blocks: usize, chunk: usize, sharing: Sharing) -> Self {
        Self {
            entries: BTreeMap::new(),
            limits: Limits { context: limits.context.min(blocks * BLOCK_SIZE), ..limits },
            slots: Slots::new(slots),
            pool: BlockPool::new(blocks, sharing),
            chunk: chunk.max(1),
            next: 1,
            passes: 0,
        }
    }

    /// Starts a session behind `generated` tokens. It holds the slot until it is admitted or dropped.
    ///
    /// # Errors
    /// EXHAUSTED without a slot for this owner, INVALID for tokens that can never be served.
    pub(crate) fn open(
        &mut self,
        owner: &str,
        generated: Vec<u32>,
        now: Instant,
    ) -> Result<(Key, Slot), Failure> {
        let session = Session::new(self.limits, generated)?;
        let slot = self.slots.take(owner, now).ok_or_else(|| {
            exhausted(format!("all {} slots are taken; try again later or elsewhere", self.slots.total()))
        })?;
        let key = self.next;
        self.next += 1;
        // It inherits its owner's turn: else an owner could be always first by opening ever more.
        let turn = self.entries.values().filter(|e| e.owner == owner).map(|e| e.turn).max().unwrap_or(0);
        let entry = Entry { session, owner: owner.to_owned(), held: None, opened: self.passes, turn };
        self.entries.insert(key, entry);
        Ok((key, slot))
    }

    /// Admits a session with its prompt: it gets blocks for all that it knows and one more token, of
    /// which those found in the cache need not be read. Nobody else has to go for it. Gives how many were found.
    ///
    /// # Errors
    /// EXHAUSTED without enough free blocks, INVALID for a prompt that can never be served.
    pub(crate) fn admit(
        &mut self,
        key: Key,
        slot: Slot,
        prompt: &[u32],
        writes: Writes,
    ) -> Result<usize, Failure> {
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(0) };
        entry.session.set_prompt(prompt)?;
        let tokens = entry.session.tokens();
        let positions = (tokens.len() + 1).min(self.limits.context);
        let reader = Reader { owner: &entry.owner, writes };
        let table = self.pool.open(reader, tokens, positions).ok_or_else(|| {
            exhausted("too little cache memory is free; try again later or elsewhere".to_owned())
        })?;
        let kept = table.kept();
        entry.session.advance_read(kept);
        entry.held = Some(Held { table, _slot: slot });
        Ok(kept)
    }

    /// Ends a session and frees what it holds.
    pub(crate) fn remove(&mut self, key: Key) {
        self.entries.remove(&key);
    }

    /// A session, to hand it a frame.
    pub(crate) fn session(&mut self, key: Key) -> Option<&mut Session> {
        self.entries.get_mut(&key).map(|e| &mut e.session)
    }

    /// What bounds every session.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Who would be in the next pass, and who may soon be.
    pub(crate) fn demand(&self) -> Demand {
        let mut demand = Demand::default();
        for Entry { session, opened, .. } in self.entries.values() {
            let who = match session.unread() {
                0 if !session.started() && *opened < self.passes => continue,
                0 if !session.started() => &mut demand.encoding,
                0 => {
                    demand.answered += usize::from(session.is_answered());
                    &mut demand.resting
                }
                1 => &mut demand.tokens,
                _ => &mut demand.prompts,
            };
            *who += 1;
        }
        demand
    }

    /// Sessions that wait for a forward pass, or for an answer to their candidates.
    pub(crate) fn waiting(&self) -> usize {
        self.entries.values().filter(|e| e.session.unread() > 0 || e.session.waiting()).count()
    }

    /// Sessions whose candidates can be answered now, oldest first.
    pub(crate) fn answerable(&self) -> impl Iterator<Item = (Key, &[u32])> {
        self.entries.iter().filter_map(|(&key, e)| Some((key, e.session.answerable()?)))
    }

    /// Admitted sessions.
    pub(crate) fn admitted(&self) -> usize {
        self.entries.values().filter(|e| e.held.is_some()).count()
    }

    /// How the cache is used.
    pub(crate) fn cache_stats(&self) -> CacheStats {
        self.pool.stats()
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.slots.total()
    }

    /// The tokens of a run and its session's blocks.
    pub(crate) fn rows(&self, run: &Run) -> Option<(&[u32], &[u32])> {
        let Entry { session, held, .. } = self.entries.get(&run.key)?;
        Some((session.tokens().get(run.start..run.start + run.len)?, held.as_ref()?.table.ids()))
    }

    /// Notes that a run's tokens have been read.
    pub(crate) fn done(&mut self, run: &Run) {
        let Some(Entry { session, held: Some(held), .. }) = self.entries.get_mut(&run.key) else { return };
        session.advance_read(run.len);
        held.table.keep(&session.tokens()[..session.position()]);
    }

    /// Plans the next pass: every session with one token to read, and prompts as far as the chunk goes;
    /// owners take turns, and so do the sessions of one. The youngest sessions make room where blocks
    /// run out.
    pub(crate) fn plan(&mut self) -> Plan {
        let preempted = self.grow();
        self.passes += 1;
        self.entries.values_mut().for_each(Entry::adopt);
        let mut runs = Vec::new();
        let mut prompts = Vec::new();
        let mut turns = BTreeMap::new();
        for (&key, entry) in &self.entries {
            match entry.session.unread() {
                0 => {}
                1 => runs.push(entry.run(key, 1)),
                _ => prompts.push(key),
            }
            let turn = turns.entry(entry.owner.as_str()).or_insert(0);
            *turn = entry.turn.max(*turn);
        }
        prompts.sort_by_key(|key| self.entries.get(key).map(|e| (turns[e.owner.as_str()], e.turn)));
        let mut left = self.chunk;
        for key in prompts {
            let Some(entry) = self.entries.get_mut(&key).filter(|_| left > 0) else { break };
            let len = entry.session.unread().min(left);
            runs.push(entry.run(key, len));
            entry.turn = self.passes;
            left -= len;
        }
        Plan { runs, preempted }
    }

    /// Gives every session the blocks for what it knows, the oldest first.
    fn grow(&mut self) -> Vec<Key> {
        let mut preempted = Vec::new();
        let keys: Vec<Key> =
            self.entries.iter().filter(|(_, e)| e.session.unread() > 0).map(|(&k, _)| k).collect();
        for key in keys {
            while let Some(Entry { session, held: Some(held), .. }) = self.entries.get_mut(&key) {
                if held.table.grow(session.tokens().len()) {
                    break;
                }
                // The youngest that holds blocks; at worst the session itself, and then the loop ends.
                let holders = self.entries.iter().filter(|(_, e)| e.held.is_some());
                let youngest = holders.map(|(&k, _)| k).max().unwrap_or(key);
                self.remove(youngest);
                preempted.push(youngest);
            }
        }
        preempted
    }
}

impl Entry {
    /// Takes over what has been read for others since it was admitted.
    fn adopt(&mut self) {
        if let Some(held) = &mut self.held {
            let adopted = held.table.adopt(self.session.tokens());
            self.session.advance_read(adopted.saturating_sub(self.session.position()));
        }
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
