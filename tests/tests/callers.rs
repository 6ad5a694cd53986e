//! Who calls: tokens over real sockets, what each owner may have, and what is another owner's.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{path::PathBuf, time::Duration};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_generator::GeneratorConfig;
use attune_proto::generator::v1::{
    DescribeRequest, GenerateRequest, generator_service_client::GeneratorServiceClient,
};
use attune_service::{
    auth::{OwnerLimits, new_token},
    secret::Secret,
};
use attune_tests::{Generated, Pair, Proxy, by_ids, guided};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

const PATIENCE: Duration = Duration::from_secs(20);

/// A pair that asks its callers who they are.
struct Asking {
    pair: Pair,
    tokens: PathBuf,
    alice: Secret,
    bob: Secret,
    folder: tempfile::TempDir,
}

impl Asking {
    async fn start(limits: OwnerLimits, edit: impl FnOnce(&mut GeneratorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        let (alice, bob) = (new_token("alice").unwrap(), new_token("bob").unwrap());
        std::fs::write(&tokens, format!("{}\n{}\n", alice.line, bob.line)).unwrap();
        let shape = Shape { max_position: 512, ..Shape::tiny(Family::Llama) };
        let auth = |config: &mut GeneratorConfig| {
            config.auth.tokens = Some(tokens.clone());
            config.auth.limits = limits;
            config.server.reload_seconds = 0.02;
            edit(config);
        };
        let pair = Pair::random_with(&shape, (1, 2), auth, |_| ()).await.unwrap();
        Self { pair, tokens, alice: alice.token, bob: bob.token, folder }
    }

    async fn client(&self) -> GeneratorServiceClient<Channel> {
        self.pair.client().await.unwrap()
    }

    /// The file is exchanged whole.
    fn rewrite(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.tokens).unwrap();
    }
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// Asks again until the answer is this one.
async fn until(client: &mut GeneratorServiceClient<Channel>, token: &Secret, code: Code) {
    let asking = async {
        loop {
            let answer = client.describe(by(token.expose(), DescribeRequest::default())).await;
            if answer.map_or_else(|status| status.code(), |_| Code::Ok) == code {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("the changed file counts");
}

#[tokio::test]
async fn wrong_missing_and_revoked_tokens_open_nothing() {
    let asking = Asking::start(OwnerLimits::default(), |_| ()).await;
    let mut client = asking.client().await;
    let describe = DescribeRequest::default();
    let alice = asking.alice.expose();
    client.describe(by(alice, describe)).await.unwrap();
    Generated::of(&mut client, by(alice, by_ids(&[1, 2], 3))).await.unwrap();
    let wrong = format!("{}0", &alice[..alice.len() - 1]);
    for (what, request) in [
        ("missing", Request::new(by_ids(&[1, 2], 3))),
        ("wrong", by(if wrong == alice { "x" } else { &wrong }, by_ids(&[1, 2], 3))),
        ("empty", by(" ", by_ids(&[1, 2], 3))),
    ] {
        let status = Generated::of(&mut client, request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{what}");
        assert!(!status.message().contains(&alice[7..]), "{what}");
    }
    assert_eq!(client.describe(describe).await.unwrap_err().code(), Code::Unauthenticated);

    // Health needs no token; reflection does.
    let channel = Channel::from_shared(asking.pair.endpoint.clone()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();

    // A new token beside the old one, then the old one is revoked: a running text goes on.
    let next = new_token("alice").unwrap();
    let mut running = client.generate(by(alice, by_ids(&[1, 2], 400))).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();
    let old = std::fs::read_to_string(&asking.tokens).unwrap();
    asking.rewrite(&format!("{old}{}\n", next.line));
    until(&mut client, &next.token, Code::Ok).await;
    client.describe(by(alice, describe)).await.unwrap();
    asking.rewrite(&next.line);
    until(&mut client, &asking.alice, Code::Unauthenticated).await;
    client.describe(by(next.token.expose(), describe)).await.unwrap();
    let mut finished = false;
    while let Some(message) = running.message().await.unwrap() {
        finished |= message.finish.is_some();
    }
    assert!(finished);
}

fn exhausted(status: &Status) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    status.get_details_retry_info().unwrap().retry_delay.unwrap()
}

#[tokio::test]
async fn an_owner_has_so_many_streams_and_no_more() {
    let limits = OwnerLimits { streams: Some(2), ..OwnerLimits::default() };
    let asking = Asking::start(limits, |_| ()).await;
    let mut client = asking.client().await;
    let (alice, bob) = (asking.alice.expose(), asking.bob.expose());
    let long = || by_ids(&[1, 2], 500);
    let first = client.generate(by(alice, long())).await.unwrap();
    let second = client.generate(by(alice, long())).await.unwrap();
    exhausted(&client.generate(by(alice, long())).await.unwrap_err());
    Generated::of(&mut client, by(bob, by_ids(&[1, 2], 3))).await.unwrap();
    drop(first);
    let again = async { while client.generate(by(alice, by_ids(&[1, 2], 3))).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("a place is free again");
    drop(second);
}

#[tokio::test]
async fn an_owner_has_so_many_tokens_a_minute() {
    let limits = OwnerLimits { tokens_per_minute: Some(60), ..OwnerLimits::default() };
    let asking = Asking::start(limits, |_| ()).await;
    let mut client = asking.client().await;
    let (alice, bob) = (asking.alice.expose(), asking.bob.expose());
    let ids: Vec<u32> = (1..41).collect();
    // 40 of the prompt and 50 of the text: what is begun is ended, and owed.
    let answer = Generated::of(&mut client, by(alice, by_ids(&ids, 50))).await.unwrap();
    assert_eq!(answer.tokens.len(), 50);
    let after = exhausted(&client.generate(by(alice, by_ids(&[1], 1))).await.unwrap_err());
    assert!(after > Duration::from_secs(15) && after < Duration::from_secs(40), "{after:?}");
    Generated::of(&mut client, by(bob, by_ids(&[1, 2], 3))).await.unwrap();
}

fn cached(answer: &Generated) -> u32 {
    answer.finish.usage.unwrap().cached_tokens
}

/// What the worker is told, and what the cache tells: owners do not meet.
#[tokio::test]
async fn the_owner_is_who_calls_and_what_is_cached_is_the_owners() {
    let asking = Asking::start(OwnerLimits::default(), |_| ()).await;
    let mut client = asking.client().await;
    let ids: Vec<u32> = (1..65).collect();
    let request = || GenerateRequest { guidances: vec![guided(1.0)], ..by_ids(&ids, 3) };
    let (alice, bob) = (asking.alice.expose(), asking.bob.expose());
    assert_eq!(cached(&Generated::of(&mut client, by(alice, request())).await.unwrap()), 0);
    assert!(cached(&Generated::of(&mut client, by(alice, request())).await.unwrap()) >= 48);
    // Who says that it is alice is bob all the same.
    let mut lying = by(bob, request());
    attune_service::caller::Caller { owner: "alice".into(), profiles: None }.forward(&mut lying);
    assert_eq!(cached(&Generated::of(&mut client, lying).await.unwrap()), 0);
}

#[tokio::test]
async fn a_worker_hears_whose_text_it_is() {
    use attune_proto::reward::v1::request_frame::Frame;

    let (owners, heard) = std::sync::mpsc::channel();
    let mut asking = Asking::start(OwnerLimits::default(), |_| ()).await;
    let proxy = Proxy::start_listening(
        &asking.pair.workers[0],
        move |frame| {
            if let Some(Frame::Open(open)) = &frame.frame {
                owners.send(open.owner.clone()).unwrap();
            }
        },
        |frame| vec![frame],
    )
    .await
    .unwrap();
    let (tokens, endpoint) = (asking.tokens.clone(), proxy.endpoint.clone());
    let behind = asking
        .pair
        .another_generator(|config| {
            config.reward = vec![endpoint];
            config.auth.tokens = Some(tokens);
        })
        .await
        .unwrap();
    let mut client = GeneratorServiceClient::connect(behind).await.unwrap();
    for (token, owner) in [(&asking.bob, "bob"), (&asking.alice, "alice")] {
        let request = GenerateRequest { guidances: vec![guided(1.0)], ..by_ids(&[1, 2, 3], 3) };
        Generated::of(&mut client, by(token.expose(), request)).await.unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), owner);
    }
}
