//! How a caller and its helpers share the tasks of one kernel call.
//!
//! A step makes hundreds of calls of some tens of microseconds, so a hand-over must cost far less:
//! a helper looks for the next call for a moment before it parks, and a caller waits only for
//! helpers that have begun a task. One that the system has not woken yet, because another process
//! has its core, delays nobody.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::place::{Place, here};

/// How long a helper looks for the next call before it parks, unless it is told to rest: longer than what lies
/// between two calls of one step, far shorter than what lies between two steps of an idle service.
const PATIENCE: Duration = Duration::from_micros(100);

/// How long a caller waits awake for a helper to end its last task, which takes some microseconds.
const IMMINENT: Duration = Duration::from_micros(20);

/// Set while helpers may join the current call.
const OPEN: u64 = 1 << 31;
/// Set while the caller sleeps until the last helper leaves.
const WAITING: u64 = 1 << 30;
/// The number of helpers at work, in the low bits.
const ACTIVE: u64 = WAITING - 1;
/// Calls are counted above.
const CALL: u64 = 1 << 32;

/// The tasks of one call, its closure's type forgotten.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    tasks: usize,
    run: fn(*const (), usize),
    closure: *const (),
    _borrowed: PhantomData<&'a ()>,
}

impl<'a> Work<'a> {
    /// `work` is to be called once for every index below `tasks`.
    pub(crate) fn new<F: Fn(usize) + Sync>(tasks: usize, work: &'a F) -> Self {
        fn run<F: Fn(usize)>(closure: *const (), task: usize) {
            // SAFETY: `closure` was made from a `&F` in `new`, and whoever runs tasks holds a
            // `Work` that the borrow outlives: `lead` returns only when no helper has it any more.
            #[allow(unsafe_code)]
            let work = unsafe { &*closure.cast::<F>() };
            work(task);
        }
        Self { tasks, run: run::<F>, closure: std::ptr::from_ref(work).cast(), _borrowed: PhantomData }
    }
}

/// What a caller and its helpers share.
pub(crate) struct Team {
    /// The count of calls, whether the call is open, and how many helpers are in it.
    state: AtomicU64,
    /// The current call's work; written while the call is closed and no helper is in it.
    work: UnsafeCell<Option<Work<'static>>>,
    /// The tasks that each thread has still to do, the caller's first.
    shares: Box<[Share]>,
    /// The core that the caller was on when it opened the call.
    core: AtomicUsize,
    /// The caller, where it sleeps.
    caller: Mutex<Option<Thread>>,
    /// Helpers that are parked, or about to.
    parked: AtomicUsize,
    /// No call is expected soon: helpers park at once.
    resting: AtomicBool,
    /// A helper's task panicked.
    panicked: AtomicBool,
    dismissed: AtomicBool,
}

// SAFETY: `work` is read only by helpers counted in `state`, between an open and the close of a
// call, and written only outside of that; the closure behind it is `Sync`.
#[allow(unsafe_code)]
unsafe impl Sync for Team {}
// SAFETY: as above; the pointer in `work` belongs to no thread.
#[allow(unsafe_code)]
unsafe impl Send for Team {}

impl Team {
    /// A caller and `threads - 1` helpers.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            core: AtomicUsize::new(usize::MAX),
            caller: Mutex::default(),
            parked: AtomicUsize::new(0),
            resting: AtomicBool::new(true),
            panicked: AtomicBool::new(false),
            dismissed: AtomicBool::new(false),
        }
    }

    /// Runs all tasks, with what helpers there are. Only one caller may lead at a time.
    pub(crate) fn lead<'h>(&self, work: Work<'_>, helpers: impl Iterator<Item = &'h Thread>) {
        // SAFETY: no call is open and no helper in one (`Close` saw to it), so nobody reads. The
        // lifetime is forgotten until `Close` ends the call, before `work`'s borrow ends.
        #[allow(unsafe_code)]
        unsafe {
            *self.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work));
        }
        let threads = self.shares.len();
        for (i, share) in self.shares.iter().enumerate() {
            share.set(work.tasks * i / threads, work.tasks * (i + 1) / threads);
        }
        self.panicked.store(false, Relaxed);
        self.resting.store(false, Relaxed);
        self.core.store(here(), Relaxed);
        let call = (self.state.load(Relaxed) & !(CALL - 1)).wrapping_add(CALL);
        self.state.store(call | OPEN, SeqCst);
        let close = Close(self);
        if self.parked.load(SeqCst) > 0 {
            helpers.for_each(Thread::unpark);
        }
        self.drain(0, work);
        drop(close);
        if self.panicked.load(Relaxed) {
            resume_unwind(Box::new("a task panicked on a compute thread"));
        }
    }

    /// Does this thread's tasks in order, and then others', until none is left.
    fn drain(&self, thread: usize, work: Work<'_>) {
        let own = &self.shares[thread];
        loop {
            while let Some(task) = own.take() {
                (work.run)(work.closure, task);
            }
            // A thread that has not come, or is held up, delays nobody.
            let others = self.shares.iter().cycle().skip(thread + 1).take(self.shares.len() - 1);
            let Some((from, to)) = others.flat_map(Share::halve).next() else { return };
            own.set(from, to);
        }
    }

    /// A helper's life.
    pub(crate) fn help(&self, thread: usize) {
        let place = Place::of_this_thread();
        let mut last = 0;
        while let Some(state) = self.wait(last) {
            let core = self.core.load(Relaxed);
            if here() == core {
                place.leave(core);
            }
            if self.state.compare_exchange(state, state + 1, Acquire, Relaxed).is_err() {
                continue;
            }
            last = state & !(CALL - 1);
            // SAFETY: this helper is counted in an open call, so the work stands until it leaves.
            #[allow(unsafe_code)]
            let work = unsafe { *self.work.get() };
            if let Some(work) = work
                && catch_unwind(AssertUnwindSafe(|| self.drain(thread, work))).is_err()
            {
                self.panicked.store(true, Relaxed);
            }
            self.leave();
        }
    }

    /// Leaves the call; the last to do so wakes a caller that sleeps.
    fn leave(&self) {
        let before = self.state.fetch_sub(1, AcqRel);
        if before & WAITING != 0
            && before & ACTIVE == 1
            && let Some(caller) = self.caller.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            caller.unpark();
        }
    }

    /// Whether a helper is in the call.
    fn is_active(&self) -> bool {
        self.state.load(Acquire) & ACTIVE != 0
    }

    /// Waits for an open call other than `last`; `None`: the helper is dismissed.
    fn wait(&self, last: u64) -> Option<u64> {
        let new = || {
            let state = self.state.load(SeqCst);
            (state & OPEN != 0 && state & !(CALL - 1) != last).then_some(state)
        };
        let mut start = Instant::now();
        loop {
            for _ in 0..32 {
                if let Some(state) = new() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.dismissed.load(SeqCst) {
                return None;
            }
            if start.elapsed() < PATIENCE && !self.resting.load(Relaxed) {
                // Another process may have better use for the core.
                thread::yield_now();
                continue;
            }
            self.parked.fetch_add(1, SeqCst);
            if new().is_none() && !self.dismissed.load(SeqCst) {
                thread::park();
            }
            self.parked.fetch_sub(1, SeqCst);
            // Woken, it may have come too late: the next call of the same step is near.
            start = Instant::now();
        }
    }

    /// Lets the helpers park, and whoever waits for a core have theirs.
    pub(crate) fn rest(&self) {
        self.resting.store(true, Relaxed);
    }

    /// Ends the helpers once they wake.
    pub(crate) fn dismiss(&self) {
        self.dismissed.store(true, SeqCst);
    }
}

/// A range of tasks that one thread does from its beginning, so that it reads memory in one stream,
/// and of which others may take the end. On a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, from: usize, to: usize) {
        self.0.store((from as u64) << 32 | to as u64, Relaxed);
    }

    /// The next task.
    fn take(&self) -> Option<usize> {
        let next = |range: u64| (range >> 32 < range & u64::from(u32::MAX)).then(|| range + (1 << 32));
        self.0.fetch_update(Relaxed, Relaxed, next).ok().map(|range| (range >> 32) as usize)
    }

    /// Takes the second half away, rounded up.
    fn halve(&self) -> Option<(usize, usize)> {
        let parts = |range: u64| ((range >> 32) as usize, (range & u64::from(u32::MAX)) as usize);
        let middle = |from: usize, to: usize| from + (to - from) / 2;
        let keep = |range: u64| {
            let (from, to) = parts(range);
            (from < to).then(|| (from as u64) << 32 | middle(from, to) as u64)
        };
        let (from, to) = parts(self.0.fetch_update(Relaxed, Relaxed, keep).ok()?);
        Some((middle(from, to), to))
    }
}

/// Closes the call and waits for the helpers in it, also where the caller's own task panics.
struct Close<'a>(&'a Team);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let team = self.0;
        team.state.fetch_and(!OPEN, Acquire);
        let start = Instant::now();
        while start.elapsed() < IMMINENT {
            if !team.is_active() {
                return;
            }
            std::hint::spin_loop();
        }
        // The helper has lost its core in mid-task: asleep, this thread leaves it its own.
        *team.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        team.state.fetch_or(WAITING, AcqRel);
        while team.is_active() {
            thread::park();
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("state", &self.state).finish_non_exhaustive()
    }
}
