//! Waiting for what is about to come.

use std::{
    hint, thread,
    time::{Duration, Instant},
};

/// Longer than the other service takes to answer when it has computed already, shorter than a
/// forward pass.
const IMMINENT: Duration = Duration::from_micros(200);

/// Asks `poll` for a moment before the caller goes to sleep: waking a thread on an idle core takes
/// tens of microseconds, several times in one exchange between the services. Whoever else wants the
/// core gets it.
pub fn imminent<T>(mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        for _ in 0..16 {
            if let Some(found) = poll() {
                return Some(found);
            }
            hint::spin_loop();
        }
        if start.elapsed() >= IMMINENT {
            return None;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_comes_and_gives_up_on_what_does_not() {
        let mut polls = 0;
        let third = || {
            polls += 1;
            (polls == 3).then_some("here")
        };
        assert_eq!(imminent(third), Some("here"));
        assert_eq!(imminent(|| None::<()>), None);
    }
}
