//! A worker over a real socket, checkpoints to run it on, and a call to talk through.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::{collections::VecDeque, net::SocketAddr, path::Path, time::Duration};

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_proto::reward::v1::{
    Advance, Candidates, Close, DescribeRequest, DescribeResponse, Failed, FailureReason, Guidance, Load,
    Open, Opened, Prompt, RequestFrame, ResolvedGuidance, Rewards, ScoreRequest, ScoreResponse, TokenIds,
    Weights, open::By, prompt, request_frame, response_frame::Frame,
    reward_service_client::RewardServiceClient,
};
use attune_reward::{RewardConfig, Worker};
use attune_service::server::Drain;
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

/// Nothing in these tests takes this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a checkpoint folder holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checkpoint {
    pub value_head: bool,
    pub reference: bool,
    pub weight_head: bool,
}

pub fn shape() -> Shape {
    Shape::tiny(Family::Llama)
}

/// The number of features of [`shape`].
pub const D: usize = 64;

pub fn write(checkpoint: Checkpoint) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let kind = Kind::PersRm { value_head: checkpoint.value_head };
    random_checkpoint::write(path, &shape(), 1, kind).unwrap();
    let mut settings = vec![];
    if checkpoint.reference {
        random_checkpoint::write(&path.join("before"), &shape(), 2, Kind::Base).unwrap();
        settings.push(r#""reference_model": "before""#);
    }
    if checkpoint.weight_head {
        weight_head(path);
        settings.push(r#""weights": "head""#);
    }
    if !settings.is_empty() {
        std::fs::write(path.join("attune.json"), format!("{{{}}}", settings.join(", "))).unwrap();
    }
    folder
}

fn weight_head(path: &Path) {
    let bytes = |n: usize, scale: f32| -> Vec<u8> {
        (0..n).flat_map(|i| (scale * ((i * 37 % 101) as f32 - 50.0)).to_le_bytes()).collect()
    };
    let (weight, bias) = (bytes(D * D, 0.002), bytes(D, 0.01));
    let tensors = [
        ("weight", TensorView::new(Dtype::F32, vec![D, D], &weight).unwrap()),
        ("bias", TensorView::new(Dtype::F32, vec![D], &bias).unwrap()),
    ];
    safetensors::serialize_to_file(tensors, None, &path.join("weight_head.safetensors")).unwrap();
}

pub fn config(folder: &TempDir) -> RewardConfig {
    let mut config = RewardConfig::default();
    config.engine.model = folder.path().to_str().unwrap().to_owned();
    config.engine.model_id = Some("taste".to_owned());
    config.engine.threads = 1;
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config
}

/// A running worker; it stops when dropped.
pub struct Running {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<anyhow::Result<Drain>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub async fn start(config: RewardConfig) -> Running {
    let worker = Worker::start(config).await.unwrap();
    let shutdown = CancellationToken::new();
    Running {
        address: worker.address(),
        shutdown: shutdown.clone(),
        served: tokio::spawn(worker.serve(shutdown)),
    }
}

impl Running {
    pub async fn client(&self) -> RewardServiceClient<Channel> {
        RewardServiceClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    pub async fn describe(&self) -> DescribeResponse {
        self.client().await.describe(DescribeRequest::default()).await.unwrap().into_inner()
    }

    pub async fn call(&self) -> Call {
        let (sender, requests) = mpsc::channel(64);
        let response = self.client().await.score(ReceiverStream::new(requests)).await.unwrap();
        Call {
            requests: Some(sender),
            responses: response.into_inner(),
            frames: VecDeque::new(),
            loads: vec![],
        }
    }
}

/// A Score call.
pub struct Call {
    pub requests: Option<mpsc::Sender<ScoreRequest>>,
    pub responses: Streaming<ScoreResponse>,
    frames: VecDeque<Frame>,
    pub loads: Vec<Load>,
}

impl Call {
    pub async fn send(&self, frames: impl IntoIterator<Item = request_frame::Frame>) {
        let frames = frames.into_iter().map(|f| RequestFrame { frame: Some(f) }).collect();
        self.requests.as_ref().unwrap().send(ScoreRequest { frames }).await.unwrap();
    }

    /// The next message, or how the call ended.
    pub async fn message(&mut self) -> Result<Option<ScoreResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an answer in time")
    }

    /// Reads one more message; loads go to `loads`.
    async fn read(&mut self) {
        let message = self.message().await.unwrap().expect("the call goes on");
        for frame in message.frames.into_iter().filter_map(|f| f.frame) {
            match frame {
                Frame::Load(load) => self.loads.push(load),
                frame => self.frames.push_back(frame),
            }
        }
    }

    /// The next frame other than `Load`.
    pub async fn next(&mut self) -> Frame {
        loop {
            match self.frames.pop_front() {
                Some(frame) => return frame,
                None => self.read().await,
            }
        }
    }

    /// Waits until the worker reports this many sessions.
    pub async fn sessions(&mut self, count: u32) {
        while self.loads.last().is_none_or(|l| l.sessions != count) {
            self.read().await;
        }
    }

    pub async fn opened(&mut self) -> Opened {
        match self.next().await {
            Frame::Opened(opened) => opened,
            other => panic!("{other:?}"),
        }
    }

    pub async fn rewards(&mut self) -> Rewards {
        match self.next().await {
            Frame::Rewards(rewards) => rewards,
            other => panic!("{other:?}"),
        }
    }

    pub async fn failed(&mut self) -> Failed {
        match self.next().await {
            Frame::Failed(failed) => failed,
            other => panic!("{other:?}"),
        }
    }

    /// Opens a session and gives what it was resolved to.
    pub async fn open(&mut self, session: u64, prompt: Prompt, guidance: Guidance) -> ResolvedGuidance {
        self.send([open(session, prompt, guidance)]).await;
        self.opened().await.guidance.unwrap()
    }

    /// Asks for the rewards of a step.
    pub async fn ask(&mut self, session: u64, step: u32, ids: &[u32]) -> Vec<f32> {
        self.send([candidates(session, step, ids)]).await;
        let rewards = self.rewards().await;
        assert_eq!((rewards.session_id, rewards.step), (session, step));
        assert!(rewards.work_seconds >= 0.0 && rewards.work_seconds.is_finite());
        rewards.values
    }

    /// Sends a frame and gives the failure that it earns.
    pub async fn refused(&mut self, frame: request_frame::Frame) -> (FailureReason, String) {
        self.send([frame]).await;
        let failed = self.failed().await;
        assert!(!failed.message.is_empty());
        (failed.reason(), failed.field)
    }
}

pub fn ids(ids: &[u32]) -> Prompt {
    Prompt { kind: Some(prompt::Kind::TokenIds(TokenIds { ids: ids.to_vec() })) }
}

pub fn text(text: &str) -> Prompt {
    Prompt { kind: Some(prompt::Kind::Text(text.to_owned())) }
}

pub fn weights(values: Vec<f32>) -> Guidance {
    Guidance { weights: Some(Weights { values }), ..Default::default() }
}

pub fn open(session_id: u64, prompt: Prompt, guidance: Guidance) -> request_frame::Frame {
    request_frame::Frame::Open(Open {
        session_id,
        owner: "local".to_owned(),
        prompt: Some(prompt),
        generated_tokens: vec![],
        by: Some(By::Guidance(guidance)),
        ..Open::default()
    })
}

pub fn reopen(session_id: u64, generated: &[u32], resolved: ResolvedGuidance) -> request_frame::Frame {
    request_frame::Frame::Open(Open {
        session_id,
        owner: "local".to_owned(),
        prompt: None,
        generated_tokens: generated.to_vec(),
        by: Some(By::Resolved(resolved)),
        ..Open::default()
    })
}

pub fn advance(session_id: u64, step: u32, token: u32) -> request_frame::Frame {
    request_frame::Frame::Advance(Advance { session_id, step, token })
}

pub fn candidates(session_id: u64, step: u32, ids: &[u32]) -> request_frame::Frame {
    request_frame::Frame::Candidates(Candidates { session_id, step, token_ids: ids.to_vec() })
}

pub fn close(session_id: u64) -> request_frame::Frame {
    request_frame::Frame::Close(Close { session_id })
}
