//! Who runs, who waits, and which blocks they hold: pure state, with no clock, channel or tensor.
//!
//! A sequence is its tokens and how many of them are in the cache. The others are work: a whole prompt,
//! the rest of a chunked one or of one whose beginning was found, or the one token chosen last. So
//! prefill, decode and the return of a pre-empted sequence are the same thing.

use std::collections::{BTreeMap, VecDeque};

use attune_engine::kv::{BlockPool, BlockTable, CacheStats, Reader, Sharing, Writes};

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
    /// Iterations planned so far.
    passes: u64,
    /// Of the running sequences' owners: the pass that computed some of a prompt of theirs last.
    turns: BTreeMap<String, u64>,
    preempted: u64,
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

/// How busy the scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    /// Sequences that run.
    pub(crate) running: usize,
    /// Sequences that wait.
    pub(crate) waiting: usize,
    /// How often a sequence was pre-empted so far.
    pub(crate) preempted: u64,
    /// The cache.
    pub(crate) cache: CacheStats,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    owner: String,
    tokens: Vec<u32>,
    /// How many of them are in the cache.
    cached: usize,
    /// How many of these were found there.
    found: usize,
    table: BlockTable,
}

impl Running {
    fn work(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Its next `count` rows.
    fn rows(&self, count: usize) -> PlannedRows {
        PlannedRows { id: self.id, start: self.cached, count, complete: count == self.work() }
    }

    /// Takes over what has been computed for others since it was admitted.
    fn adopt(&mut self) {
        let adopted = self.table.adopt(&self.tokens);
        self.found += adopted.saturating_sub(self.cached);
        self.cached = self.cached.max(adopted);
    }
}

/// The base model has one cache.
fn reader(owner: &str) -> Reader<'_> {
    Reader { owner, writes: Writes::One }
}

impl Scheduler {
    /// An idle scheduler over a cache of `blocks` blocks.
    pub(crate) fn new(limits: Limits, blocks: usize, sharing: Sharing) -> Self {
        let pool = BlockPool::new(blocks, sharing);
        let (waiting, running, turns) = (Waiting::default(), Vec::new(), BTreeMap::new());
        Self { limits, pool, waiting, running, passes: 0, turns, preempted: 0 }
    }

    /// Queues a sequence of these tokens, at least one, behind its owner's others.
    pub(crate) fn submit(&mut self, id: SequenceId, owner: &str, tokens: Vec<u32>) {
        self.waiting.push_back(owner, Entry { id, tokens });
    }

    /// Queues a sequence that has been admitted before, before all others.
    pub(crate) fn resubmit(&mut self, id: SequenceId, owner: &str, tokens: Vec<u32>) {
        self.waiting.push_front(owner, Entry { id, tokens });
    }

    /// Admits who waits longest, taking turns between owners, while a slot and the blocks of the whole
    /// sequence are free. Gives the admitted.
    pub(crate) fn admit(&mut self) -> Vec<SequenceId> {
        let mut admitted = Vec::new();
        while self.running.len() < self.limits.slots {
            let Some((owner, Entry { tokens, .. })) = self.waiting.peek() else { break };
            // One block more than now needed: an admission must not pre-empt itself at its first token.
            let Some(table) = self.pool.open(reader(owner), tokens, tokens.len() + 1) else { break };
            let Some((owner, Entry { id, tokens })) = self.waiting.pop() else { break };
            let cached = table.kept();
            self.running.push(Running { id, owner, tokens, cached, found: cached, table });
            admitted.push(id);
        }
        admitted
    }

    /// Plans an iteration: every row that decodes, and prompts up to the chunk. Owners take turns at
    /// their prompts; within an owner the oldest is first, so that the others find what it has computed.
    ///
    /// When blocks run out, the youngest sequences give theirs back and wait, at the front.
    pub(crate) fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let mut prompts = Vec::new();
        let mut at = 0;
        while at < self.running.len() {
            self.running[at].adopt();
            let work = self.running[at].work();
            if work > 0 && !self.grow(at, &mut plan.preempted) {
                // It was itself the youngest, so nothing runs behind it.
                break;
            }
            match work {
                0 => {}
                1 => plan.rows.push(self.running[at].rows(1)),
                _ => prompts.push(at),
            }
            at += 1;
        }
        self.passes += 1;
        self.turns.retain(|owner, _| self.running.iter().any(|r| r.owner == *owner));
        let mut before = BTreeMap::<&str, usize>::new();
        let mut order: Vec<(usize, u64, usize)> = Vec::with_capacity(prompts.len());
        for at in prompts {
            let owner = self.running[at].owner.as_str();
            let nth = before.entry(owner).or_default();
            order.push((*nth, self.turns.get(owner).copied().unwrap_or(0), at));
            *nth += 1;
        }
        order.sort_unstable();
        let mut chunk = self.limits.prefill_chunk;
        for (_, _, at) in order {
            let running = &self.running[at];
            let count = running.work().min(chunk);
            if count == 0 {
                break;
            }
            chunk -= count;
            plan.rows.push(running.rows(count));
            self.turns.insert(running.owner.clone(), self.passes);
        }
        plan
    }

    /// Makes sure that the sequence has blocks for its length. False: it was pre-empted itself.
    fn grow(&mut self, at: usize, preempted: &mut Vec<SequenceId>) -> bool {
        loop {
            let running = &mut self.running[at];
            if running.table.grow(running.tokens.len()) {
                return true;
            }
            let Some(Running { id, owner, tokens, .. }) = self.running.pop() else { return false };
            preempted.push(id);
            self.preempted += 1;
            self.waiting.push_front(&owner, Entry { id, tokens });
            if self.running.len() == at {
                return false;
            }
        }
    }

    /// Notes that `count` more positions of a sequence are in the cache.
    pub(crate) fn advance(&mut self, id: SequenceId, count: usize) {
        if let Some(running) = self.find(id) {
            running.cached += count;
            running.table.keep(&running.tokens[..running.cached]);
        }
    }

    /// Notes that a token was chosen for a sequence.
    pub(crate) fn push(&mut self, id: SequenceId, token: u32) {
        if let Some(running) = self.find(id) {
            running.tokens.push(token);
        }
    }

    /// Takes a sequence out, wherever it is; its blocks are free at once.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.running.retain(|r| r.id != id);
        self.waiting.remove(id);
    }

    /// The block table of a running sequence.
    pub(crate) fn table(&self, id: SequenceId) -> Option<&[u32]> {
        self.running.iter().find(|r| r.id == id).map(|r| r.table.ids())
    }

    /// Tokens of a running sequence that were found in the cache since it was admitted.
    pub(crate) fn found(&self, id: SequenceId) -> usize {
        self.running.iter().find(|r| r.id == id).map_or(0, |r| r.found)
    }

    /// The running sequences, in the order of admission.
    pub(crate) fn running(&self) -> impl Iterator<Item = SequenceId> {
        self.running.iter().map(|r| r.id)
    }

    /// Whether any running sequence has rows to compute.
    pub(crate) fn has_work(&self) -> bool {
        self.running.iter().any(|r| r.work() > 0)
    }

    /// Whether a waiting sequence could be admitted now.
    #[cfg(test)]
    pub(crate) fn can_admit(&self) -> bool {
        let fits = |(owner, Entry { tokens, .. }): (&str, &Entry)| {
            self.pool.fits(reader(owner), tokens, tokens.len() + 1)
        };
        self.running.len() < self.limits.slots && self.waiting.peek().is_some_and(fits)
    }

    /// Who runs and waits, and how the cache is used.
    pub(crate) fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            preempted: self.preempted,
            cache: self.pool.stats(),
        }
    }

    fn find(&mut self, id: SequenceId) -> Option<&mut Running> {
        self.running.iter_mut().find(|r| r.id == id)
    }
}

#[derive(Debug)]
struct Entry {
    id: SequenceId,
    tokens: Vec<u32>,
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

    fn peek(&self) -> Option<(&str, &Entry)> {
        let owner = self.turns.front()?;
        Some((owner, self.queues.get(owner)?.front()?))
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

    fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
