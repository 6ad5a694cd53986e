//! Keeps a helper off its caller's core.
//!
//! Woken where it slept, a helper may share a core with its caller while another core is idle, and the kernel's
//! balancing takes longer than a decoding step to see it: each then waits while the other computes.

pub(crate) use system::{Place, here};

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// The cores that a thread may run on.
    pub(crate) struct Place(Option<CpuSet>);

    /// The core that this thread runs on.
    pub(crate) fn here() -> usize {
        sched_getcpu()
    }

    impl Place {
        /// What the thread that asks is allowed.
        pub(crate) fn of_this_thread() -> Self {
            Self(sched_getaffinity(None).ok())
        }

        /// Moves this thread to any other of its cores, where there is one.
        pub(crate) fn leave(&self, core: usize) {
            if let Some(mut cores) = self.0.filter(|cores| core < CpuSet::MAX_CPU && cores.count() > 1) {
                cores.unset(core);
                // Where the system refuses, the thread stays: it computes all the same.
                let _ = sched_setaffinity(None, &cores);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    /// Other systems place threads by themselves.
    pub(crate) struct Place;

    pub(crate) fn here() -> usize {
        usize::MAX
    }

    impl Place {
        pub(crate) fn of_this_thread() -> Self {
            Self
        }

        pub(crate) fn leave(&self, _: usize) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_a_core_and_may_come_back() {
        let place = Place::of_this_thread();
        if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
            return;
        }
        for _ in 0..4 {
            let core = here();
            place.leave(core);
            assert_ne!(here(), core);
        }
        // No such core: nothing to leave.
        place.leave(usize::MAX);
    }
}
