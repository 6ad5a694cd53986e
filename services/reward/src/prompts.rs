//! The thread that encodes prompts: it keeps long texts from holding up the engine and the network.

use std::sync::mpsc as jobs;

use attune_profiles::Profile;
use attune_proto::reward::v1::{Prompt, open::By};
use tokio::sync::mpsc;
use tracing::Span;

use crate::{engine::Command, failure::Failure, resolve::Resolver, scheduler::Key, slots::Slot};

/// A prompt to encode. It holds its session's slot, so that there are never more jobs than slots.
pub(crate) struct Job {
    /// The session.
    pub(crate) key: Key,
    /// Its slot.
    pub(crate) slot: Slot,
    /// The prompt.
    pub(crate) prompt: Option<Prompt>,
    /// What to be guided by.
    pub(crate) by: Option<By>,
    /// Whose text it is.
    pub(crate) owner: String,
    /// The profile that the guidance names, or why there is none. `None`: it was not looked up.
    pub(crate) profile: Option<Result<Profile, Failure>>,
    /// The job in the session's trace; it ends with it.
    pub(crate) span: Span,
}

/// Works until the engine is gone.
pub(crate) fn run(resolver: &Resolver, jobs: &jobs::Receiver<Job>, engine: &mpsc::WeakSender<Command>) {
    while let Ok(job) = jobs.recv() {
        let resolved = job.resolve(resolver);
        let Some(engine) = engine.upgrade() else { return };
        if engine.blocking_send(resolved).is_err() {
            return;
        }
    }
}

impl Job {
    /// Does it; gives what the engine is told of it.
    pub(crate) fn resolve(self, resolver: &Resolver) -> Command {
        let result = Box::new(resolver.resolve(self.prompt, self.by, self.profile));
        drop(self.span);
        Command::Resolved { key: self.key, slot: self.slot, result }
    }
}
