//! The server over a real socket: health, reflection, the admin port, and a drain that ends.

#![allow(clippy::unwrap_used)]

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use attune_proto::reward::v1::{
    DescribeRequest, DescribeResponse, ScoreRequest, ScoreResponse,
    reward_service_client::RewardServiceClient,
    reward_service_server::{RewardService, RewardServiceServer},
};
use attune_service::{
    admin::Admin,
    auth::Door,
    listener,
    sections::ServerConfig,
    server::{Drain, Health, ServeError, Server},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// Answers `Score` with a stream that never ends.
struct Endless;

#[tonic::async_trait]
impl RewardService for Endless {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse { model_id: "endless".into(), ..Default::default() }))
    }

    type ScoreStream = Pin<Box<dyn Stream<Item = Result<ScoreResponse, Status>> + Send>>;

    async fn score(
        &self,
        _: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let first = stream::iter([Ok(ScoreResponse::default())]);
        Ok(Response::new(Box::pin(first.chain(stream::pending()))))
    }
}

struct Running {
    url: String,
    health: Health,
    shutdown: CancellationToken,
    task: JoinHandle<Result<Drain, ServeError>>,
}

async fn start(drain_seconds: f64) -> Running {
    let config = ServerConfig { drain_seconds, ..ServerConfig::default() };
    let bound = listener::bind(config.listen).await.unwrap();
    let url = format!("http://{}", bound.address());
    let shutdown = CancellationToken::new();
    let server = Server::new(&config, Door::open(None)).add_service(RewardServiceServer::new(Endless));
    let health = server.health();
    let task = tokio::spawn(server.serve(bound, shutdown.clone()));
    Running { url, health, shutdown, task }
}

async fn channel(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

async fn check(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let running = start(1.0).await;
    let channel = channel(&running.url).await;
    assert_eq!(check(&channel, "attune.reward.v1.RewardService").await, ServingStatus::NotServing);
    running.health.set_serving(true).await;
    assert_eq!(check(&channel, "attune.reward.v1.RewardService").await, ServingStatus::Serving);
    assert_eq!(check(&channel, "").await, ServingStatus::Serving);

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    names.sort();
    assert!(names.contains(&"attune.reward.v1.RewardService".to_owned()), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("generator")), "{names:?}");
    drop(answers);
    running.shutdown.cancel();
    assert_eq!(running.task.await.unwrap().unwrap(), Drain::Complete);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_with_an_open_stream() {
    let running = start(0.3).await;
    let mut client = RewardServiceClient::new(channel(&running.url).await);
    let mut stream = client.score(stream::pending()).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    let asked = Instant::now();
    running.shutdown.cancel();
    let drained = tokio::time::timeout(Duration::from_secs(5), running.task).await.unwrap();
    assert_eq!(drained.unwrap().unwrap(), Drain::DeadlinePassed);
    assert!(asked.elapsed() >= Duration::from_millis(290));
    assert!(!running.health.is_serving());
    // The stream was cut off, not forgotten.
    let end = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.unwrap();
    assert!(end.is_none_or(|frame| frame.is_err()));
}

#[tokio::test]
async fn who_watches_hears_of_the_end_and_holds_up_nobody() {
    let running = start(60.0).await;
    running.health.set_serving(true).await;
    let mut health = HealthClient::new(channel(&running.url).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    running.health.set_serving(false).await;
    running.shutdown.cancel();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none());
    let drained = tokio::time::timeout(Duration::from_secs(20), running.task).await.unwrap();
    assert_eq!(drained.unwrap().unwrap(), Drain::Complete);
}

#[tokio::test]
async fn the_admin_port_answers_probes_and_grpc_health() {
    let running = start(1.0).await;
    let bound = listener::bind(ServerConfig::default().listen).await.unwrap();
    let address = bound.address();
    let admin = Admin::new(running.health.clone(), || "attune_up 1\n".to_owned());
    let stop = CancellationToken::new();
    let task = tokio::spawn(admin.serve(bound, stop.clone()));
    assert!(http_get(address, "/live").await.starts_with("HTTP/1.1 200"));
    assert!(http_get(address, "/ready").await.starts_with("HTTP/1.1 503"));
    running.health.set_serving(true).await;
    assert!(http_get(address, "/ready").await.starts_with("HTTP/1.1 200"));
    assert!(http_get(address, "/metrics").await.ends_with("attune_up 1\n"));
    assert!(http_get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
    assert_eq!(check(&channel(&format!("http://{address}")).await, "").await, ServingStatus::Serving);
    stop.cancel();
    assert!(tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap().is_ok());
    running.shutdown.cancel();
    running.task.await.unwrap().unwrap();
}

async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_taken_address_is_an_error_that_names_it() {
    let bound = listener::bind(ServerConfig::default().listen).await.unwrap();
    let text = listener::bind(bound.address()).await.unwrap_err().to_string();
    assert!(text.contains(&bound.address().to_string()), "{text}");
}
