//! The sessions that may be open at once: permits that come back on drop.
//!
//! A worker that is full refuses, and the generator comes again: there is no queue here that could be
//! fair. Instead a refusal is remembered for a moment, and what comes free meanwhile is kept for that
//! owner, against those who hold so much more that they have other texts under way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a refusal counts: twice the longest pause of a generator before it comes again.
const CLAIM: Duration = Duration::from_secs(1);

/// The most sessions that one text opens. An owner gives way only if ahead by so many: so nobody whose
/// text has opened some of its sessions is refused the others for the sake of another in the same state.
const SESSIONS_OF_A_TEXT: usize = 16;

/// The free slots.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Arc<Mutex<State>>,
    total: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Slots that each owner holds; at least one.
    held: BTreeMap<Arc<str>, usize>,
    /// Owners that were refused and have not got a slot since, and until when that counts.
    claims: BTreeMap<Arc<str>, Instant>,
}

/// One session's permit.
#[derive(Debug)]
pub(crate) struct Slot {
    home: Arc<Mutex<State>>,
    owner: Arc<str>,
}

impl Slots {
    /// `total` free slots.
    pub(crate) fn new(total: usize) -> Self {
        Self { state: Arc::default(), total }
    }

    /// Slots in all.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Slots that nobody holds.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.total - lock(&self.state).taken()
    }

    /// A slot, or none where all are held, or kept for somebody else.
    pub(crate) fn take(&self, owner: &str, now: Instant) -> Option<Slot> {
        let mut state = lock(&self.state);
        state.claims.retain(|_, until| now < *until);
        let held = |owner: &str| state.held.get(owner).copied().unwrap_or(0);
        let mine = held(owner);
        let kept = state.claims.keys().any(|other| held(other) + SESSIONS_OF_A_TEXT <= mine);
        let owner: Arc<str> = owner.into();
        if state.taken() >= self.total || kept {
            state.claims.entry(owner).or_insert(now + CLAIM);
            return None;
        }
        state.claims.remove(&owner);
        *state.held.entry(Arc::clone(&owner)).or_default() += 1;
        Some(Slot { home: Arc::clone(&self.state), owner })
    }
}

impl State {
    fn taken(&self) -> usize {
        self.held.values().sum()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.home);
        if let Some(held) = state.held.get_mut(&self.owner) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.owner);
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing panics while it is held.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_when_dropped() {
        let (slots, now) = (Slots::new(2), Instant::now());
        let (a, b) = (slots.take("a", now), slots.take("b", now));
        assert!(a.is_some() && b.is_some() && slots.take("a", now).is_none());
        drop(a);
        assert_eq!(slots.free(), 1);
        assert!(slots.take("a", now).is_some());
    }

    #[test]
    fn what_comes_free_is_kept_for_who_was_refused_and_has_little() {
        let (slots, now) = (Slots::new(20), Instant::now());
        let mut many: Vec<Slot> = (0..20).map(|_| slots.take("many", now).unwrap()).collect();
        assert!(slots.take("one", now).is_none());
        many.pop();
        assert!(slots.take("many", now).is_none(), "it is kept");
        let one = slots.take("one", now);
        assert!(one.is_some());
        many.pop();
        assert!(slots.take("many", now).is_some(), "nobody else waits");
        // Who does not come again holds nothing up for long.
        drop(one);
        let again: Vec<Slot> = std::iter::from_fn(|| slots.take("many", now)).collect();
        assert!(slots.take("gone", now).is_none());
        drop(again);
        assert!(slots.take("many", now).is_none() && slots.take("many", now + CLAIM).is_some());
    }

    #[test]
    fn a_text_that_opens_several_sessions_is_not_held_up_by_another_that_does() {
        let (slots, now) = (Slots::new(16), Instant::now());
        let full: Vec<Slot> = (0..16).map(|_| slots.take("a", now).unwrap()).collect();
        assert!(slots.take("b", now).is_none());
        drop(full);
        assert!((0..16).map(|_| slots.take("a", now)).collect::<Option<Vec<Slot>>>().is_some());
        assert!((0..16).map(|_| slots.take("b", now)).collect::<Option<Vec<Slot>>>().is_some());
    }
}
