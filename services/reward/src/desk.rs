//! Where new sessions' prompts go: to the thread that encodes them, and by way of the profile store where a guidance
//! names a profile. A look-up holds up nobody else's prompt.

use std::sync::{Arc, mpsc as jobs};

use attune_profiles::{Profile, ProfileName, Store, StoreError};
use attune_proto::reward::v1::{FailureReason, open::By};
use tokio::sync::mpsc;

use crate::{failure::Failure, prompts::Job};

/// Takes prompts.
pub(crate) struct Desk {
    prompts: jobs::Sender<Job>,
    /// `None`: no profiles are kept.
    lookups: Option<mpsc::UnboundedSender<Job>>,
}

impl Desk {
    /// Hands all to the thread.
    pub(crate) fn new(prompts: jobs::Sender<Job>) -> Self {
        Self { prompts, lookups: None }
    }

    /// Looks up the profiles that guidances name. Must be called within a tokio runtime; what it starts ends with it.
    pub(crate) fn with_profiles(prompts: jobs::Sender<Job>, store: Arc<Store>) -> Self {
        // Its length is bounded: every job holds a slot.
        let (lookups, asked) = mpsc::unbounded_channel();
        tokio::spawn(look_up(store, asked, prompts.clone()));
        Self { prompts, lookups: Some(lookups) }
    }

    /// Takes a prompt.
    ///
    /// # Errors
    /// INTERNAL: nobody is there to encode it.
    pub(crate) fn take(&self, job: Job) -> Result<(), Failure> {
        let taken = match &self.lookups {
            Some(lookups) if named(&job).is_some() => lookups.send(job).is_ok(),
            _ => self.prompts.send(job).is_ok(),
        };
        let gone = || Failure::new(FailureReason::Internal, "the thread that encodes prompts has ended");
        if taken { Ok(()) } else { Err(gone()) }
    }
}

/// The profile that a guidance names. What was resolved already names none that counts.
fn named(job: &Job) -> Option<&str> {
    match &job.by {
        Some(By::Guidance(guidance)) => guidance.profile.as_deref(),
        Some(By::Resolved(_)) | None => None,
    }
}

async fn look_up(store: Arc<Store>, mut asked: mpsc::UnboundedReceiver<Job>, prompts: jobs::Sender<Job>) {
    while let Some(mut job) = asked.recv().await {
        let (store, prompts) = (Arc::clone(&store), prompts.clone());
        tokio::spawn(async move {
            if let Some(name) = named(&job) {
                job.profile = Some(find(&store, &job.owner, name).await);
            }
            // It fails only where the engine has ended, and its sessions with it.
            let _ = prompts.send(job);
        });
    }
}

async fn find(store: &Store, owner: &str, name: &str) -> Result<Profile, Failure> {
    let name = ProfileName::try_from(name.to_owned());
    let name = name.map_err(|e| Failure::invalid("profile", e.to_string()))?;
    store.get(owner, &name).await.map_err(|error| {
        let (reason, message) = match error {
            StoreError::NotFound => {
                (FailureReason::NotFound, "no profile of this owner has that name".to_owned())
            }
            StoreError::Unavailable(trouble) => (FailureReason::Unavailable, trouble.to_string()),
            error => (FailureReason::Unavailable, error.to_string()),
        };
        Failure::new(reason, message).at("profile")
    })
}
