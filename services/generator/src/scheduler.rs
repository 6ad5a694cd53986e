//! Who runs, who waits, and which blocks they hold: pure state, with no clock, channel or tensor.
//!
//! A sequence is a length and how much of it is in the cache. Whatever lies between is work: a whole
//! prompt, the rest of a chunked one, or the one token chosen last. So prefill, decode and the return
//! of a pre-empted sequence are the same thing.

use std::collections::{BTreeMap, VecDeque};

use attune_engine::kv::{Block, BlockPool, blocks_for};

/// Names a sequence for as long as the process lives.
pub(crate) type SequenceId = u64;

/// What may run at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Sequences that run at once.
    pub(crate) slots: usize,
    /// Prompt tokens of one iteration, so that no prompt stalls the others for longer.
    pub(crate) prefill_chunk: usize,
}

/// The bookkeeping of all sequences.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: Waiting,
    /// In the order of admission: the last is the youngest.
    running: Vec<Running>,
}

/// The rows of one iteration.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What to compute, each sequence once.
    pub(crate) rows: Vec<PlannedRows>,
    /// Sequences that had to give their blocks back and wait again.
    pub(crate) preempted: Vec<SequenceId>,
}

/// One sequence's part of an iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedRows {
    /// Whose rows.
    pub(crate) id: SequenceId,
    /// The first position.
    pub(crate) start: usize,
    /// How many.
    pub(crate) count: usize,
    /// Whether they reach the sequence's end, so that its next token can be chosen.
    pub(crate) complete: bool,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    owner: String,
    length: usize,
    cached: usize,
    blocks: Vec<Block>,
    table: Vec<u32>,
}

impl Running {
    fn work(&self) -> usize {
        self.length - self.cached
    }
}

impl Scheduler {
    /// An idle scheduler over a cache of `blocks` blocks.
    pub(crate) fn new(limits: Limits, blocks: usize) -> Self {
        Self { limits, pool: BlockPool::new(blocks), waiting: Waiting::default(), running: Vec::new() }
    }

    /// Queues a sequence of `length` tokens behind its owner's others.
    pub(crate) fn submit(&mut self, id: SequenceId, owner: &str, length: usize) {
        self.waiting.push_back(owner, Entry { id, length });
    }

    /// Admits who waits longest, taking turns between owners, while a slot and the blocks of the whole
    /// sequence are free. Gives the admitted.
    pub(crate) fn admit(&mut self) -> Vec<SequenceId> {
        let mut admitted = Vec::new();
        while self.running.len() < self.limits.slots {
            let Some(next) = self.waiting.peek() else { break };
            // One block more than now needed: an admission must not pre-empt itself at its first token.
            let Some(blocks) = self.pool.take(blocks_for(next.length + 1)) else { break };
            let Some((owner, Entry { id, length })) = self.waiting.pop() else { break };
            let table = blocks.iter().map(Block::id).collect();
            self.running.push(Running { id, owner, length, cached: 0, blocks, table });
            admitted.push(id);
        }
        admitted
    }

    /// Plans an iteration: every row that decodes, and prompts up to the chunk, oldest first.
    ///
    /// When blocks run out, the youngest sequences give theirs back and wait, at the front.
    pub(crate) fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut chunk = self.limits.prefill_chunk;
        let mut at = 0;
        while at < self.running.len() {
            let work = self.running[at].work();
            let count = if work > 1 { work.min(chunk) } else { work };
            if count == 0 {
                at += 1;
                continue;
            }
            if !self.grow(at, &mut plan.preempted) {
                // It was itself the youngest, so nothing runs behind it.
                break;
            }
            if work > 1 {
                chunk -= count;
            }
            let Running { id, cached: start, .. } = self.running[at];
            plan.rows.push(PlannedRows { id, start, count, complete: count == work });
            at += 1;
        }
        plan
    }

    /// Makes sure that the sequence has blocks for its length. False: it was pre-empted itself.
    fn grow(&mut self, at: usize, preempted: &mut Vec<SequenceId>) -> bool {
        loop {
            let running = &mut self.running[at];
            let missing = blocks_for(running.length).saturating_sub(running.blocks.len());
            if let Some(blocks) = self.pool.take(missing) {
                running.table.extend(blocks.iter().map(Block::id));
                running.blocks.extend(blocks);
                return true;
            }
            let Some(youngest) = self.running.pop() else { return false };
            preempted.push(youngest.id);
            self.waiting.push_front(&youngest.owner, Entry { id: youngest.id, length: youngest.length });
            if self.running.len() == at {
                return false;
            }
        }
    }

    /// Notes that `count` more positions of a sequence are in the cache.
    pub(crate) fn advance(&mut self, id: SequenceId, count: usize) {
        if let Some(running) = self.find(id) {
            running.cached += count;
        }
    }

    /// Notes that a token was chosen for a sequence.
    pub(crate) fn push(&mut self, id: SequenceId) {
        if let Some(running) = self.find(id) {
            running.length += 1;
        }
    }

    /// Takes a sequence out, wherever it is; its blocks are free at once.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.running.retain(|r| r.id != id);
        self.waiting.remove(id);
    }

    /// The block table of a running sequence.
    pub(crate) fn table(&self, id: SequenceId) -> Option<&[u32]> {
        self.running.iter().find(|r| r.id == id).map(|r| &r.table[..])
    }

    /// Whether any running sequence has rows to compute.
    pub(crate) fn has_work(&self) -> bool {
        self.running.iter().any(|r| r.work() > 0)
    }

    /// Whether a waiting sequence could be admitted now.
    pub(crate) fn can_admit(&self) -> bool {
        self.running.len() < self.limits.slots
            && self.waiting.peek().is_some_and(|next| blocks_for(next.length + 1) <= self.pool.free())
    }

    /// Sequences that run, that wait, blocks in use, blocks in all.
    #[cfg(test)]
    fn load(&self) -> (usize, usize, usize, usize) {
        let total = self.pool.total();
        (self.running.len(), self.waiting.len(), total - self.pool.free(), total)
    }

    fn find(&mut self, id: SequenceId) -> Option<&mut Running> {
        self.running.iter_mut().find(|r| r.id == id)
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: SequenceId,
    length: usize,
}

/// One queue an owner; owners take turns, so that one with many requests delays only itself.
#[derive(Debug, Default)]
struct Waiting {
    queues: BTreeMap<String, VecDeque<Entry>>,
    /// Owners with something waiting; the first is next.
    turns: VecDeque<String>,
}

impl Waiting {
    fn push_back(&mut self, owner: &str, entry: Entry) {
        self.queue(owner).push_back(entry);
    }

    fn push_front(&mut self, owner: &str, entry: Entry) {
        self.queue(owner).push_front(entry);
        // What was pre-empted has been admitted before: its owner is next.
        self.turns.retain(|o| o != owner);
        self.turns.push_front(owner.to_owned());
    }

    fn queue(&mut self, owner: &str) -> &mut VecDeque<Entry> {
        if !self.queues.contains_key(owner) {
            self.turns.push_back(owner.to_owned());
        }
        self.queues.entry(owner.to_owned()).or_default()
    }

    fn peek(&self) -> Option<Entry> {
        self.queues.get(self.turns.front()?)?.front().copied()
    }

    fn pop(&mut self) -> Option<(String, Entry)> {
        let owner = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&owner)?;
        let entry = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&owner);
        } else {
            self.turns.push_back(owner.clone());
        }
        Some((owner, entry))
    }

    fn remove(&mut self, id: SequenceId) {
        self.queues.retain(|_, queue| {
            queue.retain(|entry| entry.id != id);
            !queue.is_empty()
        });
        self.turns.retain(|owner| self.queues.contains_key(owner));
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attune_engine::kv::BLOCK_SIZE;

    fn scheduler(slots: usize, chunk: usize, blocks: usize) -> Scheduler {
        Scheduler::new(Limits { slots, prefill_chunk: chunk }, blocks)
    }

    /// Runs a plan and chooses a token for whoever it completes.
    fn run(s: &mut Scheduler) -> Plan {
        let plan = s.plan();
        for rows in &plan.rows {
            s.advance(rows.id, rows.count);
            if rows.complete {
                s.push(rows.id);
            }
        }
        plan
    }

    #[test]
    fn a_long_prompt_is_chunked_and_others_decode_beside_it() {
        let mut s = scheduler(4, 8, 64);
        s.submit(1, "a", 3);
        assert_eq!(s.admit(), [1]);
        run(&mut s);
        s.submit(2, "a", 20);
        s.admit();
        for (start, count) in [(0, 8), (8, 8), (16, 4)] {
            let plan = run(&mut s);
            assert_eq!(plan.rows.len(), 2, "the decoding sequence has a row in every iteration");
            assert_eq!((plan.rows[1].start, plan.rows[1].count), (start, count));
            assert_eq!(plan.rows[1].complete, start == 16);
        }
    }

    #[test]
    fn owners_take_turns() {
        let mut s = scheduler(3, 64, 64);
        for id in 1..=3 {
            s.submit(id, "many", 2);
        }
        s.submit(4, "one", 2);
        assert_eq!(s.admit(), [1, 4, 2]);
    }

    #[test]
    fn the_youngest_gives_way_and_comes_back_first() {
        // Blocks for two sequences of one block and a bit.
        let mut s = scheduler(4, 64, 3);
        s.submit(1, "a", BLOCK_SIZE - 1);
        s.submit(2, "a", BLOCK_SIZE - 1);
        s.submit(3, "a", 2 * BLOCK_SIZE);
        assert_eq!(s.admit(), [1, 2]);
        let preempted: Vec<_> = (0..2 * BLOCK_SIZE).flat_map(|_| run(&mut s).preempted).collect();
        assert_eq!(preempted, [2]);
        s.remove(1);
        assert_eq!(s.admit(), [2], "before the one that has never run");
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut s = scheduler(1, 64, 8);
        s.submit(1, "a", 5);
        s.submit(2, "b", 5);
        s.admit();
        s.remove(1);
        s.remove(2);
        assert_eq!(s.load(), (0, 0, 0, 8));
        assert!(!s.has_work() && !s.can_admit());
    }
}
