//! The threads that compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::KernelError;
use crate::team::{Team, Work};

/// A handle to a pool of compute threads. Cheap to clone.
///
/// The caller is one of the `count` threads: the pool holds one fewer, and they park when idle.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Option<Arc<Pool>>,
    count: usize,
}

#[derive(Debug)]
struct Pool {
    team: Arc<Team>,
    /// One caller at a time has the helpers; another meanwhile does its work alone.
    taken: AtomicBool,
    helpers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// A pool in which `count` threads compute, the caller's included; 0 counts as 1.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn new(count: usize) -> Result<Self, KernelError> {
        let count = count.max(1);
        if count == 1 {
            return Ok(Self { pool: None, count });
        }
        let team = Arc::new(Team::new(count));
        let mut pool = Pool { team: Arc::clone(&team), taken: AtomicBool::new(false), helpers: vec![] };
        for i in 1..count {
            let team = Arc::clone(&team);
            let helper = thread::Builder::new().name(format!("compute-{i}")).spawn(move || team.help(i));
            pool.helpers.push(helper.map_err(|e| KernelError::Threads(e.to_string()))?);
        }
        Ok(Self { pool: Some(Arc::new(pool)), count })
    }

    /// How many threads compute.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `work` once for every index below `tasks`, in no particular order, and returns when
    /// all are done. On one thread, or for one task, it runs inline.
    ///
    /// # Panics
    /// `work` did, on any thread.
    pub fn for_each(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        let Some(pool) = self.pool.as_ref().filter(|_| tasks > 1) else {
            (0..tasks).for_each(work);
            return;
        };
        if pool.taken.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(work);
            return;
        }
        let _turn = Turn(&pool.taken);
        let sleepers = pool.helpers.iter().map(JoinHandle::thread);
        pool.team.lead(Work::new(tasks, &work), sleepers);
    }

    /// Says that a step is computed: threads that look for more to do leave their cores to those who carry the
    /// result away. The next [`Self::for_each`] wakes them.
    pub fn rest(&self) {
        if let Some(pool) = &self.pool {
            pool.team.rest();
        }
    }
}

/// The right to the helpers, given back on drop.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.team.dismiss();
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper ends only when told to; what panicked in its work was reported to the caller.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for count in 0..5 {
            let threads = Threads::new(count).unwrap();
            assert_eq!(threads.count(), count.max(1));
            for round in 0..200 {
                let tasks = [0, 1, 2, 100][round % 4];
                let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                threads.for_each(tasks, |i| {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(ran.iter().all(|ran| ran.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn helpers_that_went_to_sleep_come_back() {
        let threads = Threads::new(3).unwrap();
        let together = std::sync::Barrier::new(3);
        for _ in 0..3 {
            // It ends only if three threads take a task each.
            threads.for_each(3, |_| {
                together.wait();
            });
            threads.rest();
            thread::park_timeout(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn callers_do_not_wait_for_each_other() {
        let threads = Threads::new(2).unwrap();
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        threads.for_each(7, |_| {
                            done.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), 4 * 500 * 7);
        // Nor does one wait for itself.
        threads.for_each(2, |_| threads.for_each(2, |_| ()));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let threads = Threads::new(3).unwrap();
        for bad in 0..8 {
            let result =
                std::panic::catch_unwind(AssertUnwindSafe(|| threads.for_each(8, |i| assert_ne!(i, bad))));
            assert!(result.is_err());
        }
        let done = AtomicUsize::new(0);
        threads.for_each(8, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 8);
    }
}
