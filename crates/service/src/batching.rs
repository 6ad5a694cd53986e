//! When a reward worker's next forward pass begins: at once, or a little later, in company.
//!
//! A pass on a card takes about as long for a prompt as for the tokens of all running texts, since it reads all
//! weights either way. A prompt in a pass of its own would keep the answers of all others waiting for as long; in the
//! pass that reads their next tokens it costs them next to nothing. For the same reason sessions whose tokens come a
//! little apart should not each have a pass: they would take turns from then on. On a CPU a pass takes as long as its
//! rows, and the time while the generator computes is best used: nothing waits there.
//!
//! Pure state; time is passed in.

use std::time::{Duration, Instant};

/// How long tokens wait for prompts that came with them and are still being encoded. Most take a tenth of that.
const ENCODING: Duration = Duration::from_millis(1);
/// How long tokens wait, behind the last answers, for the tokens that are chosen by these.
const ANSWERED: Duration = Duration::from_millis(2);
/// The longest that prompts wait for the tokens of running texts.
const LONGEST: Duration = Duration::from_millis(50);

/// Who would be in the next pass, and who may soon be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Sessions with one token to read: running texts.
    pub tokens: usize,
    /// Sessions with more to read: prompts, and texts that come back.
    pub prompts: usize,
    /// Sessions that have read all they know: running texts, whose next token comes.
    pub resting: usize,
    /// Those of them that have been answered: their next token comes at once, where their generator is free.
    pub answered: usize,
    /// Sessions opened since the last pass whose prompt is still being encoded. Older ones are none of these: their
    /// profile may be long in coming.
    pub encoding: usize,
}

impl Demand {
    /// Whether a pass would have anything to read.
    pub fn is_work(&self) -> bool {
        self.tokens + self.prompts > 0
    }
}

/// When a pass may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// There is nothing to read.
    Never,
    /// Now.
    Now,
    /// When something arrives, or at this moment.
    Later(Instant),
}

/// Decides when passes begin.
#[derive(Debug, Default)]
pub struct Batching {
    /// Whether passes wait for company at all.
    waits: bool,
    /// When the last pass with tokens began, and how long after the one before.
    last: Option<Instant>,
    step: Duration,
    /// Since when the next pass waits.
    since: Option<Instant>,
    /// When the last answers left.
    answered: Option<Instant>,
}

impl Batching {
    /// Passes that wait for company, as is best on a card, or never do.
    pub fn new(waits: bool) -> Self {
        Self { waits, ..Self::default() }
    }

    /// Answers have left.
    pub fn answered(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    /// When the pass that reads this may begin.
    pub fn begin(&mut self, demand: Demand, now: Instant) -> Begin {
        if !demand.is_work() {
            self.since = None;
            return Begin::Never;
        }
        let since = *self.since.get_or_insert(now);
        let until = match demand {
            _ if !self.waits => since,
            Demand { tokens: 1.., answered: 1.., .. } => self.answered.map_or(since, |at| at + ANSWERED),
            Demand { tokens: 1.., encoding: 1.., .. } => since + ENCODING,
            Demand { tokens: 0, resting: 1.., .. } => since + self.until_next_tokens(since),
            _ => since,
        };
        if now < until {
            return Begin::Later(until);
        }
        self.since = None;
        if demand.tokens > 0 {
            self.step = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
            self.last = Some(now);
        }
        Begin::Now
    }

    /// How long the tokens of running texts may take to come. They come a step after the last did, where their
    /// generator goes on as before; it is given as much again.
    fn until_next_tokens(&self, since: Instant) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let expected = last + 2 * self.step;
        expected.saturating_duration_since(since).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Demand = Demand { tokens: 3, prompts: 0, resting: 0, answered: 0, encoding: 0 };
    const PROMPT: Demand = Demand { tokens: 0, prompts: 1, resting: 3, answered: 0, encoding: 0 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Behind two passes with tokens, 5 ms apart; the second began now.
    fn in_step() -> (Batching, Instant) {
        let (mut batching, start) = (Batching::new(true), Instant::now());
        assert_eq!(batching.begin(RUNNING, start), Begin::Now);
        assert_eq!(batching.begin(RUNNING, start + ms(5)), Begin::Now);
        (batching, start + ms(5))
    }

    #[test]
    fn a_prompt_goes_with_the_next_tokens() {
        let (mut batching, now) = in_step();
        assert_eq!(batching.begin(PROMPT, now + ms(1)), Begin::Later(now + ms(10)));
        assert_eq!(batching.begin(PROMPT, now + ms(4)), Begin::Later(now + ms(10)));
        let both = Demand { prompts: 1, ..RUNNING };
        assert_eq!(batching.begin(both, now + ms(5)), Begin::Now);
        assert_eq!(batching.begin(PROMPT, now + ms(6)), Begin::Later(now + ms(15)), "the next waits anew");
    }

    #[test]
    fn tokens_that_do_not_come_are_not_waited_for_long() {
        let (mut batching, now) = in_step();
        assert!(matches!(batching.begin(PROMPT, now + ms(2)), Begin::Later(_)));
        assert_eq!(batching.begin(PROMPT, now + ms(10)), Begin::Now);
        let (mut batching, now) = in_step();
        assert_eq!(batching.begin(PROMPT, now + ms(11)), Begin::Now, "they are late already");
        assert_eq!(batching.begin(RUNNING, now + ms(60_000)), Begin::Now);
        assert_eq!(batching.begin(PROMPT, now + ms(60_000)), Begin::Later(now + ms(60_000) + LONGEST));
    }

    #[test]
    fn nobody_waits_for_nobody() {
        let mut batching = Batching::new(true);
        let now = Instant::now();
        assert_eq!(batching.begin(Demand::default(), now), Begin::Never);
        assert_eq!(batching.begin(Demand { resting: 0, ..PROMPT }, now), Begin::Now);
        assert_eq!(batching.begin(PROMPT, now), Begin::Now, "no text has gone a step yet");
        assert_eq!(batching.begin(Demand { resting: 3, ..RUNNING }, now), Begin::Now);
    }

    #[test]
    fn tokens_wait_a_moment_for_prompts_that_came_with_them() {
        let (mut batching, now) = in_step();
        let both = Demand { encoding: 1, ..RUNNING };
        assert_eq!(batching.begin(both, now + ms(5)), Begin::Later(now + ms(5) + ENCODING));
        assert_eq!(batching.begin(Demand { prompts: 1, ..RUNNING }, now + ms(5)), Begin::Now);
        assert_eq!(batching.begin(both, now + ms(10)), Begin::Later(now + ms(10) + ENCODING));
        assert_eq!(batching.begin(both, now + ms(11)), Begin::Now);
    }

    #[test]
    fn tokens_wait_a_moment_for_those_of_who_was_just_answered() {
        let (mut batching, now) = in_step();
        let some = Demand { resting: 2, answered: 2, ..RUNNING };
        batching.answered(now + ms(5));
        assert_eq!(batching.begin(some, now + ms(6)), Begin::Later(now + ms(5) + ANSWERED));
        assert_eq!(batching.begin(RUNNING, now + ms(6)), Begin::Now, "all have come");
        batching.answered(now + ms(10));
        assert_eq!(batching.begin(some, now + ms(12)), Begin::Now, "the others take too long");
        batching.answered(now + ms(15));
        assert_eq!(
            batching.begin(Demand { answered: 0, ..some }, now + ms(15)),
            Begin::Now,
            "they were others"
        );
    }

    #[test]
    fn on_a_cpu_nothing_waits() {
        let (mut batching, now) = (Batching::new(false), Instant::now());
        batching.answered(now + ms(6));
        let waiting = Demand { resting: 1, answered: 1, encoding: 1, ..RUNNING };
        for (after, demand) in [(0, RUNNING), (5, RUNNING), (6, PROMPT), (7, waiting)] {
            assert_eq!(batching.begin(demand, now + ms(after)), Begin::Now);
        }
    }
}
