//! A worker that computes nothing: each of its forward passes is a wait of fixed length. With it, the
//! reward side is the bottleneck on any machine.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use attune_proto::{
    PROTOCOL_VERSION,
    reward::v1::{
        Context, DescribeRequest, DescribeResponse, Failed, FailureReason, Load, Normalization, Open, Opened,
        Reference, RequestFrame, ResolvedGuidance, ResponseFrame, Rewards, ScoreRequest, ScoreResponse,
        open::By,
        prompt::Kind,
        request_frame,
        response_frame::Frame,
        reward_service_server::{RewardService, RewardServiceServer},
    },
};
use futures::Stream;
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// How long it waits for those it has just answered, so that all its sessions share a pass.
const GRACE: Duration = Duration::from_millis(3);

/// A worker of timed waits. It ends when dropped.
pub struct TimedWorker {
    /// Its address, as a URL.
    pub endpoint: String,
    sessions: Arc<AtomicUsize>,
    server: AbortHandle,
}

impl TimedWorker {
    /// Sessions that are open on it.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Starts one for a base model whose tokenizer has this fingerprint.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(fingerprint: &str, slots: u32, forward: Duration) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let description = DescribeResponse {
            model_id: "timed".into(),
            model_revision: "1".into(),
            tokenizer_fingerprint: fingerprint.to_owned(),
            slots,
            protocol_version: PROTOCOL_VERSION,
            ..DescribeResponse::default()
        };
        let sessions = Arc::new(AtomicUsize::new(0));
        let (description, open) = (Arc::new(description), Arc::clone(&sessions));
        let service = RewardServiceServer::new(Service { description, forward, open });
        let served = Server::builder()
            .tcp_nodelay(true)
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move {
            // It ends by being aborted.
            let _ = served.await;
        });
        Ok(Self { endpoint, sessions, server: server.abort_handle() })
    }
}

impl Drop for TimedWorker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    description: Arc<DescribeResponse>,
    forward: Duration,
    open: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl RewardService for Service {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new((*self.description).clone()))
    }

    type ScoreStream = Pin<Box<dyn Stream<Item = Result<ScoreResponse, Status>> + Send>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let (responses, answers) = mpsc::channel(64);
        let (description, open) = (Arc::clone(&self.description), Arc::clone(&self.open));
        tokio::spawn(work(request.into_inner(), responses, description, self.forward, open));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// A session: whether it has something to read, and what is asked of it.
#[derive(Default)]
struct Session {
    unread: bool,
    asked: Option<(u32, Vec<u32>)>,
}

async fn work(
    mut requests: Streaming<ScoreRequest>,
    responses: mpsc::Sender<Result<ScoreResponse, Status>>,
    description: Arc<DescribeResponse>,
    forward: Duration,
    open: Arc<AtomicUsize>,
) {
    // Messages queue up during a pass, as they do before a real engine.
    let (queue, mut messages) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok(Some(message)) = requests.message().await {
            if queue.send(message.frames).await.is_err() {
                return;
            }
        }
    });
    let mut sessions: BTreeMap<u64, Session> = BTreeMap::new();
    let mut told = None;
    loop {
        let mut frames = Vec::new();
        let busy = sessions.values().any(|s| s.unread);
        if !busy && told == Some(sessions.len()) {
            let Some(message) = messages.recv().await else { return };
            frames.extend(message);
        }
        while let Ok(message) = messages.try_recv() {
            frames.extend(message);
        }
        let mut answers: Vec<Frame> =
            frames.into_iter().filter_map(|frame| handle(&mut sessions, frame, &description)).collect();
        open.store(sessions.len(), Ordering::Relaxed);
        if sessions.values().any(|s| s.unread) {
            tokio::time::sleep(forward).await;
            sessions.values_mut().for_each(|s| s.unread = false);
        }
        for (&session_id, session) in &mut sessions {
            if session.unread {
                continue;
            }
            if let Some((step, ids)) = session.asked.take() {
                let values = ids.iter().map(|id| (id % 7) as f32).collect();
                answers.push(Frame::Rewards(Rewards { session_id, step, values, work_seconds: 0.0 }));
            }
        }
        if told != Some(sessions.len()) {
            told = Some(sessions.len());
            let (sessions, slots) = (sessions.len() as u32, description.slots);
            answers.push(Frame::Load(Load { sessions, slots, ..Load::default() }));
        }
        let answered = answers.iter().any(|a| matches!(a, Frame::Rewards(_)));
        let frames: Vec<ResponseFrame> =
            answers.into_iter().map(|f| ResponseFrame { frame: Some(f) }).collect();
        if !frames.is_empty() && responses.send(Ok(ScoreResponse { frames })).await.is_err() {
            return;
        }
        if answered {
            // Those just answered are about to advance: with them, the next pass is for all.
            tokio::time::sleep(GRACE).await;
        }
    }
}

fn handle(
    sessions: &mut BTreeMap<u64, Session>,
    frame: RequestFrame,
    description: &DescribeResponse,
) -> Option<Frame> {
    match frame.frame? {
        request_frame::Frame::Open(open) => {
            let session_id = open.session_id;
            if sessions.len() >= description.slots as usize {
                let reason = FailureReason::Exhausted.into();
                return Some(Frame::Failed(Failed { session_id, reason, ..Failed::default() }));
            }
            sessions.insert(session_id, Session { unread: true, asked: None });
            Some(Frame::Opened(Opened { session_id, guidance: Some(resolve(open, description)) }))
        }
        request_frame::Frame::Advance(advance) => {
            if let Some(session) = sessions.get_mut(&advance.session_id) {
                session.unread = true;
            }
            None
        }
        request_frame::Frame::Candidates(candidates) => {
            if let Some(session) = sessions.get_mut(&candidates.session_id) {
                session.asked = Some((candidates.step, candidates.token_ids));
            }
            None
        }
        request_frame::Frame::Close(close) => {
            sessions.remove(&close.session_id);
            None
        }
    }
}

fn resolve(open: Open, description: &DescribeResponse) -> ResolvedGuidance {
    if let Some(By::Resolved(resolved)) = open.by {
        return resolved;
    }
    let prompt_token_ids = match open.prompt.and_then(|p| p.kind) {
        Some(Kind::TokenIds(ids)) => ids.ids,
        _ => vec![1],
    };
    ResolvedGuidance {
        reward_model: description.model_id.clone(),
        model_revision: description.model_revision.clone(),
        method: "pad".into(),
        reference: Reference::None.into(),
        normalization: Normalization::Candidates.into(),
        context: Context::AsIs.into(),
        prompt_token_ids,
        ..ResolvedGuidance::default()
    }
}
