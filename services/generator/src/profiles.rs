//! `ProfileService`, the one door for clients: every call goes on to a reward worker, with the caller's identity.

use std::{collections::BTreeSet, error::Error as _, sync::Arc, time::Duration};

use attune_proto::profile::v1::{
    DeleteRequest, DeleteResponse, FitRequest, FitResponse, GetRequest, GetResponse, ListRequest,
    ListResponse, PutRequest, PutResponse, profile_service_client::ProfileServiceClient,
    profile_service_server::ProfileService,
};
use attune_service::{
    auth::Quotas,
    caller::Caller,
    clocks::{Clocked, Clocks},
    status,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{answers::AnswerReader, api::deadline, fit::Fit, roster::Listing};

/// Calls at once, of all clients: each holds a message at most.
const CALLS: usize = 256;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Messages of a fit that wait for the client to read them.
const MESSAGES: usize = 2;

/// Passes calls on.
pub(crate) struct Profiles {
    workers: watch::Receiver<Listing>,
    calls: Arc<Semaphore>,
    /// What each owner may have: a fit counts as a text.
    quotas: Quotas,
    max_message_bytes: usize,
    clocks: Clocks,
    /// Reads the answers of fits with the base model; one fit's at a time.
    answers: Arc<AnswerReader>,
    reading: Arc<Semaphore>,
}

/// A call on its way: to whom, and what it says.
pub(crate) struct Passage<T> {
    pub(crate) worker: ProfileServiceClient<Channel>,
    pub(crate) request: Request<T>,
    pub(crate) deadline: Option<Instant>,
    place: OwnedSemaphorePermit,
}

impl Profiles {
    /// To these workers.
    pub(crate) fn new(
        workers: watch::Receiver<Listing>,
        quotas: Quotas,
        max_message_bytes: usize,
        clocks: Clocks,
        answers: AnswerReader,
    ) -> Self {
        let (calls, reading) = (Arc::new(Semaphore::new(CALLS)), Arc::new(Semaphore::new(1)));
        Self { workers, calls, quotas, max_message_bytes, clocks, answers: Arc::new(answers), reading }
    }

    /// Prepares a call to a worker that serves this model, or any where it is empty.
    fn passage<T>(&self, request: Request<T>, model: &str) -> Result<Passage<T>, Status> {
        let caller = Caller::of(&request)?;
        let deadline = deadline(&request)?.map(Instant::from_std);
        let place = Arc::clone(&self.calls).try_acquire_owned();
        let place =
            place.map_err(|_| status::exhausted(format!("all {CALLS} calls are taken"), RETRY_AFTER))?;
        let worker = self.worker(model)?;
        // Nothing of the client's metadata goes on: what a worker is told of the caller is ours to say.
        let mut request = Request::new(request.into_inner());
        caller.forward(&mut request);
        if let Some(deadline) = deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        Ok(Passage { worker, request, deadline, place })
    }

    fn worker(&self, model: &str) -> Result<ProfileServiceClient<Channel>, Status> {
        let listing = self.workers.borrow().clone();
        let known: Vec<_> = listing.iter().map(|(_, known)| known.borrow().clone()).collect();
        let serves = |id: &str| model.is_empty() || id == model;
        let fit: Vec<Channel> = known
            .iter()
            .filter(|k| k.problem.is_none() && k.description.as_ref().is_some_and(|d| serves(&d.model_id)))
            .filter_map(|k| k.channel.clone())
            .collect();
        if let Some(channel) = fit.get(rand::random_range(0..fit.len().max(1))) {
            return Ok(ProfileServiceClient::new(channel.clone())
                .max_decoding_message_size(self.max_message_bytes)
                .max_encoding_message_size(self.max_message_bytes));
        }
        if listing.is_empty() {
            return Err(Status::unavailable(
                "reward workers keep the profiles, and none is configured or found (--reward URL)",
            ));
        }
        if !known.iter().filter_map(|k| k.description.as_ref()).any(|d| serves(&d.model_id))
            && known.iter().any(|k| k.description.is_some())
        {
            let message =
                "no reward worker serves the reward model that was asked for; `attune describe` lists them";
            return Err(status::not_found("reward_model", model, message));
        }
        Err(status::unavailable(
            "reward workers keep the profiles, and none that could is connected now; `attune describe` says why",
            RETRY_AFTER,
        ))
    }

    /// The ids of the models that are served now.
    fn models(&self) -> BTreeSet<String> {
        let listing = self.workers.borrow().clone();
        let known = listing.iter().map(|(_, known)| known.borrow().clone());
        known.filter(|k| k.problem.is_none()).filter_map(|k| k.description).map(|d| d.model_id).collect()
    }
}

#[tonic::async_trait]
impl ProfileService for Profiles {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let put = request.get_ref();
        let profile = put.profile.as_ref();
        let vector = profile.is_some_and(|p| p.weights.is_some() || p.latent.is_some());
        // What is imported says itself what it was made for; words fit every model.
        let model = match profile {
            Some(profile) if !put.imported => profile.model_id.clone(),
            _ => String::new(),
        };
        if vector && model.is_empty() && !put.imported {
            let models = self.models();
            if models.len() > 1 {
                let message = format!(
                    "several reward models are served; say for which the vector is: {}",
                    models.into_iter().collect::<Vec<_>>().join(", ")
                );
                return Err(status::invalid("profile.model_id", message));
            }
        }
        let Passage { mut worker, request, deadline, place: _place } = self.passage(request, &model)?;
        in_time(deadline, worker.put(request)).await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let Passage { mut worker, request, deadline, place: _place } = self.passage(request, "")?;
        in_time(deadline, worker.get(request)).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let Passage { mut worker, request, deadline, place: _place } = self.passage(request, "")?;
        in_time(deadline, worker.list(request)).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let Passage { mut worker, request, deadline, place: _place } = self.passage(request, "")?;
        in_time(deadline, worker.delete(request)).await
    }

    type FitStream = Clocked<ReceiverStream<Result<FitResponse, Status>>>;

    async fn fit(&self, request: Request<FitRequest>) -> Result<Response<Self::FitStream>, Status> {
        let account = self.quotas.open(&Caller::of(&request)?.owner)?;
        let model = request.get_ref().reward_model.clone();
        let passage = self.passage(request, &model)?;
        let (messages, stream) = mpsc::channel(MESSAGES);
        let fit = Fit { answers: Arc::clone(&self.answers), reading: Arc::clone(&self.reading), messages };
        tokio::spawn(fit.run(passage, account));
        Ok(Response::new(Clocked::new(ReceiverStream::new(stream), self.clocks)))
    }
}

/// A worker's answer, until the client's deadline. The transports between have clocks of their own, which end a call as
/// CANCELLED.
pub(crate) async fn in_time<T>(
    deadline: Option<Instant>,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let Some(deadline) = deadline else { return answer.await.map_err(|s| passed(&s)) };
    match timeout_at(deadline, answer).await {
        Ok(Err(status)) if status.code() == Code::Cancelled => Err(too_late()),
        Ok(answer) => answer.map_err(|s| passed(&s)),
        Err(_) => Err(too_late()),
    }
}

pub(crate) fn too_late() -> Status {
    Status::deadline_exceeded("the deadline came before the call was done")
}

/// A worker's status as the client gets it: without the metadata of the way between.
pub(crate) fn passed(status: &Status) -> Status {
    // What came from the worker has no source; what broke on the way has.
    if status.source().is_some() {
        tracing::warn!(code = ?status.code(), "a reward worker was lost in the middle of a profile's call");
        let message = "the reward worker was lost in the middle of the call: read the profile, and try again";
        return status::unavailable(message, RETRY_AFTER);
    }
    Status::with_details(status.code(), status.message(), status.details().to_vec().into())
}
