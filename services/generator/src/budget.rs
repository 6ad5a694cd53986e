//! How many lost sessions may be opened anew: a share of what succeeds, and a small reserve. So an
//! overload that fails sessions is not made worse by opening them all again. Pure state; time is
//! passed in.

use std::time::Instant;

/// What each rewarded step adds. A re-opened session costs its worker a prefill, as much as many steps.
const SHARE: f64 = 0.1;
/// What there always is in the end, even if nothing succeeds; one full batch can lose its worker at once.
const RESERVE: f64 = 64.0;
/// How quickly the reserve comes back, per second.
const REFILL: f64 = 8.0;
/// The most that successes add up to: only recent ones count.
const MOST: f64 = 512.0;

/// The budget of one pool.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    left: f64,
    at: Option<Instant>,
}

impl RetryBudget {
    /// With the reserve alone.
    pub(crate) fn new() -> Self {
        Self { left: RESERVE, at: None }
    }

    /// A step was rewarded.
    pub(crate) fn deposit(&mut self) {
        self.left = (self.left + SHARE).min(MOST);
    }

    /// Takes one re-opening out of the budget. False: there is none left for now.
    pub(crate) fn withdraw(&mut self, now: Instant) -> bool {
        let since = self.at.replace(now).map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        if self.left < RESERVE {
            self.left = (self.left + REFILL * since).min(RESERVE);
        }
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_any_success_only_the_reserve_is_there_and_it_comes_back_slowly() {
        let (mut budget, start) = (RetryBudget::new(), Instant::now());
        let mut granted = |now: Instant| (0..10_000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(granted(start), 64);
        assert_eq!(granted(start + Duration::from_secs(1)), 8);
        assert_eq!(granted(start + Duration::from_secs(1000)), 64, "no more than the reserve");
    }

    proptest! {
        /// In any history, what is granted is at most the reserve with its refill, and the share.
        #[test]
        fn an_overload_never_multiplies_itself(
            events in prop::collection::vec((any::<bool>(), 0u64..500, 1usize..200), 0..50),
        ) {
            let (mut budget, start) = (RetryBudget::new(), Instant::now());
            let (mut now, mut granted, mut succeeded) = (start, 0, 0);
            for (success, millis, times) in events {
                now += Duration::from_millis(millis);
                for _ in 0..times {
                    if success {
                        budget.deposit();
                        succeeded += 1;
                    } else {
                        granted += usize::from(budget.withdraw(now));
                    }
                }
                let seconds = now.duration_since(start).as_secs_f64();
                let most = RESERVE + REFILL * seconds + SHARE * f64::from(succeeded);
                prop_assert!(granted as f64 <= most + 1e-6, "{} of {}", granted, most);
            }
        }
    }
}
