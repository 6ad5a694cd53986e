//! The connection to one reward worker: kept up, described, and checked for a fit.

use std::{sync::Arc, time::Duration};

use attune_proto::{
    PROTOCOL_VERSION,
    reward::v1::{
        DescribeRequest, DescribeResponse, ScoreRequest, response_frame::Frame,
        reward_service_client::RewardServiceClient,
    },
};
use attune_service::tls::{ClientTls, Unreachable};
use futures::future::BoxFuture;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{backoff::pause, counters::Counters, engine::Inbox};

const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// A connection that lasted so long was a good one.
const STEADY: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A worker whose whole process hangs is noticed after the sum of these, even while it prefills and no
/// step's deadline runs.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// How often a worker hears of this generator at least, so that it can tell silence from an end.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Messages on their way to a worker; a worker this far behind is as good as lost.
const OUTBOUND: usize = 256;
/// Messages of one worker that wait for the engine; beyond them, its connection is not read.
const INBOUND: usize = 64;

/// A worker, for as long as this process lives; a later one has a higher id.
pub(crate) type WorkerId = u64;

/// What the engine hears of a worker.
#[derive(Debug)]
pub(crate) enum Event {
    /// It is one of the workers now, by this address.
    Found(String),
    /// It is connected, fits, and takes messages.
    Up(Box<DescribeResponse>, mpsc::Sender<ScoreRequest>),
    /// It answered. The permit bounds how many answers wait.
    Frames(Vec<Frame>, OwnedSemaphorePermit),
    /// It is gone, or does not fit.
    Down(Problem),
    /// It ended the call in good order.
    Ended,
    /// It is no longer one of the workers: its sessions shall go elsewhere.
    Leaving,
    /// It has left.
    Gone,
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

impl Default for Problem {
    fn default() -> Self {
        Self::Unreachable("not connected yet".into())
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
    /// The connection, while there is one.
    pub(crate) channel: Option<Channel>,
}

impl Default for Known {
    fn default() -> Self {
        Self { description: None, problem: Some(Problem::default()), sessions: 0, channel: None }
    }
}

/// Opens a connection to an endpoint.
pub(crate) type Dial =
    Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, tonic::transport::Error>> + Send + Sync>;

/// How workers are connected to; the same for all.
#[derive(Clone)]
pub(crate) struct Dialer {
    /// Opens plain connections.
    pub(crate) dial: Dial,
    /// Opens connections by TLS, where a worker asks for them.
    pub(crate) tls: Option<ClientTls>,
    /// What a worker must share with the base model.
    pub(crate) fit: Fit,
    /// The largest message, either way.
    pub(crate) max_message_bytes: usize,
    /// Where the pauses between tries come from.
    pub(crate) seed: u64,
    /// What has happened.
    pub(crate) counters: Arc<Counters>,
}

/// Connections over TCP.
pub(crate) fn tcp() -> Dial {
    Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await }))
}

/// Keeps a worker connected until the engine is gone, or the worker has left.
pub(crate) async fn keep_connected(
    id: WorkerId,
    url: String,
    dialer: Dialer,
    engine: Inbox,
    known: watch::Sender<Known>,
    leave: CancellationToken,
) {
    let mut dice = StdRng::seed_from_u64(dialer.seed.wrapping_add(id));
    let mut tries = 0;
    while !leave.is_cancelled() {
        let connected = tokio::select! {
            biased;
            () = leave.cancelled() => break,
            connected = dialer.connect(&url) => connected,
        };
        let end = match connected {
            Ok(connection) => {
                let since = tokio::time::Instant::now();
                let description = connection.description.clone();
                tracing::info!(worker = url, model = description.model_id, "reward worker connected");
                let channel = Some(connection.channel);
                known.send_replace(Known {
                    description: Some(description),
                    problem: None,
                    sessions: 0,
                    channel,
                });
                let heartbeat = connection.requests.downgrade();
                if !engine.worker(id, Event::Up(Box::new(connection.description), connection.requests)) {
                    return;
                }
                let listening = listen(id, connection.responses, &engine, &known);
                let end = tokio::select! {
                    biased;
                    end = listening => end,
                    () = beat(heartbeat) => None,
                };
                // A worker that takes connections only to end them is not asked ever so often.
                if since.elapsed() >= STEADY {
                    tries = 0;
                }
                match end {
                    Some(end) => end,
                    None => return,
                }
            }
            Err(problem) => Event::Down(problem),
        };
        tries += 1;
        let problem = match &end {
            Event::Down(problem) => problem.clone(),
            _ => Problem::Unreachable("the call ended".into()),
        };
        tracing::warn!(worker = url, problem = problem.message(), "reward worker not usable");
        known.send_modify(|known| {
            known.problem = Some(problem);
            known.channel = None;
        });
        if !engine.worker(id, end) {
            return;
        }
        let pause = pause(BACKOFF.0, BACKOFF.1, tries, &mut dice);
        tokio::select! {
            () = leave.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    engine.worker(id, Event::Gone);
}

/// Lets the worker know that somebody is there, until the engine takes the worker's sender away.
async fn beat(requests: mpsc::WeakSender<ScoreRequest>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let Some(requests) = requests.upgrade() else { return std::future::pending().await };
        // Where the queue is full, the worker hears enough.
        let _ = requests.try_send(ScoreRequest { frames: Vec::new() });
    }
}

/// Hands the worker's answers to the engine until the call ends; gives how. `None`: the engine is gone.
async fn listen(
    id: WorkerId,
    mut responses: tonic::Streaming<attune_proto::reward::v1::ScoreResponse>,
    engine: &Inbox,
    known: &watch::Sender<Known>,
) -> Option<Event> {
    let room = Arc::new(Semaphore::new(INBOUND));
    loop {
        // Answers that wait for the engine hold up their own worker, by the call's flow control.
        let permit = Arc::clone(&room).acquire_owned().await.ok()?;
        let frames: Vec<Frame> = match responses.message().await {
            Ok(Some(message)) => message.frames.into_iter().filter_map(|f| f.frame).collect(),
            Ok(None) => return Some(Event::Ended),
            Err(status) => return Some(Event::Down(unreachable(&status))),
        };
        for frame in &frames {
            if let Frame::Load(load) = frame {
                known.send_modify(|known| known.sessions = load.sessions);
            }
        }
        if !engine.worker(id, Event::Frames(frames, permit)) {
            return None;
        }
    }
}

struct Connection {
    channel: Channel,
    description: DescribeResponse,
    requests: mpsc::Sender<ScoreRequest>,
    responses: tonic::Streaming<attune_proto::reward::v1::ScoreResponse>,
}

impl Dialer {
    async fn connect(&self, url: &str) -> Result<Connection, Problem> {
        let tls = self.tls.as_ref().filter(|_| url.starts_with("https://"));
        let endpoint = match tls {
            Some(_) => ClientTls::endpoint(url),
            None => Endpoint::from_shared(url.to_owned()).map_err(Unreachable::from),
        };
        let endpoint = endpoint
            .map_err(|e| Problem::Unreachable(format!("`{url}` is no address: {e}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            // A step is one small message each way: none may wait for a fuller packet.
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true);
        let connecting = async {
            match tls {
                Some(tls) => tls.connect(endpoint).await,
                None => (self.dial)(endpoint).await.map_err(Unreachable::from),
            }
        };
        let channel = in_time("the connection", connecting)
            .await?
            .map_err(|e| Problem::Unreachable(format!("cannot connect: {e}")))?;
        let mut client = RewardServiceClient::new(channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes);
        let describe = client.describe(DescribeRequest { tokenizer_size: self.fit.tokenizer_size });
        let description = in_time("Describe", describe).await?.map_err(|s| unreachable(&s))?.into_inner();
        check_fit(&description, &self.fit)?;
        let (requests, outbound) = mpsc::channel(OUTBOUND);
        let score = client.score(ReceiverStream::new(outbound));
        let responses = in_time("Score", score).await?.map_err(|s| unreachable(&s))?.into_inner();
        Ok(Connection { channel, description, requests, responses })
    }
}

async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> Result<T, Problem> {
    tokio::time::timeout(CONNECT_TIMEOUT, answer)
        .await
        .map_err(|_| Problem::Unreachable(format!("{what} was not answered in time")))
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
