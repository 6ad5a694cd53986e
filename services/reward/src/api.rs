//! `RewardService` on the wire: decodes, hands to the engine, and sends what it answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use attune_engine::{LatentAdapter, PersRm};
use attune_proto::{
    PROTOCOL_VERSION,
    reward::v1::{
        DescribeRequest, DescribeResponse, Normalization, ScoreRequest, ScoreResponse,
        reward_service_server::RewardService,
    },
};
use attune_service::{clocks::Clocks, status};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    engine::Command,
    method::Method,
    resolve::Resolver,
    streams::{self, Responses, StreamId},
};

/// Calls at once: each is a generator's, and generators are few.
const CALLS: usize = 1024;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The service; one for all calls.
pub(crate) struct Api {
    persrm: Arc<PersRm>,
    commands: mpsc::Sender<Command>,
    /// The longest context that the cache holds, in tokens.
    context: usize,
    slots: usize,
    max_message_bytes: usize,
    clocks: Clocks,
    calls: Arc<Semaphore>,
    next: AtomicU64,
}

impl Api {
    /// Answers for a model whose engine takes these commands.
    pub(crate) fn new(
        persrm: Arc<PersRm>,
        commands: mpsc::Sender<Command>,
        context: usize,
        slots: usize,
        max_message_bytes: usize,
        clocks: Clocks,
    ) -> Self {
        let (calls, next) = (Arc::new(Semaphore::new(CALLS)), AtomicU64::new(1));
        Self { persrm, commands, context, slots, max_message_bytes, clocks, calls, next }
    }
}

#[tonic::async_trait]
impl RewardService for Api {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
        let size = self.persrm.assets.tokenizer.size();
        // A PersRM may add ids: the generator compares the ids that it has itself.
        let covered = match request.into_inner().tokenizer_size {
            0 => count(size),
            asked => asked.min(count(size)),
        };
        let persrm = Arc::clone(&self.persrm);
        let fingerprint = tokio::task::spawn_blocking(move || persrm.assets.tokenizer.fingerprint(covered))
            .await
            .map_err(|e| Status::internal(format!("the tokenizer's fingerprint failed: {e}")))?;
        let assets = &self.persrm.assets;
        Ok(Response::new(DescribeResponse {
            model_id: assets.id.clone(),
            model_revision: assets.revision.clone(),
            vocab_size: count(assets.config.vocab),
            tokenizer_size: count(size),
            tokenizer_fingerprint: fingerprint,
            context_length: count(self.context),
            methods: Method::offered(&self.persrm).map(|method| method.name().to_owned()).collect(),
            references: Resolver::references(&self.persrm).into_iter().map(i32::from).collect(),
            normalizations: vec![Normalization::Candidates.into(), Normalization::Vocabulary.into()],
            hidden_size: count(assets.config.hidden),
            dtype: assets.dtype().to_owned(),
            device: self.persrm.device(),
            slots: count(self.slots),
            protocol_version: PROTOCOL_VERSION,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            latent_size: count(self.persrm.latent().map_or(0, LatentAdapter::size)),
        }))
    }

    type ScoreStream = BoxStream<'static, Result<ScoreResponse, Status>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let place = Arc::clone(&self.calls).try_acquire_owned();
        let place =
            place.map_err(|_| status::exhausted(format!("all {CALLS} calls are taken"), RETRY_AFTER))?;
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let (outbound, responses) = streams::call();
        let connect = Command::Connect { stream, outbound };
        self.commands.send(connect).await.map_err(|_| Status::unavailable("the engine has ended"))?;
        let reader = Reader {
            stream,
            commands: self.commands.clone(),
            ended: responses.ended.clone(),
            max_message_bytes: self.max_message_bytes,
            clocks: self.clocks,
            _place: place,
        };
        tokio::spawn(reader.read(request.into_inner()));
        Ok(Response::new(respond(responses)))
    }
}

/// Hands a call's messages to the engine until either side ends the call. A queue that is full holds
/// up this call alone, and through flow control its peer.
struct Reader {
    stream: StreamId,
    commands: mpsc::Sender<Command>,
    ended: CancellationToken,
    max_message_bytes: usize,
    clocks: Clocks,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    async fn read(self, mut requests: Streaming<ScoreRequest>) {
        let start = Instant::now();
        let lifetime = start + self.clocks.lifetime;
        let mut due = start + self.clocks.first;
        let verdict = loop {
            let message = tokio::select! {
                biased;
                () = self.ended.cancelled() => break None,
                message = requests.message() => message,
                () = sleep_until(due) => break Some(Status::deadline_exceeded(
                    "nothing came for too long; send an empty message where there is nothing to say",
                )),
                () = sleep_until(lifetime) => Ok(None),
            };
            let command = match message {
                Ok(Some(message)) => {
                    due = Instant::now() + self.clocks.idle;
                    let at = Instant::now().into_std();
                    Command::Frames { stream: self.stream, frames: message.frames, at }
                }
                Ok(None) => {
                    // Half-closed, or old enough: what was asked for is still answered.
                    if self.commands.send(Command::HalfClosed(self.stream)).await.is_ok() {
                        // A peer that reads no answers does not keep the call.
                        let _ = timeout(self.clocks.idle, self.ended.cancelled()).await;
                    }
                    break None;
                }
                Err(status) => break Some(unreadable(&status, self.max_message_bytes)),
            };
            if self.commands.send(command).await.is_err() {
                return;
            }
        };
        // A send fails only when the engine is gone, and every call with it.
        let _ = self.commands.send(Command::Disconnected { stream: self.stream, verdict }).await;
    }
}

/// What a peer is told whose message cannot be read.
fn unreadable(status: &Status, max_message_bytes: usize) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(format!(
            "a message is larger than {max_message_bytes} bytes; send fewer frames at once, or raise `server.max_message_bytes`"
        )),
        code => Status::new(code, status.message()),
    }
}

/// The engine's messages, and then how the call ended.
fn respond(responses: Responses) -> BoxStream<'static, Result<ScoreResponse, Status>> {
    let Responses { messages, verdict, ended } = responses;
    // When the transport drops the responses, the reader must not wait on.
    let guard = ended.drop_guard();
    let end = stream::once(async move { verdict.get().cloned() }).filter_map(|v| async move { v.map(Err) });
    let messages = ReceiverStream::new(messages).map(move |message| {
        let _held = &guard;
        Ok(message)
    });
    messages.chain(end).boxed()
}
