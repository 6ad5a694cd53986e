//! What a long run shows of itself: a bar with loss and time left, or plain lines where nobody looks on.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one phase, on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    steps: usize,
    begun: Instant,
    every: usize,
    quiet: bool,
}

impl Progress {
    /// A phase named `what` of `steps` steps. `quiet` shows nothing.
    pub fn new(what: &'static str, steps: usize, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(steps as u64);
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>10} {bar:30} {pos}/{len}  {msg}  left {eta}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what);
            bar
        });
        Self { bar, what, steps, begun: Instant::now(), every: (steps / 20).max(1), quiet }
    }

    /// Reports that `step` (from 0) is done, with the state of affairs in a few words.
    pub fn step(&self, step: usize, state: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(step as u64 + 1);
            bar.set_message(state.to_owned());
        } else if !self.quiet && ((step + 1).is_multiple_of(self.every) || step + 1 == self.steps) {
            let done = step + 1;
            let left =
                self.begun.elapsed().as_secs_f64() / done as f64 * (self.steps - done.min(self.steps)) as f64;
            eprintln!("{}: {done}/{} {state} left {left:.0} s", self.what, self.steps);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
