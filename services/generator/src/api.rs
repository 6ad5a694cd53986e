//! The wire: decodes a client's message, takes a permit, and hands back the stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use attune_engine::Assets;
use attune_proto::{
    generator::v1::{
        DescribeRequest, DescribeResponse, GenerateRequest, Load, RewardWorker,
        generator_service_server::GeneratorService,
    },
    reward::v1::prompt::Kind,
};
use attune_service::{
    auth::{Account, Quotas},
    caller::Caller,
    clocks::{Clocked, Clocks},
    now, status,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    engine::Inbox,
    metrics::{Operation, Requests},
    output::{Message, Output},
    roster::Listing,
    scheduler,
    sequence::Submission,
    trail::Trail,
    validate::{Limits, ValidRequest},
    worker::Known,
};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// `GeneratorService`.
pub(crate) struct Api {
    pub(crate) assets: Arc<Assets>,
    /// The tokenizer's fingerprint, over all its ids.
    pub(crate) fingerprint: String,
    /// Where the model computes.
    pub(crate) device: String,
    pub(crate) engine: Inbox,
    /// One permit for each request that runs or waits.
    pub(crate) permits: Arc<Semaphore>,
    /// What each owner may have.
    pub(crate) quotas: Quotas,
    /// What is recorded of every request.
    pub(crate) requests: Arc<Requests>,
    pub(crate) limits: Limits,
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    /// How busy the engine is.
    pub(crate) load: watch::Receiver<scheduler::Load>,
    /// The clocks of every client's stream.
    pub(crate) clocks: Clocks,
    /// Whether requests are checked where they arrive: a simulation has no other threads, whose turn would
    /// be a matter of chance.
    pub(crate) inline: bool,
    /// Whether there are reward workers at all.
    pub(crate) guided: bool,
    /// Whether people's texts may stand in the log.
    pub(crate) log_content: bool,
    /// The workers that there are now.
    pub(crate) workers: watch::Receiver<Listing>,
}

/// A client's place among those that run or wait. It is free again when neither the engine nor the
/// client's stream holds anything of it: a client that does not read keeps its place, not the memory of
/// ever more texts.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    account: Account,
}

impl Place {
    /// Holds a permit and a stream of its owner's.
    pub(crate) fn new(permit: OwnedSemaphorePermit, account: Account) -> Self {
        Self { _permit: permit, account }
    }

    /// Puts tokens on the owner's account.
    pub(crate) fn take(&self, tokens: usize) {
        self.account.take(tokens);
    }
}

#[tonic::async_trait]
impl GeneratorService for Api {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let assets = &self.assets;
        Ok(Response::new(DescribeResponse {
            model_id: assets.id.clone(),
            model_revision: assets.revision.clone(),
            vocab_size: assets.config.vocab as u32,
            tokenizer_fingerprint: self.fingerprint.clone(),
            context_length: assets.config.context.min(self.limits.cache_tokens) as u32,
            dtype: assets.dtype().to_owned(),
            device: self.device.clone(),
            slots: self.slots as u32,
            queue: self.queue as u32,
            reward_workers: self
                .workers
                .borrow()
                .iter()
                .map(|(url, known)| describe(url, &known.borrow()))
                .collect(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            load: Some(load(*self.load.borrow())),
        }))
    }

    type GenerateStream = Clocked<ClientStream>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let operation = match request.get_ref().prompt.as_ref().and_then(|prompt| prompt.kind.as_ref()) {
            Some(Kind::Messages(_)) => Operation::Chat,
            _ => Operation::TextCompletion,
        };
        let mut trail = Some(Trail::new(&self.requests, operation, request.metadata(), now()));
        let answer = self.begin(request, &mut trail).await;
        if let (Err(status), Some(trail)) = (&answer, trail) {
            trail.failed(status.code());
        }
        answer.map(Response::new)
    }
}

impl Api {
    /// Checks a request and hands it to the engine, which takes its trail along.
    async fn begin(
        &self,
        request: Request<GenerateRequest>,
        trail: &mut Option<Trail>,
    ) -> Result<Clocked<ClientStream>, Status> {
        let deadline = deadline(&request)?;
        let owner = Caller::of(&request)?.owner;
        let account = self.quotas.open(&owner)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            let (slots, queue) = (self.slots, self.queue);
            status::exhausted(
                format!("all {slots} slots and {queue} places in the queue are taken"),
                RETRY_AFTER,
            )
        })?;
        let place = Arc::new(Place::new(permit, account));
        let (assets, limits) = (Arc::clone(&self.assets), self.limits);
        let request = request.into_inner();
        if self.log_content {
            tracing::debug!(owner, ?request, "a text is asked for");
        }
        let validate = move || ValidRequest::new(request, &assets, limits, rand::random);
        let valid = if self.inline {
            validate()
        } else {
            // Tokenising a long prompt takes a while: not on the threads that carry the streams.
            tokio::task::spawn_blocking(validate)
                .await
                .map_err(|_| Status::internal("the request's validation broke off"))?
        };
        let valid = valid.map_err(status::invalid_all)?;
        if !valid.guidances.is_empty() && !self.guided {
            let message = "the request asks for guidance, but no reward worker is configured (--reward URL)";
            return Err(Status::unavailable(message));
        }
        let tokenizer = &self.assets.tokenizer;
        let seen = valid.resumed.iter().map(|&id| tokenizer.output_bytes(id));
        let room = valid.sampling.max_tokens - valid.resumed.len();
        let (output, stream) = Output::new(room, valid.stop.clone(), seen);
        place.take(valid.prompt_ids.len());
        let Some(mut trail) = trail.take() else {
            return Err(Status::internal("the request has begun already"));
        };
        trail.submitted(&valid);
        let submission =
            Submission { request: valid, owner, deadline, output, place: Arc::clone(&place), trail };
        if !self.engine.submit(submission) {
            return Err(Status::unavailable("the generator is shutting down"));
        }
        let messages = ReceiverStream::new(stream);
        let stream = ClientStream { messages, engine: self.engine.clone(), place: Some(place) };
        Ok(Clocked::new(stream, self.clocks))
    }
}

/// A client's stream. When the client leaves, the engine looks at once whose text that was, even while
/// it waits for something else.
pub(crate) struct ClientStream {
    messages: ReceiverStream<Message>,
    engine: Inbox,
    place: Option<Arc<Place>>,
}

impl Stream for ClientStream {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let message = Pin::new(&mut self.messages).poll_next(context);
        let ended = |m: &Message| m.as_ref().map_or(true, |m| m.finish.is_some());
        if matches!(&message, Poll::Ready(Some(m)) if ended(m)) {
            // Who has read the end must find the place free.
            self.place = None;
        }
        message
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        // The channel must be closed before anybody looks.
        self.messages.close();
        self.engine.look();
    }
}

/// The moment when the client stops waiting, from `grpc-timeout`. tonic's own timeout ends with the
/// response's head, so that streams have to keep theirs.
pub(crate) fn deadline<T>(request: &Request<T>) -> Result<Option<Instant>, Status> {
    let Some(value) = request.metadata().get("grpc-timeout") else { return Ok(None) };
    let parse = || {
        let text = value.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if digits.len() > 8 {
            return None;
        }
        let n: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(n * 3600),
            "M" => Duration::from_secs(n * 60),
            "S" => Duration::from_secs(n),
            "m" => Duration::from_millis(n),
            "u" => Duration::from_micros(n),
            "n" => Duration::from_nanos(n),
            _ => return None,
        })
    };
    let timeout = parse().ok_or_else(|| Status::invalid_argument("grpc-timeout is not a valid timeout"))?;
    Ok(now().checked_add(timeout))
}

fn load(load: scheduler::Load) -> Load {
    let scheduler::Load { running, waiting, preempted, cache } = load;
    Load {
        running: running as u32,
        waiting: waiting as u32,
        blocks_used: cache.used as u32,
        blocks_kept: cache.kept as u32,
        blocks_total: cache.total as u32,
        asked_tokens: cache.asked_tokens,
        hit_tokens: cache.hit_tokens,
        preempted,
    }
}

fn describe(url: &str, known: &Known) -> RewardWorker {
    let problem = known.problem.as_ref().map_or("", |p| p.message()).to_owned();
    let description = known.description.clone().unwrap_or_default();
    RewardWorker {
        endpoint: url.to_owned(),
        connected: known.problem.is_none() && known.description.is_some(),
        model_id: description.model_id,
        model_revision: description.model_revision,
        hidden_size: description.hidden_size,
        methods: description.methods,
        references: description.references,
        sessions: known.sessions,
        slots: description.slots,
        problem,
    }
}
