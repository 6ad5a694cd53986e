//! `Fit` on its way: the base model reads the answers, a worker fits, and the client hears of both.

use std::{ops::ControlFlow, sync::Arc};

use attune_proto::profile::v1::{Feedback, FitRequest, FitResponse};
use attune_service::{auth::Account, progress::meanwhile};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::spawn_blocking,
    time::timeout_at,
};
use tonic::Status;

use crate::{
    answers::AnswerReader,
    profiles::{Passage, in_time, passed, too_late},
};

/// Feedback beyond this is not read: no worker fits so much at once.
const MOST_FEEDBACK: usize = 512;

/// One fit, and who hears of it.
pub(crate) struct Fit {
    /// Reads the answers of fits with the base model.
    pub(crate) answers: Arc<AnswerReader>,
    /// One fit's at a time.
    pub(crate) reading: Arc<Semaphore>,
    pub(crate) messages: mpsc::Sender<Result<FitResponse, Status>>,
}

impl Fit {
    /// Goes on until the end, the client's deadline, or until nobody reads any more. The account is charged meanwhile.
    pub(crate) async fn run(self, passage: Passage<FitRequest>, _account: Account) {
        let messages = self.messages.clone();
        let deadline = passage.deadline;
        let work = async {
            match deadline {
                None => self.work(passage).await,
                Some(deadline) => {
                    timeout_at(deadline, self.work(passage)).await.unwrap_or_else(|_| Err(too_late()))
                }
            }
        };
        let done = tokio::select! {
            () = messages.closed() => return,
            done = work => done,
        };
        if let Err(status) = done {
            // It fails only where nobody reads any more.
            let _ = messages.send(Err(status)).await;
        }
    }

    async fn work(&self, passage: Passage<FitRequest>) -> Result<(), Status> {
        let Passage { mut worker, mut request, deadline, .. } = passage;
        let feedback = std::mem::take(&mut request.get_mut().feedback);
        let (feedback, read) = self.read(feedback).await?;
        request.get_mut().feedback = feedback;
        let mut steps = in_time(deadline, worker.fit(request)).await?.into_inner();
        while let Some(mut step) = steps.message().await.map_err(|status| passed(&status))? {
            step.done = step.done.saturating_add(read);
            step.total = step.total.saturating_add(read);
            if self.messages.send(Ok(step)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Puts the base model's log-probabilities into the feedback: whatever it is measured against now, what is kept
    /// of it may be fitted against the base later. Gives the number of answers too.
    async fn read(&self, mut feedback: Vec<Feedback>) -> Result<(Vec<Feedback>, u32), Status> {
        if feedback.len() > MOST_FEEDBACK {
            // The worker says so; nothing is read in vain.
            return Ok((feedback, 0));
        }
        let gone = || Status::cancelled("nobody waits for the fit any more");
        let (progress, mut news) = watch::channel(FitResponse::default());
        let turn = Arc::clone(&self.reading).acquire_owned();
        let turn = meanwhile(&self.messages, &mut news, turn).await.ok_or_else(gone)?;
        let answers = Arc::clone(&self.answers);
        let read = spawn_blocking(move || {
            let _turn = turn;
            let mut all = 0;
            let step = |done, total| {
                all = count(total);
                // Where the client goes, nobody listens any more, and the reading ends.
                match progress.send(FitResponse { done: count(done), total: all, ..FitResponse::default() }) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            };
            answers.fill(&mut feedback, step)?;
            Ok((feedback, all))
        });
        let read = meanwhile(&self.messages, &mut news, read).await.ok_or_else(gone)?;
        read.map_err(|e| Status::internal(format!("the reading of the answers broke off: {e}")))?
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
