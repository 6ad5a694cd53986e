//! Which blocks are free, which are held, and which are kept because somebody may read the same tokens
//! again. Bookkeeping alone: it touches no memory of the device.
//!
//! A block that is full is never written again, so sequences whose first tokens are equal can read the
//! same one. The kept blocks form a tree: a block is found by the block before it and its own sixteen
//! token ids, compared as they are. Each block carries the owner whose text it holds; only where all
//! tokens up to its end are text that the operator configured does it carry none, and is found by all:
//! that something is found fast must not tell one person what another wrote.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{BLOCK_SIZE, BlockTable, blocks_for};

/// All blocks of a cache.
#[derive(Debug)]
pub struct BlockPool {
    state: Arc<Mutex<State>>,
    sharing: Sharing,
    total: usize,
}

/// Which sequences may read each other's blocks.
#[derive(Debug, Clone)]
pub enum Sharing {
    /// None: each computes all that it reads.
    Off,
    /// Those of one owner; and all, as far as their tokens begin like one of these texts, which the
    /// operator configured.
    On(Vec<Vec<u32>>),
}

/// For whom a sequence is computed.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// Whose text it is.
    pub owner: &'a str,
    /// What the sequence writes of a block.
    pub writes: Writes,
}

/// Which memory a sequence fills behind a block's id: a block that lacks one is of no use to who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// One cache alone.
    One,
    /// Both of a PersRM: the policy's and the reference's.
    Both,
}

/// How a cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Blocks in all.
    pub total: usize,
    /// Blocks that sequences hold; one that several hold counts once.
    pub used: usize,
    /// Blocks that nobody holds, kept for who reads the same again; free for everybody else.
    pub kept: usize,
    /// Tokens of all sequences that began to be read, so far.
    pub asked_tokens: u64,
    /// Of these, the tokens that were found and not computed again.
    pub hit_tokens: u64,
}

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: usize, sharing: Sharing) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(total))), sharing, total }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// How the blocks are used.
    pub fn stats(&self) -> CacheStats {
        let state = lock(&self.state);
        CacheStats {
            total: self.total,
            used: self.total - state.available(),
            kept: state.unused.len(),
            asked_tokens: state.asked,
            hit_tokens: state.hits,
        }
    }

    /// Whether [`open`](Self::open) would succeed now.
    pub fn fits(&self, reader: Reader<'_>, tokens: &[u32], positions: usize) -> bool {
        let path = self.path(reader, tokens);
        let state = lock(&self.state);
        state.fits(&state.find(path.as_ref(), tokens), positions)
    }

    /// The blocks for `positions` positions of a sequence that begins with `tokens`, or none where too
    /// few are free. What is known of the tokens is found, but never all: the last is always computed,
    /// since its hidden state is wanted.
    pub fn open(&self, reader: Reader<'_>, tokens: &[u32], positions: usize) -> Option<BlockTable> {
        let mut path = self.path(reader, tokens);
        let mut state = lock(&self.state);
        let found = state.find(path.as_ref(), tokens);
        if !state.fits(&found, positions) {
            return None;
        }
        found.iter().for_each(|&(id, _)| state.hold(id));
        let mut ids: Vec<u32> = found.iter().map(|&(id, _)| id).collect();
        ids.extend(state.take(blocks_for(positions).saturating_sub(found.len()))?);
        state.asked += tokens.len() as u64;
        state.hits += (found.len() * BLOCK_SIZE) as u64;
        if let (Some(path), Some(&(_, node))) = (&mut path, found.last()) {
            path.node = node;
        }
        drop(state);
        Some(BlockTable::new(Arc::clone(&self.state), path, ids, found.len()))
    }

    /// The way of a sequence through the tree, from its root.
    fn path(&self, reader: Reader<'_>, tokens: &[u32]) -> Option<Path> {
        let Sharing::On(configured) = &self.sharing else { return None };
        let common = |text: &Vec<u32>| text.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        Some(Path {
            owner: reader.owner.into(),
            configured: configured.iter().map(common).max().unwrap_or(0) / BLOCK_SIZE,
            node: match reader.writes {
                Writes::One => 0,
                Writes::Both => 1,
            },
        })
    }
}

/// Names a kept block, for as long as the pool lives; also the two roots.
type NodeId = u64;
const LAST_ROOT: NodeId = 1;

/// How far a sequence has come in the tree, and whose blocks it may find.
#[derive(Debug)]
pub(super) struct Path {
    owner: Arc<str>,
    /// The first so many blocks hold the operator's text alone.
    configured: usize,
    /// The last block passed.
    pub(super) node: NodeId,
}

impl Path {
    /// The key of block `index`, which comes next on the path or after `parent`.
    pub(super) fn key(&self, parent: NodeId, index: usize, tokens: &[u32]) -> Option<Key> {
        let tokens = tokens.get(index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE)?.try_into().ok()?;
        let owner = (index >= self.configured).then(|| Arc::clone(&self.owner));
        Some(Key { parent, owner, tokens })
    }
}

/// What a kept block is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    parent: NodeId,
    /// Who finds it; `None`: everybody.
    owner: Option<Arc<str>>,
    tokens: [u32; BLOCK_SIZE],
}

#[derive(Debug)]
struct Kept {
    key: Key,
    node: NodeId,
    /// Sequences that hold it.
    holders: usize,
    /// When the last of them gave it back.
    released: u64,
}

/// A block is in `free`, or kept, or held by the one sequence that writes it.
#[derive(Debug)]
pub(super) struct State {
    free: Vec<u32>,
    /// By block.
    kept: Vec<Option<Kept>>,
    /// All kept blocks.
    index: HashMap<Key, u32>,
    /// Kept blocks without a holder, by when they were given back: the first goes first.
    ///
    /// A sequence holds every block before the ones that it holds, and gives back the last first. So a
    /// block always goes before the one that it is found by.
    unused: BTreeMap<u64, u32>,
    /// Counts up, for names and for the order of releases.
    clock: u64,
    asked: u64,
    hits: u64,
}

impl State {
    fn new(total: usize) -> Self {
        Self {
            // Popped from the end: low ids first, so that a lightly used cache stays in few pages.
            free: (0..total as u32).rev().collect(),
            kept: std::iter::repeat_with(|| None).take(total).collect(),
            index: HashMap::new(),
            unused: BTreeMap::new(),
            clock: LAST_ROOT,
            asked: 0,
            hits: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn available(&self) -> usize {
        self.free.len() + self.unused.len()
    }

    /// The blocks and nodes that are known of the tokens, without the last token.
    fn find(&self, path: Option<&Path>, tokens: &[u32]) -> Vec<(u32, NodeId)> {
        let Some(path) = path else { return Vec::new() };
        let mut found: Vec<(u32, NodeId)> = Vec::new();
        while (found.len() + 1) * BLOCK_SIZE < tokens.len() {
            let parent = found.last().map_or(path.node, |&(_, node)| node);
            let key = path.key(parent, found.len(), tokens);
            let Some(next) = key.and_then(|key| self.get(&key)) else { break };
            found.push(next);
        }
        found
    }

    /// Whether the rest of a sequence fits beside what was found of it.
    fn fits(&self, found: &[(u32, NodeId)], positions: usize) -> bool {
        let idle = |id: u32| self.kept[id as usize].as_ref().is_some_and(|k| k.holders == 0);
        // What is found and held by nobody counts as free, but not for the rest.
        let idle = found.iter().filter(|&&(id, _)| idle(id)).count();
        blocks_for(positions).saturating_sub(found.len()) <= self.available() - idle
    }

    /// The kept block of this key.
    pub(super) fn get(&self, key: &Key) -> Option<(u32, NodeId)> {
        let id = *self.index.get(key)?;
        Some((id, self.kept[id as usize].as_ref()?.node))
    }

    /// Takes `n` blocks to write to, or none where fewer are free. The longest unused of the kept ones
    /// are forgotten for it, once all others are gone.
    pub(super) fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        if n > self.available() {
            return None;
        }
        let mut taken = Vec::with_capacity(n);
        while taken.len() < n {
            let id = match self.free.pop() {
                Some(id) => id,
                None => {
                    let (_, id) = self.unused.pop_first()?;
                    if let Some(kept) = self.kept[id as usize].take() {
                        self.index.remove(&kept.key);
                    }
                    id
                }
            };
            taken.push(id);
        }
        Some(taken)
    }

    /// Gives back a block that was taken and is not kept.
    pub(super) fn give_back(&mut self, id: u32) {
        self.free.push(id);
    }

    /// One holder more of a kept block.
    pub(super) fn hold(&mut self, id: u32) {
        if let Some(kept) = &mut self.kept[id as usize] {
            if kept.holders == 0 {
                self.unused.remove(&kept.released);
            }
            kept.holders += 1;
        }
    }

    /// One holder less of a kept block.
    pub(super) fn release(&mut self, id: u32) {
        let now = self.tick();
        if let Some(kept) = &mut self.kept[id as usize] {
            kept.holders -= 1;
            if kept.holders == 0 {
                kept.released = now;
                self.unused.insert(now, id);
            }
        }
    }

    /// Keeps a full block, held by who wrote it. Where the same is kept already, that one is held
    /// instead, and the new one is free. Gives the block and its node.
    pub(super) fn keep(&mut self, id: u32, key: Key) -> (u32, NodeId) {
        if let Some((known, node)) = self.get(&key) {
            self.hold(known);
            self.give_back(id);
            return (known, node);
        }
        let node = self.tick();
        self.index.insert(key.clone(), id);
        self.kept[id as usize] = Some(Kept { key, node, holders: 1, released: 0 });
        (id, node)
    }

    /// Notes that a block was found after its sequence had begun.
    pub(super) fn count_hit(&mut self) {
        self.hits += BLOCK_SIZE as u64;
    }
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing panics while it is held, and a poisoned lock must not take the engine down.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
