//! A reward worker whose forward pass is a timed wait: it speaks the real protocol over a real socket,
//! and computes nothing, so that it stands for a worker on another machine.
//!
//! One forward serves all sessions that have something to read, as a real worker's does. Rewards are a
//! fixed function of step and token, so that a text is the same on any such worker.
//!
//! All of it runs on one thread, which sleeps while its forward pass runs: what it takes of this machine is taken
//! from the generator that it is measured with.

mod sessions;

use std::{
    collections::HashMap,
    hint, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use attune_proto::{
    PROTOCOL_VERSION,
    reward::v1::{
        DescribeRequest, DescribeResponse, Load, Normalization, Reference, RequestFrame, ResponseFrame,
        ScoreRequest, ScoreResponse,
        response_frame::Frame,
        reward_service_server::{RewardService, RewardServiceServer},
    },
};
use tokio::{net::TcpListener, runtime, sync::mpsc, task::yield_now, time::timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

use sessions::Sessions;

/// What a timed worker claims to be.
#[derive(Debug, Clone)]
pub struct TimedConfig {
    /// Sessions that run at once; at least 1.
    pub slots: u32,
    /// How long one forward pass takes, whatever it reads.
    pub forward: Duration,
    /// Whether it stands for a worker on a card: answers wait for the pass under way, as what is handed to a card
    /// does for what was before, and prompts for company ([`attune_service::batching`]).
    pub on_card: bool,
    /// The tokenizer's fingerprint that the generator expects; its `Describe` tells it.
    pub fingerprint: String,
    /// Ids lie below this.
    pub vocab: u32,
    /// The model id that guidances may name.
    pub model_id: String,
}

impl TimedConfig {
    /// A worker of 64 slots that fits the generator of this description.
    pub fn fitting(generator: &attune_proto::generator::v1::DescribeResponse, forward: Duration) -> Self {
        Self {
            slots: 64,
            forward,
            on_card: false,
            fingerprint: generator.tokenizer_fingerprint.clone(),
            vocab: generator.vocab_size,
            model_id: "timed".to_owned(),
        }
    }
}

/// Tokio's timers come up to a millisecond late; the last bit of a wait is slept by the thread itself.
const COARSE: Duration = Duration::from_millis(2);
/// A thread wakes so much later than it asked to.
const SLACK: Duration = Duration::from_micros(60);

/// A running timed worker; it ends when dropped, and its calls with it.
#[derive(Debug)]
pub struct TimedWorker {
    address: SocketAddr,
    commands: mpsc::UnboundedSender<Command>,
    seen: Arc<Seen>,
    _stop: DropGuard,
}

/// What can be seen of it from outside.
#[derive(Debug, Default)]
struct Seen {
    sessions: AtomicU32,
    forwards: AtomicU64,
}

impl TimedWorker {
    /// Listens on a free loopback port and serves.
    ///
    /// # Errors
    /// No port or no thread is to be had.
    pub fn start(config: TimedConfig) -> io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), config)
    }

    /// Listens on an address of one's own choice and serves.
    ///
    /// # Errors
    /// The address is taken, or no thread is to be had.
    pub fn start_at(address: SocketAddr, config: TimedConfig) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (sessions, seen) = (Sessions::new(&config), Arc::new(Seen::default()));
        let shown = Arc::clone(&seen);
        let stop = CancellationToken::new();
        let api = Api { config, commands: commands.clone(), calls: AtomicU64::new(1), stop: stop.clone() };
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = stop.clone();
        thread::Builder::new().name("timed".into()).spawn(move || {
            runtime.block_on(async move {
                let incoming = TcpIncoming::from(TcpListener::from_std(listener)?).with_nodelay(Some(true));
                tokio::spawn(run(sessions, inbox, shown));
                let server = tonic::transport::Server::builder().add_service(RewardServiceServer::new(api));
                server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()).await?;
                anyhow::Ok(())
            })
        })?;
        Ok(Self { address, commands, seen, _stop: stop.drop_guard() })
    }

    /// Its address, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sessions that are open on it.
    pub fn sessions(&self) -> u32 {
        self.seen.sessions.load(Ordering::Relaxed)
    }

    /// Forward passes that it has begun.
    pub fn forwards(&self) -> u64 {
        self.seen.forwards.load(Ordering::Relaxed)
    }

    /// Changes how long the next forward passes take.
    pub fn set_forward(&self, forward: Duration) {
        // The thread lives as long as this handle.
        let _ = self.commands.send(Command::Forward(forward));
    }
}

#[derive(Debug)]
enum Command {
    Connect(u64, mpsc::UnboundedSender<Result<ScoreResponse, Status>>),
    Frames(u64, Vec<RequestFrame>, Instant),
    Disconnect(u64),
    Forward(Duration),
}

/// What stands for the device: it waits until a frame comes or a forward ends.
async fn run(mut sessions: Sessions, mut inbox: mpsc::UnboundedReceiver<Command>, seen: Arc<Seen>) {
    let mut calls = HashMap::new();
    let mut told = HashMap::new();
    loop {
        let first = match sessions.deadline() {
            Some(deadline) => match timeout_at((deadline - COARSE).into(), inbox.recv()).await {
                Ok(None) => return,
                Ok(command) => command,
                Err(_) => {
                    // What has come in is heard before the thread sleeps.
                    yield_now().await;
                    let heard = inbox.try_recv().ok();
                    if heard.is_none() {
                        sleep_until(deadline);
                    }
                    heard
                }
            },
            None => match inbox.recv().await {
                None => return,
                command => command,
            },
        };
        let mut answers = Vec::new();
        for command in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
            match command {
                Command::Connect(call, out) => {
                    calls.insert(call, out);
                }
                Command::Frames(call, frames, at) => {
                    for frame in frames.into_iter().filter_map(|f| f.frame) {
                        answers.extend(sessions.handle(call, frame, at).map(|answer| (call, answer)));
                    }
                }
                Command::Disconnect(call) => {
                    sessions.disconnect(call);
                    calls.remove(&call);
                    told.remove(&call);
                }
                Command::Forward(forward) => sessions.set_forward(forward),
            }
        }
        answers.extend(sessions.tick(Instant::now()));
        let load = sessions.load();
        seen.sessions.store(load.sessions, Ordering::Relaxed);
        seen.forwards.store(sessions.forwards(), Ordering::Relaxed);
        send(answers, load, &calls, &mut told);
    }
}

/// Sleeps until a moment that is near, and no longer.
fn sleep_until(deadline: Instant) {
    thread::sleep(deadline.saturating_duration_since(Instant::now()).saturating_sub(SLACK));
    while Instant::now() < deadline {
        hint::spin_loop();
    }
}

/// One message a call for all that it is told now, and the load where it has changed.
fn send(
    answers: Vec<(u64, Frame)>,
    load: Load,
    calls: &HashMap<u64, mpsc::UnboundedSender<Result<ScoreResponse, Status>>>,
    told: &mut HashMap<u64, Load>,
) {
    let mut messages: HashMap<u64, Vec<ResponseFrame>> = HashMap::new();
    for (call, frame) in answers {
        messages.entry(call).or_default().push(ResponseFrame { frame: Some(frame) });
    }
    for (&call, out) in calls {
        let mut frames = messages.remove(&call).unwrap_or_default();
        if told.get(&call) != Some(&load) {
            told.insert(call, load);
            frames.push(ResponseFrame { frame: Some(Frame::Load(load)) });
        }
        if !frames.is_empty() {
            // A call whose reader has gone is taken out by its Disconnect.
            let _ = out.send(Ok(ScoreResponse { frames }));
        }
    }
}

struct Api {
    config: TimedConfig,
    commands: mpsc::UnboundedSender<Command>,
    calls: AtomicU64,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl RewardService for Api {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse {
            model_id: self.config.model_id.clone(),
            model_revision: "timed".to_owned(),
            vocab_size: self.config.vocab,
            tokenizer_size: self.config.vocab,
            tokenizer_fingerprint: self.config.fingerprint.clone(),
            context_length: u32::MAX,
            methods: vec!["pad".to_owned()],
            references: vec![Reference::None.into(), Reference::Generator.into()],
            normalizations: vec![Normalization::Candidates.into()],
            hidden_size: 1,
            dtype: "f32".to_owned(),
            device: "timed".to_owned(),
            slots: self.config.slots,
            protocol_version: PROTOCOL_VERSION,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            latent_size: 0,
        }))
    }

    type ScoreStream = UnboundedReceiverStream<Result<ScoreResponse, Status>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let (out, answers) = mpsc::unbounded_channel();
        let gone = || Status::unavailable("the timed worker has ended");
        self.commands.send(Command::Connect(call, out)).map_err(|_| gone())?;
        let (commands, stop) = (self.commands.clone(), self.stop.clone());
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    () = stop.cancelled() => break,
                    message = requests.message() => message,
                };
                let Ok(Some(message)) = message else { break };
                if commands.send(Command::Frames(call, message.frames, Instant::now())).is_err() {
                    return;
                }
            }
            // It fails only when the thread has ended, and every call with it.
            let _ = commands.send(Command::Disconnect(call));
        });
        Ok(Response::new(UnboundedReceiverStream::new(answers)))
    }
}
