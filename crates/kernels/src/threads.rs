//! The threads that compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::KernelError;

/// A handle to a pool of compute threads. Cheap to clone.
///
/// The caller is one of the `count` threads: the pool holds one fewer, and they park when idle.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Option<Arc<rayon::ThreadPool>>,
    count: usize,
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
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count - 1)
            .thread_name(|i| format!("compute-{}", i + 1))
            .build()
            .map_err(|e| KernelError::Threads(e.to_string()))?;
        Ok(Self { pool: Some(Arc::new(pool)), count })
    }

    /// How many threads compute.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `work` once for every index below `tasks`, in no particular order, and returns when
    /// all are done. On one thread, or for one task, it runs inline.
    pub fn for_each(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        let helpers = self.count.min(tasks).saturating_sub(1);
        let Some(pool) = self.pool.as_ref().filter(|_| helpers > 0) else {
            (0..tasks).for_each(work);
            return;
        };
        // Whoever is free takes the next index: a thread that the system holds up delays nobody.
        let next = AtomicUsize::new(0);
        let drain = || {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    return;
                }
                work(task);
            }
        };
        pool.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| drain());
            }
            drain();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for count in 0..5 {
            let threads = Threads::new(count).unwrap();
            assert_eq!(threads.count(), count.max(1));
            for tasks in [0, 1, 2, 100] {
                let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                threads.for_each(tasks, |i| {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(ran.iter().all(|ran| ran.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
