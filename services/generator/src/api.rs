//! The wire: decodes a client's message, takes a permit, and hands back the stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use attune_engine::BaseModel;
use attune_proto::generator::v1::{
    DescribeRequest, DescribeResponse, GenerateRequest, Load, RewardWorker,
    generator_service_server::GeneratorService,
};
use attune_service::status;
use tokio::sync::{Semaphore, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    engine::Command,
    output::{Message, Output},
    scheduler,
    sequence::Submission,
    validate::{Limits, ValidRequest},
    worker::Known,
};

/// Whose texts these are until callers are authenticated.
const OWNER: &str = "local";
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// `GeneratorService`.
pub(crate) struct Api {
    pub(crate) model: Arc<BaseModel>,
    /// The tokenizer's fingerprint, over all its ids.
    pub(crate) fingerprint: String,
    pub(crate) engine: crossbeam_channel::Sender<Command>,
    /// One permit for each request that runs or waits.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) limits: Limits,
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    /// How busy the engine is.
    pub(crate) load: watch::Receiver<scheduler::Load>,
    /// Each worker's address and what is known of it.
    pub(crate) workers: Vec<(String, watch::Receiver<Known>)>,
}

#[tonic::async_trait]
impl GeneratorService for Api {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let assets = &self.model.assets;
        Ok(Response::new(DescribeResponse {
            model_id: assets.id.clone(),
            model_revision: assets.revision.clone(),
            vocab_size: assets.config.vocab as u32,
            tokenizer_fingerprint: self.fingerprint.clone(),
            context_length: assets.config.context.min(self.limits.cache_tokens) as u32,
            dtype: assets.dtype().to_owned(),
            device: "cpu".to_owned(),
            slots: self.slots as u32,
            queue: self.queue as u32,
            reward_workers: self.workers.iter().map(|(url, known)| describe(url, &known.borrow())).collect(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            load: Some(load(*self.load.borrow())),
        }))
    }

    type GenerateStream = ClientStream;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let arrived = Instant::now();
        let deadline = deadline(&request)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            let (slots, queue) = (self.slots, self.queue);
            status::exhausted(
                format!("all {slots} slots and {queue} places in the queue are taken"),
                RETRY_AFTER,
            )
        })?;
        let (model, limits) = (Arc::clone(&self.model), self.limits);
        let request = request.into_inner();
        // Tokenising a long prompt takes a while: not on the threads that carry the streams.
        let valid = tokio::task::spawn_blocking(move || {
            ValidRequest::new(request, &model.assets, limits, rand::random)
        })
        .await
        .map_err(|_| Status::internal("the request's validation broke off"))?
        .map_err(status::invalid_all)?;
        if !valid.guidances.is_empty() && self.workers.is_empty() {
            let message = "the request asks for guidance, but no reward worker is configured (--reward URL)";
            return Err(Status::unavailable(message));
        }
        let tokenizer = &self.model.assets.tokenizer;
        let seen = valid.resumed.iter().map(|&id| tokenizer.output_bytes(id));
        let room = valid.sampling.max_tokens - valid.resumed.len();
        let (output, stream) = Output::new(room, valid.stop.clone(), seen);
        let owner = OWNER.to_owned();
        let submission = Submission { request: valid, owner, deadline, output, permit, arrived };
        self.engine
            .send(Command::Submit(Box::new(submission)))
            .map_err(|_| Status::unavailable("the generator is shutting down"))?;
        Ok(Response::new(ClientStream { messages: ReceiverStream::new(stream), engine: self.engine.clone() }))
    }
}

/// A client's stream. When the client leaves, the engine looks at once whose text that was, even while
/// it waits for something else.
pub(crate) struct ClientStream {
    messages: ReceiverStream<Message>,
    engine: crossbeam_channel::Sender<Command>,
}

impl Stream for ClientStream {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        Pin::new(&mut self.messages).poll_next(context)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        // The channel must be closed before anybody looks.
        self.messages.close();
        // It fails only when the engine has ended, and nobody needs to look any more.
        let _ = self.engine.send(Command::Look);
    }
}

/// The moment when the client stops waiting, from `grpc-timeout`. tonic's own timeout ends with the
/// response's head, so that streams have to keep theirs.
fn deadline(request: &Request<GenerateRequest>) -> Result<Option<Instant>, Status> {
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
    Ok(Instant::now().checked_add(timeout))
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
