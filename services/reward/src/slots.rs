//! The sessions that may be open at once: permits that come back on drop.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The free slots.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Arc<AtomicUsize>,
    total: usize,
}

/// One session's permit.
#[derive(Debug)]
pub(crate) struct Slot {
    home: Arc<AtomicUsize>,
}

impl Slots {
    /// `total` free slots.
    pub(crate) fn new(total: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(total)), total }
    }

    /// Slots in all.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Slots that nobody holds.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    /// A slot, or none where all are held.
    pub(crate) fn take(&self) -> Option<Slot> {
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1))
            .ok()
            .map(|_| Slot { home: Arc::clone(&self.free) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.home.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_when_dropped() {
        let slots = Slots::new(2);
        let (a, b) = (slots.take(), slots.take());
        assert!(a.is_some() && b.is_some() && slots.take().is_none());
        drop(a);
        assert_eq!(slots.free(), 1);
        assert!(slots.take().is_some());
    }
}
