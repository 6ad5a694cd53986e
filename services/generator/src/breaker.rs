//! A worker's circuit breaker: failures in a row take it out, and one session at a time tests whether
//! it is back. Pure state; time and pauses are passed in.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use crate::backoff::pause;

/// So many failures in a row, without one good answer between them, take a worker out.
const FAILURES: u32 = 3;
/// The first and the longest time out.
const OUT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Who breaks the protocol starts with a longer time out: this many doublings further.
const DISTRUST: u32 = 4;
/// A test session that has not answered by then does not keep the next one from being tried.
const PROBE: Duration = Duration::from_secs(5);

/// Whether a worker is given sessions.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Failures since the last good answer.
    failures: u32,
    /// Times it was taken out since the last good answer.
    trips: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It works.
    Closed,
    /// It gets nothing before this moment; then one session as a test.
    Open(Instant),
    /// One session tests it; if nothing is heard of it, another may from this moment.
    Testing(Instant),
}

impl Breaker {
    /// Of a worker that nothing is known against.
    pub(crate) fn new() -> Self {
        Self { state: State::Closed, failures: 0, trips: 0 }
    }

    /// Since when, or from when, it may be given a session; `None`: it may at any time.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        match self.state {
            State::Closed => None,
            State::Open(until) | State::Testing(until) => Some(until),
        }
    }

    /// Whether it may be given a session now.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        self.not_before().is_none_or(|at| at <= now)
    }

    /// It is given a session; while it is out, that is the test.
    pub(crate) fn given(&mut self, now: Instant) {
        if self.state != State::Closed {
            self.state = State::Testing(now + PROBE);
        }
    }

    /// It gave a good answer.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::new();
    }

    /// It failed. True: that takes it out.
    pub(crate) fn failed(&mut self, now: Instant, dice: &mut StdRng) -> bool {
        self.failures += 1;
        match self.state {
            State::Closed if self.failures < FAILURES => false,
            // What began before it was taken out says nothing new.
            State::Open(_) => false,
            State::Closed | State::Testing(_) => {
                self.trip(now, dice);
                true
            }
        }
    }

    /// It broke the protocol: out at once, and for longer.
    pub(crate) fn distrust(&mut self, now: Instant, dice: &mut StdRng) {
        self.trips = self.trips.max(DISTRUST);
        self.trip(now, dice);
    }

    fn trip(&mut self, now: Instant, dice: &mut StdRng) {
        self.trips = self.trips.saturating_add(1);
        self.state = State::Open(now + pause(OUT.0, OUT.1, self.trips, dice));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_in_a_row_take_it_out_and_a_test_brings_it_back() {
        let (mut b, mut dice, start) = (Breaker::new(), StdRng::seed_from_u64(1), Instant::now());
        assert!(!b.failed(start, &mut dice) && !b.failed(start, &mut dice));
        b.succeeded();
        assert!(!b.failed(start, &mut dice) && !b.failed(start, &mut dice) && b.allows(start));
        assert!(b.failed(start, &mut dice) && !b.allows(start));
        // The others that were on it fail as well: that prolongs nothing.
        let until = b.not_before();
        assert!(!b.failed(start, &mut dice));
        assert_eq!(b.not_before(), until);

        let later = start + SECOND;
        assert!(b.allows(later));
        b.given(later);
        assert!(!b.allows(later), "one test at a time");
        assert!(b.failed(later, &mut dice) && !b.allows(later));
        let much_later = later + OUT.1;
        b.given(much_later);
        b.succeeded();
        b.given(much_later);
        assert!(b.allows(much_later));
    }

    #[test]
    fn a_test_that_is_never_heard_of_is_followed_by_another() {
        let (mut b, mut dice, start) = (Breaker::new(), StdRng::seed_from_u64(1), Instant::now());
        b.distrust(start, &mut dice);
        assert!(!b.allows(start + 3 * SECOND), "distrust lasts longer than a failure");
        b.given(start + OUT.1);
        assert!(!b.allows(start + OUT.1) && b.allows(start + OUT.1 + PROBE));
    }

    proptest! {
        /// Whatever happens, it is never out for longer than the longest time, a good answer always
        /// brings it back, and it is never given two sessions at one moment while it is out.
        #[test]
        fn nothing_keeps_it_out_for_ever(events in prop::collection::vec((0u8..4, 0u64..10_000), 0..60)) {
            let (mut b, mut dice, mut now) = (Breaker::new(), StdRng::seed_from_u64(7), Instant::now());
            for (event, millis) in events {
                now += Duration::from_millis(millis);
                match event {
                    0 => { b.failed(now, &mut dice); }
                    1 => b.distrust(now, &mut dice),
                    2 => { b.succeeded(); prop_assert!(b.allows(now)); }
                    _ if b.allows(now) => {
                        let out = b.not_before().is_some();
                        b.given(now);
                        prop_assert_eq!(b.allows(now), !out);
                    }
                    _ => {}
                }
                prop_assert!(b.allows(now + OUT.1));
            }
        }
    }
}
