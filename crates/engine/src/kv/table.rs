//! The blocks of one sequence.

use std::sync::{Arc, Mutex};

use super::{
    BLOCK_SIZE, blocks_for,
    pool::{Path, State, lock},
};

/// The blocks of one sequence, in the order of its positions; given back on drop.
///
/// The first of them are kept: full, perhaps shared, and read alone. The others are the sequence's own.
#[derive(Debug)]
pub struct BlockTable {
    state: Arc<Mutex<State>>,
    /// `None` where nothing is shared.
    path: Option<Path>,
    ids: Vec<u32>,
    kept: usize,
}

impl BlockTable {
    pub(super) fn new(state: Arc<Mutex<State>>, path: Option<Path>, ids: Vec<u32>, kept: usize) -> Self {
        Self { state, path, ids, kept }
    }

    /// The blocks' indices in the cache.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Positions in blocks that are never written again. Behind `open`: what was found.
    pub fn kept(&self) -> usize {
        self.kept * BLOCK_SIZE
    }

    /// Takes blocks until there are enough for `positions`; false, and none, where too few are free.
    pub fn grow(&mut self, positions: usize) -> bool {
        let missing = blocks_for(positions).saturating_sub(self.ids.len());
        if missing == 0 {
            return true;
        }
        let Some(more) = lock(&self.state).take(missing) else { return false };
        self.ids.extend(more);
        true
    }

    /// Lets others find the blocks that `computed`, the sequence's tokens so far computed, fill. Where
    /// another has computed the same meanwhile, the table changes to that one's block: its bits are the
    /// same.
    pub fn keep(&mut self, computed: &[u32]) {
        let Some(path) = &mut self.path else { return };
        if (self.kept + 1) * BLOCK_SIZE > computed.len() {
            return;
        }
        let mut state = lock(&self.state);
        while let Some(key) = path.key(path.node, self.kept, computed) {
            let Some(own) = self.ids.get_mut(self.kept) else { break };
            (*own, path.node) = state.keep(*own, key);
            self.kept += 1;
        }
    }

    /// Takes over what others have computed of `tokens` meanwhile, in place of what this sequence has
    /// not computed yet, save the last token. Gives [`kept`](Self::kept).
    pub fn adopt(&mut self, tokens: &[u32]) -> usize {
        let more = |kept: usize| (kept + 1) * BLOCK_SIZE < tokens.len();
        if let (Some(path), true) = (&mut self.path, more(self.kept)) {
            let mut state = lock(&self.state);
            while more(self.kept) {
                let known = path.key(path.node, self.kept, tokens).and_then(|key| state.get(&key));
                let (Some((id, node)), Some(own)) = (known, self.ids.get_mut(self.kept)) else { break };
                state.hold(id);
                state.give_back(*own);
                state.count_hit();
                (*own, path.node) = (id, node);
                self.kept += 1;
            }
        }
        self.kept()
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        // From the end: what is kept longest is what most sequences begin with.
        for (index, &id) in self.ids.iter().enumerate().rev() {
            if index < self.kept {
                state.release(id);
            } else {
                state.give_back(id);
            }
        }
    }
}
