//! TLS over real sockets, with certificates made here: who is let in, who is not, and what happens to a
//! stream when they change.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use anyhow::Result;
use attune_engine::random_checkpoint::{Family, Shape};
use attune_generator::GeneratorConfig;
use attune_proto::{
    generator::v1::generator_service_client::GeneratorServiceClient,
    reward::v1::{
        DescribeRequest, DescribeResponse, ScoreRequest, ScoreResponse,
        reward_service_client::RewardServiceClient,
        reward_service_server::{RewardService, RewardServiceServer},
    },
};
use attune_reward::RewardConfig;
use attune_service::{
    auth::Door,
    limits::LimitsConfig,
    listener,
    sections::ServerConfig,
    server::Server,
    tls::{ClientTlsConfig, ServerTlsConfig},
};
use attune_tests::{Authority, Generated, Identity, Pair, by_ids, guided, tls};
use futures::{Stream, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers every message of `Score` with an empty one.
struct Echo;

#[tonic::async_trait]
impl RewardService for Echo {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse::default()))
    }

    type ScoreStream = Pin<Box<dyn Stream<Item = Result<ScoreResponse, Status>> + Send>>;

    async fn score(
        &self,
        request: Request<Streaming<ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let answers = request.into_inner().map(|message| message.map(|_| ScoreResponse::default()));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// A server with certificates in a folder; it ends when dropped.
struct Secured {
    folder: tempfile::TempDir,
    authority: Authority,
    ca: PathBuf,
    address: SocketAddr,
    _stop: DropGuard,
}

async fn serve(config: ServerConfig) -> (SocketAddr, DropGuard) {
    config.validate().unwrap();
    let bound = listener::open(&config).await.unwrap();
    let (address, stop) = (bound.address(), CancellationToken::new());
    let server = Server::new(&config, Door::open(None)).add_service(RewardServiceServer::new(Echo));
    tokio::spawn(server.serve(bound, stop.clone()));
    (address, stop.drop_guard())
}

impl Secured {
    /// Clients show a certificate for `generator` or `another`.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("authority").unwrap();
        let ca = authority.write(folder.path(), "ca.pem").unwrap();
        let own = authority.issue(folder.path(), "server", &["127.0.0.1"]).unwrap();
        let config = ServerConfig {
            tls: ServerTlsConfig {
                cert: Some(own.cert),
                key: Some(own.key),
                client_ca: Some(ca.clone()),
                client_names: vec!["another".into(), "generator".into()],
            },
            reload_seconds: 0.02,
            limits: LimitsConfig { silent_seconds: 0.5, ..LimitsConfig::default() },
            ..ServerConfig::default()
        };
        let (address, _stop) = serve(config).await;
        Self { folder, authority, ca, address, _stop }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn describe(&self, ca: &Path, identity: Option<&Identity>) -> Result<()> {
        describe(tls(&format!("https://{}", self.address), ca, identity).await?).await
    }
}

/// In TLS 1.3 a client learns that it is turned away with the first answer.
async fn describe(channel: Channel) -> Result<()> {
    RewardServiceClient::new(channel).describe(DescribeRequest::default()).await?;
    Ok(())
}

#[tokio::test]
async fn those_with_the_right_certificate_are_let_in_and_nobody_else() {
    let server = Secured::start().await;
    let good = server.authority.issue(server.path(), "good", &["generator", "x"]).unwrap();
    server.describe(&server.ca, Some(&good)).await.unwrap();

    let other = Authority::new("authority").unwrap();
    let other_ca = other.write(server.path(), "other.pem").unwrap();
    let strange = other.issue(server.path(), "strange", &["generator"]).unwrap();
    let expired = server.authority.issue_until(server.path(), "expired", &["generator"], 2020).unwrap();
    let named = server.authority.issue(server.path(), "named", &["client", "generator.evil"]).unwrap();
    for (what, identity) in [
        ("none", None),
        ("another CA", Some(&strange)),
        ("expired", Some(&expired)),
        ("a name", Some(&named)),
    ] {
        let refused = server.describe(&server.ca, identity).await;
        assert!(refused.is_err(), "{what}");
    }
    // A server that another vouches for is not spoken to either, nor one of another name.
    let error = server.describe(&other_ca, Some(&good)).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    let elsewhere = format!("https://localhost:{}", server.address.port());
    let error = tls(&elsewhere, &server.ca, Some(&good)).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    // Neither is one who speaks in plain text.
    let plain = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    assert!(describe(plain).await.is_err());
    // And they are still there for those who are let in.
    server.describe(&server.ca, Some(&good)).await.unwrap();
}

#[tokio::test]
async fn certificates_change_while_a_stream_goes_on() {
    let server = Secured::start().await;
    let good = server.authority.issue(server.path(), "good", &["generator"]).unwrap();
    let url = format!("https://{}", server.address);
    let mut client = RewardServiceClient::new(tls(&url, &server.ca, Some(&good)).await.unwrap());
    let (ask, asked) = mpsc::channel(1);
    let mut answers = client.score(ReceiverStream::new(asked)).await.unwrap().into_inner();
    let mut talk = async || {
        ask.send(ScoreRequest::default()).await.unwrap();
        answers.message().await.unwrap().expect("an answer");
    };
    talk().await;

    // A key without its certificate is not used, and harms nobody.
    let new = Authority::new("new").unwrap();
    let later = tempfile::tempdir().unwrap();
    let own = new.issue(later.path(), "server", &["127.0.0.1"]).unwrap();
    std::fs::rename(own.key, server.path().join("server.key")).unwrap();
    talk().await;
    server.describe(&server.ca, Some(&good)).await.unwrap();

    std::fs::rename(own.cert, server.path().join("server.pem")).unwrap();
    let new_ca = new.write(server.path(), "new-ca.pem").unwrap();
    let rotated = async {
        while server.describe(&new_ca, Some(&good)).await.is_err() {
            talk().await;
        }
        talk().await;
    };
    tokio::time::timeout(PATIENCE, rotated).await.expect("the new certificate is shown");
    assert!(server.describe(&server.ca, Some(&good)).await.is_err(), "the old one is gone");

    // The clients' authority changes as well: whom it no longer vouches for is turned away.
    new.write(server.path(), "ca.pem").unwrap();
    let revoked = async {
        while server.describe(&new_ca, Some(&good)).await.is_ok() {
            talk().await;
        }
        talk().await;
    };
    tokio::time::timeout(PATIENCE, revoked).await.expect("the old client is turned away");
    let next = new.issue(server.path(), "next", &["generator"]).unwrap();
    server.describe(&new_ca, Some(&next)).await.unwrap();
}

/// Whether the server ends the connection while the client goes on sending a little at a time.
async fn is_ended(mut stream: TcpStream, drip: &[u8]) {
    let (mut read, mut write) = stream.split();
    let sending = async {
        for byte in drip.iter().cycle() {
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let reading = async {
        let mut answer = [0; 1024];
        while read.read(&mut answer).await.is_ok_and(|n| n > 0) {}
    };
    let ended = async {
        tokio::select! {
            () = sending => {}
            () = reading => {}
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the server ends the connection");
}

#[tokio::test]
async fn slow_clients_lose_their_places_and_hold_up_nobody() {
    let server = Secured::start().await;
    let good = server.authority.issue(server.path(), "good", &["generator"]).unwrap();
    let limits = LimitsConfig {
        connections: 3,
        silent_seconds: 0.5,
        keepalive_seconds: 0.2,
        header_bytes: 4096,
        ..LimitsConfig::default()
    };
    let (plain, _stop) = serve(ServerConfig { limits, ..ServerConfig::default() }).await;
    let connect = async |address: SocketAddr| TcpStream::connect(address).await.unwrap();
    // One begins no handshake, one the preface, one a frame of headers that it never ends.
    let mut headers = connect(plain).await;
    headers.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    headers.write_all(b"\0\x3f\xff\x01\x04\0\0\0\x01").await.unwrap();
    let url = format!("http://{plain}");
    let others = async {
        server.describe(&server.ca, Some(&good)).await.unwrap();
        describe(Channel::from_shared(url).unwrap().connect().await.unwrap()).await.unwrap();
    };
    tokio::join!(
        is_ended(connect(server.address).await, &[0x16]),
        is_ended(connect(plain).await, b"P"),
        is_ended(headers, &[0x40]),
        others,
    );
}

#[tokio::test]
async fn beyond_loopback_it_is_tls_or_insecure() {
    let mut config = ServerConfig { listen: "0.0.0.0:0".parse().unwrap(), ..ServerConfig::default() };
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("server.insecure") && error.contains("server.tls.cert"), "{error}");
    config.insecure = true;
    config.validate().unwrap();
    config.insecure = false;
    config.tls = ServerTlsConfig { cert: Some("c".into()), key: Some("k".into()), ..config.tls };
    config.validate().unwrap();
    let error = listener::open(&config).await.unwrap_err().to_string();
    assert!(error.contains("c: cannot be read"), "{error}");
    // A worker has to know its generators.
    let worker = RewardConfig {
        server: config.clone(),
        engine: attune_service::engine::EngineConfig { model: "m".into(), ..Default::default() },
        ..RewardConfig::default()
    };
    let error = worker.validate().unwrap_err().to_string();
    assert!(error.contains("server.tls.client_names"), "{error}");
}

#[tokio::test]
async fn a_pair_speaks_by_certificates_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let authority = Authority::new("authority").unwrap();
    let ca = authority.write(path, "ca.pem").unwrap();
    let own = |file: &str, name: &str| authority.issue(path, file, &[name]).unwrap();
    let (generator, reward) = (own("generator", "generator"), own("reward", "reward"));
    let impostor = own("impostor", "client");
    let speaks = |config: &mut GeneratorConfig, shows: &Identity| {
        config.reward.iter_mut().for_each(|url| *url = url.replace("http://", "https://"));
        config.reward_tls = ClientTlsConfig {
            ca: Some(ca.clone()),
            cert: Some(shows.cert.clone()),
            key: Some(shows.key.clone()),
            server_name: Some("reward".into()),
        };
    };
    let shape = Shape { max_position: 256, ..Shape::tiny(Family::Llama) };
    let mut pair = Pair::random_with(
        &shape,
        (1, 2),
        |config| {
            speaks(config, &generator);
            let server = authority.issue(path, "door", &["127.0.0.1"]).unwrap();
            config.server.tls =
                ServerTlsConfig { cert: Some(server.cert), key: Some(server.key), ..Default::default() };
        },
        |config| {
            config.server.tls = ServerTlsConfig {
                cert: Some(reward.cert.clone()),
                key: Some(reward.key.clone()),
                client_ca: Some(ca.clone()),
                client_names: vec!["generator".into()],
            };
        },
    )
    .await
    .unwrap();
    let door = tls(&pair.endpoint.replace("http://", "https://"), &ca, None).await.unwrap();
    let mut request = by_ids(&[1, 2, 3], 12);
    request.guidances = vec![guided(1.0)];
    let answer = Generated::of(&mut GeneratorServiceClient::new(door), request.clone()).await.unwrap();
    assert!(answer.tokens.len() == 12 && answer.tokens.iter().all(|t| t.guided));

    // Another generator, whose certificate is for another name, gets no answer from the worker.
    let refused = pair
        .another_generator(|config| {
            speaks(config, &impostor);
            config.reward_loss_seconds = 0.2;
        })
        .await
        .unwrap();
    let mut client = GeneratorServiceClient::connect(refused).await.unwrap();
    let status = Generated::of(&mut client, request.clone()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    // Neither does one that speaks in plain text.
    let plain = pair.another_generator(|config| config.reward_loss_seconds = 0.2).await.unwrap();
    let mut client = GeneratorServiceClient::connect(plain).await.unwrap();
    assert_eq!(Generated::of(&mut client, request).await.unwrap_err().code(), tonic::Code::Unavailable);
    pair.stop().await.unwrap();
}
