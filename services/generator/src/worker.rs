//! The connection to one reward worker: kept up, described, and checked for a fit.

use std::time::Duration;

use attune_proto::{
    PROTOCOL_VERSION,
    reward::v1::{
        DescribeRequest, DescribeResponse, ScoreRequest, response_frame::Frame,
        reward_service_client::RewardServiceClient,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Endpoint};

use crate::engine::Command;

const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages on their way to a worker; a worker this far behind is as good as lost.
const OUTBOUND: usize = 256;

/// A worker's place in the configuration.
pub(crate) type WorkerId = usize;

/// What the engine hears of a worker.
#[derive(Debug)]
pub(crate) enum WorkerEvent {
    /// It is connected, fits, and takes messages.
    Up(Box<DescribeResponse>, mpsc::Sender<ScoreRequest>),
    /// It answered.
    Frames(Vec<Frame>),
    /// It is gone, or does not fit.
    Down(Problem),
}

/// Why a worker cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It may come back by itself.
    Unreachable(String),
    /// Its model does not fit the base model.
    Unfit(String),
}

impl Problem {
    /// The reason as a sentence.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Unreachable(message) | Self::Unfit(message) => message,
        }
    }
}

/// What a worker must share with the base model.
#[derive(Debug, Clone)]
pub(crate) struct Fit {
    /// Ids that the base model's tokenizer gives text to.
    pub(crate) tokenizer_size: u32,
    /// The fingerprint over them.
    pub(crate) fingerprint: String,
}

/// What is known of a worker, for `Describe`.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// What it said of itself when last connected.
    pub(crate) description: Option<DescribeResponse>,
    /// Why it is not connected now.
    pub(crate) problem: Option<Problem>,
    /// Sessions open on it, as it last reported.
    pub(crate) sessions: u32,
}

/// Keeps a worker connected until the engine is gone.
pub(crate) async fn keep_connected(
    id: WorkerId,
    endpoint: Endpoint,
    fit: Fit,
    max_message_bytes: usize,
    engine: crossbeam_channel::Sender<Command>,
    known: watch::Sender<Known>,
) {
    let tell = |event| engine.send(Command::Worker(id, event)).is_ok();
    let mut backoff = BACKOFF.0;
    loop {
        let problem = match connect(&endpoint, &fit, max_message_bytes).await {
            Ok(connection) => {
                backoff = BACKOFF.0;
                let description = connection.description.clone();
                tracing::info!(worker = %endpoint.uri(), model = description.model_id, "reward worker connected");
                known.send_replace(Known { description: Some(description), problem: None, sessions: 0 });
                if !tell(WorkerEvent::Up(Box::new(connection.description), connection.requests)) {
                    return;
                }
                let mut responses = connection.responses;
                loop {
                    match responses.message().await {
                        Ok(Some(message)) => {
                            let frames: Vec<Frame> =
                                message.frames.into_iter().filter_map(|f| f.frame).collect();
                            for frame in &frames {
                                if let Frame::Load(load) = frame {
                                    known.send_modify(|known| known.sessions = load.sessions);
                                }
                            }
                            if !tell(WorkerEvent::Frames(frames)) {
                                return;
                            }
                        }
                        Ok(None) => break Problem::Unreachable("the worker ended the stream".into()),
                        Err(status) => break unreachable(&status),
                    }
                }
            }
            Err(problem) => problem,
        };
        tracing::warn!(worker = %endpoint.uri(), problem = problem.message(), "reward worker not usable");
        known.send_modify(|known| known.problem = Some(problem.clone()));
        if !tell(WorkerEvent::Down(problem)) {
            return;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

struct Connection {
    description: DescribeResponse,
    requests: mpsc::Sender<ScoreRequest>,
    responses: tonic::Streaming<attune_proto::reward::v1::ScoreResponse>,
}

async fn connect(endpoint: &Endpoint, fit: &Fit, max_message_bytes: usize) -> Result<Connection, Problem> {
    let channel = endpoint
        .clone()
        .connect_timeout(CONNECT_TIMEOUT)
        // A step is one small message each way: none may wait for a fuller packet.
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|e| Problem::Unreachable(format!("cannot connect: {e}")))?;
    let mut client = RewardServiceClient::new(channel)
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(max_message_bytes);
    let describe = client.describe(DescribeRequest { tokenizer_size: fit.tokenizer_size });
    let description = tokio::time::timeout(CONNECT_TIMEOUT, describe)
        .await
        .map_err(|_| Problem::Unreachable("Describe was not answered in time".into()))?
        .map_err(|status| unreachable(&status))?
        .into_inner();
    check_fit(&description, fit)?;
    let (requests, outbound) = mpsc::channel(OUTBOUND);
    let score = client.score(ReceiverStream::new(outbound));
    let responses = tokio::time::timeout(CONNECT_TIMEOUT, score)
        .await
        .map_err(|_| Problem::Unreachable("Score was not answered in time".into()))?
        .map_err(|status| unreachable(&status))?
        .into_inner();
    Ok(Connection { description, requests, responses })
}

fn check_fit(description: &DescribeResponse, fit: &Fit) -> Result<(), Problem> {
    if description.protocol_version != PROTOCOL_VERSION {
        return Err(Problem::Unfit(format!(
            "the worker speaks protocol version {}, this generator {PROTOCOL_VERSION}",
            description.protocol_version
        )));
    }
    if description.tokenizer_fingerprint != fit.fingerprint {
        return Err(Problem::Unfit(format!(
            "the reward model `{}` has another tokenizer: fingerprint {} where the base model's is {}; serve a reward \
             model made for this base model's tokenizer",
            description.model_id, description.tokenizer_fingerprint, fit.fingerprint
        )));
    }
    Ok(())
}

fn unreachable(status: &Status) -> Problem {
    let message = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::FailedPrecondition => Problem::Unfit(message),
        _ => Problem::Unreachable(message),
    }
}
