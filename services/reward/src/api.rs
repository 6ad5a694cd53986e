//! `RewardService` on the wire: decodes, hands to the engine, and sends what it answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use attune_engine::PersRm;
use attune_proto::{
    PROTOCOL_VERSION,
    reward::v1::{
        DescribeRequest, DescribeResponse, Normalization, ScoreRequest, ScoreResponse,
        reward_service_server::RewardService,
    },
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    engine::Command,
    resolve::{METHOD, Resolver},
    streams::{self, Responses, StreamId},
};

/// The service; one for all calls.
pub(crate) struct Api {
    persrm: Arc<PersRm>,
    commands: mpsc::Sender<Command>,
    /// The longest context that the cache holds, in tokens.
    context: usize,
    slots: usize,
    max_message_bytes: usize,
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
    ) -> Self {
        Self { persrm, commands, context, slots, max_message_bytes, next: AtomicU64::new(1) }
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
            methods: vec![METHOD.to_owned()],
            references: Resolver::references(&self.persrm).into_iter().map(i32::from).collect(),
            normalizations: vec![Normalization::Candidates.into(), Normalization::Vocabulary.into()],
            hidden_size: count(assets.config.hidden),
            dtype: assets.dtype().to_owned(),
            device: "cpu".to_owned(),
            slots: count(self.slots),
            protocol_version: PROTOCOL_VERSION,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    type ScoreStream = BoxStream<'static, Result<ScoreResponse, Status>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let (outbound, responses) = streams::call();
        let connect = Command::Connect { stream, outbound };
        self.commands.send(connect).await.map_err(|_| Status::unavailable("the engine has ended"))?;
        tokio::spawn(read(
            stream,
            request.into_inner(),
            self.commands.clone(),
            responses.ended.clone(),
            self.max_message_bytes,
        ));
        Ok(Response::new(respond(responses)))
    }
}

/// Hands a call's messages to the engine until either side ends the call. A queue that is full holds
/// up this call alone, and through flow control its peer.
async fn read(
    stream: StreamId,
    mut requests: Streaming<ScoreRequest>,
    commands: mpsc::Sender<Command>,
    ended: CancellationToken,
    max_message_bytes: usize,
) {
    let verdict = loop {
        let message = tokio::select! {
            biased;
            () = ended.cancelled() => break None,
            message = requests.message() => message,
        };
        let command = match message {
            Ok(Some(message)) => Command::Frames { stream, frames: message.frames, at: Instant::now() },
            Ok(None) => {
                // Half-closed: what was asked for is still answered.
                if commands.send(Command::HalfClosed(stream)).await.is_ok() {
                    ended.cancelled().await;
                }
                break None;
            }
            Err(status) => break Some(unreadable(&status, max_message_bytes)),
        };
        if commands.send(command).await.is_err() {
            return;
        }
    };
    // A send fails only when the engine is gone, and every call with it.
    let _ = commands.send(Command::Disconnected { stream, verdict }).await;
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
