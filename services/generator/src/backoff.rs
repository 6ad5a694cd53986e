//! Growing pauses between tries, spread out so that those who failed together do not return together.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

/// The pause before try number `tries` (the first is 1): doubled each time up to `most`, and of that a
/// random share of at least half.
pub(crate) fn pause(first: Duration, most: Duration, tries: u32, dice: &mut StdRng) -> Duration {
    let doublings = tries.saturating_sub(1).min(20);
    let full = first.saturating_mul(1 << doublings).min(most);
    full.mul_f64(dice.random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_most_and_differ() {
        let mut dice = StdRng::seed_from_u64(1);
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(3));
        for tries in 0..60u32 {
            let full = first.saturating_mul(1 << tries.max(1).saturating_sub(1).min(10)).min(most);
            for _ in 0..20 {
                let pause = pause(first, most, tries, &mut dice);
                assert!((full / 2..=full).contains(&pause), "{tries}: {pause:?}");
            }
        }
        assert_ne!(pause(first, most, 1, &mut dice), pause(first, most, 1, &mut dice));
    }
}
