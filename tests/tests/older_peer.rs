//! A session recorded between a generator and a worker of the last release, played back to today's: the
//! old generator's bytes to the worker, and the old worker's to the generator.
//!
//! After a release the recording is made anew: `cargo test --workspace --test older_peer -- --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_proto::{
    generator::v1::GenerateRequest,
    reward::v1::{
        DescribeRequest, DescribeResponse, RequestFrame, ResponseFrame, ScoreRequest, ScoreResponse,
        response_frame::Frame,
        reward_service_client::RewardServiceClient,
        reward_service_server::{RewardService, RewardServiceServer},
    },
};
use attune_tests::{Generated, Pair, Proxy, by_ids, guided, workspace_root};
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// The bytes of one session, as hexadecimal text.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Recording {
    /// The release that both sides were of.
    release: String,
    /// `DescribeResponse`.
    description: String,
    /// Frames in the order in which they passed.
    frames: Vec<Recorded>,
    /// What the text came to.
    tokens: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Recorded {
    /// `RequestFrame`.
    ToWorker(String),
    /// `ResponseFrame`.
    ToGenerator(String),
}

fn path() -> PathBuf {
    workspace_root().join("tests/vectors/older_peer.json")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn recording() -> Recording {
    serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap()
}

fn shape() -> Shape {
    Shape { max_position: 64, ..Shape::tiny(Family::Llama) }
}

fn request() -> GenerateRequest {
    GenerateRequest { guidances: vec![guided(1.5)], ..by_ids(&[1, 2, 3], 8) }
}

#[tokio::test]
#[ignore = "writes the recording"]
async fn record() {
    let frames: Arc<Mutex<Vec<Recorded>>> = Arc::default();
    let inner = Pair::random(&shape(), (21, 22)).await.unwrap();
    let description = {
        let mut client = RewardServiceClient::connect(inner.workers[0].clone()).await.unwrap();
        client.describe(DescribeRequest { tokenizer_size: 0 }).await.unwrap().into_inner()
    };
    let (heard, said) = (Arc::clone(&frames), Arc::clone(&frames));
    let proxy = Proxy::start_listening(
        &inner.workers[0],
        move |frame| heard.lock().unwrap().push(Recorded::ToWorker(hex(&frame.encode_to_vec()))),
        move |frame| {
            let bytes = ResponseFrame { frame: Some(frame.clone()) }.encode_to_vec();
            said.lock().unwrap().push(Recorded::ToGenerator(hex(&bytes)));
            vec![frame]
        },
    )
    .await
    .unwrap();
    let pair = Pair::random_with(&shape(), (21, 22), |g| g.reward = vec![proxy.endpoint.clone()], |_| ())
        .await
        .unwrap();
    let answer = Generated::of(&mut pair.client().await.unwrap(), request()).await.unwrap();
    let recording = Recording {
        release: env!("CARGO_PKG_VERSION").into(),
        description: hex(&description.encode_to_vec()),
        frames: frames.lock().unwrap().clone(),
        tokens: answer.ids(),
    };
    std::fs::write(path(), serde_json::to_string_pretty(&recording).unwrap() + "\n").unwrap();
    pair.stop().await.unwrap();
    inner.stop().await.unwrap();
}

#[tokio::test]
async fn todays_worker_understands_the_last_releases_generator() {
    let recording = recording();
    let pair = Pair::random(&shape(), (21, 22)).await.unwrap();
    let mut client = RewardServiceClient::connect(pair.workers[0].clone()).await.unwrap();
    let description = client.describe(DescribeRequest { tokenizer_size: 0 }).await.unwrap().into_inner();
    let old = DescribeResponse::decode(&bytes(&recording.description)[..]).unwrap();
    assert_eq!(
        (description.model_revision, description.tokenizer_fingerprint),
        (old.model_revision, old.tokenizer_fingerprint)
    );
    let (requests, outbound) = mpsc::channel(16);
    let mut responses = client.score(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    let mut answered = Vec::new();
    for frame in &recording.frames {
        match frame {
            Recorded::ToWorker(frame) => {
                let frame = RequestFrame::decode(&bytes(frame)[..]).unwrap();
                requests.send(ScoreRequest { frames: vec![frame] }).await.unwrap();
            }
            Recorded::ToGenerator(frame) => {
                let frame = ResponseFrame::decode(&bytes(frame)[..]).unwrap().frame.unwrap();
                if matches!(frame, Frame::Load(_)) {
                    continue;
                }
                while answered.is_empty() {
                    let message =
                        tokio::time::timeout(Duration::from_secs(30), responses.message()).await.unwrap();
                    let frames = message.unwrap().unwrap().frames.into_iter().filter_map(|f| f.frame);
                    answered.extend(frames.filter(|f| !matches!(f, Frame::Load(_))));
                }
                match (frame, answered.remove(0)) {
                    (Frame::Opened(old), Frame::Opened(new)) => assert_eq!(old, new),
                    (Frame::Rewards(old), Frame::Rewards(new)) => {
                        assert_eq!((old.session_id, old.step), (new.session_id, new.step));
                        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
                        assert!(
                            old.values.len() == new.values.len()
                                && old.values.iter().zip(&new.values).all(near)
                        );
                    }
                    (old, new) => panic!("{old:?} was answered, and now {new:?}"),
                }
            }
        }
    }
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn todays_generator_understands_the_last_releases_worker() {
    let recording = Arc::new(recording());
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = RewardServiceServer::new(OldWorker(Arc::clone(&recording)));
    let incoming = TcpListenerStream::new(listener);
    let server = tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    let pair = Pair::random_with(&shape(), (21, 22), |g| g.reward = vec![endpoint], |_| ()).await.unwrap();
    let answer = Generated::of(&mut pair.client().await.unwrap(), request()).await.unwrap();
    assert_eq!(answer.ids(), recording.tokens);
    assert!(answer.tokens.iter().all(|t| t.guided));
    pair.stop().await.unwrap();
    server.abort();
}

/// Says what the recorded worker said, each frame once it has heard as much as that one had.
struct OldWorker(Arc<Recording>);

#[tonic::async_trait]
impl RewardService for OldWorker {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse::decode(&bytes(&self.0.description)[..]).unwrap()))
    }

    type ScoreStream = Pin<Box<dyn Stream<Item = Result<ScoreResponse, Status>> + Send>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let (responses, outbound) = mpsc::channel(64);
        let mut requests = request.into_inner();
        let recording = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut heard = 0;
            for recorded in &recording.frames {
                match recorded {
                    Recorded::ToWorker(_) if heard > 0 => heard -= 1,
                    Recorded::ToWorker(_) => loop {
                        let Ok(Some(message)) = requests.message().await else { return };
                        if !message.frames.is_empty() {
                            heard = message.frames.len() - 1;
                            break;
                        }
                    },
                    Recorded::ToGenerator(frame) => {
                        let frame = ResponseFrame::decode(&bytes(frame)[..]).unwrap();
                        if responses.send(Ok(ScoreResponse { frames: vec![frame] })).await.is_err() {
                            return;
                        }
                    }
                }
            }
            // It stays until the generator goes.
            while let Ok(Some(_)) = requests.message().await {}
        });
        Ok(Response::new(ReceiverStream::new(outbound).boxed()))
    }
}
