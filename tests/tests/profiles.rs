//! `ProfileService` over real sockets: by way of a generator, to workers that share a store.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::time::Duration;

use attune_engine::random_checkpoint::{Family, Shape};
use attune_generator::GeneratorConfig;
use attune_proto::{
    generator::v1::{GenerateRequest, GuidanceTerm, generator_service_client::GeneratorServiceClient},
    profile::v1::{
        DeleteRequest, Feedback, FitRequest, GetRequest, ListRequest, Pair as FeedbackPair, Profile,
        PutRequest, Thumb, feedback, profile_service_client::ProfileServiceClient,
    },
    reward::v1::{Guidance, Prompt, Weights, prompt},
};
use attune_reward::RewardConfig;
use attune_service::{
    auth::{OwnerLimits, new_token},
    caller::Caller,
    secret::Secret,
};
use attune_tests::{Generated, Pair, Postgres, by_ids, say};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

const PATIENCE: Duration = Duration::from_secs(20);

type Profiles = ProfileServiceClient<Channel>;
type Texts = GeneratorServiceClient<Channel>;

fn shape() -> Shape {
    Shape { max_position: 512, ..Shape::tiny(Family::Llama) }
}

/// A pair whose worker keeps its profiles there.
async fn pair(url: &str, edit: impl FnOnce(&mut GeneratorConfig)) -> Pair {
    let url = Secret::new(url);
    Pair::random_with(&shape(), (1, 2), edit, |config| config.profiles.url = Some(url)).await.unwrap()
}

async fn clients(pair: &Pair) -> (Texts, Profiles) {
    let profiles = ProfileServiceClient::connect(pair.endpoint.clone()).await.unwrap();
    let mut clients = (pair.client().await.unwrap(), profiles);
    let list = async {
        // A generator serves before its workers are connected.
        while matches!(clients.1.list(ListRequest::default()).await, Err(status) if status.code() == Code::Unavailable)
        {
        }
    };
    tokio::time::timeout(PATIENCE, list).await.expect("a worker is connected");
    clients
}

/// The same for both stores.
async fn both(test: impl AsyncFn(String)) {
    let folder = tempfile::tempdir().unwrap();
    test(format!("sqlite:{}", folder.path().join("profiles.db").display())).await;
    if let Some(server) = Postgres::start().unwrap() {
        test(server.url()).await;
    }
}

fn text(name: &str, text: &str) -> Profile {
    Profile { name: name.into(), text: Some(text.into()), ..Profile::default() }
}

fn weighted(name: &str, seed: usize) -> Profile {
    let d = shape().hidden;
    let values = (0..d).map(|i| 1.0 + ((i * 7 + seed * 13) % 11) as f32 * 0.2).collect();
    Profile { name: name.into(), weights: Some(Weights { values }), ..Profile::default() }
}

fn put(profile: Profile) -> PutRequest {
    PutRequest { profile: Some(profile), ..PutRequest::default() }
}

fn get(name: &str) -> GetRequest {
    GetRequest { name: name.into(), with_feedback: false }
}

fn guided_by(guidance: Guidance) -> GenerateRequest {
    let term = GuidanceTerm { guidance: Some(guidance.into()), strength: Some(2.0), clip: None };
    GenerateRequest { guidances: vec![term], ..say("How?", 8) }
}

fn by_profile(name: &str) -> GenerateRequest {
    guided_by(Guidance { profile: Some(name.into()), ..Guidance::default() })
}

#[tokio::test]
async fn a_profile_guides_as_its_words_and_numbers_do() {
    both(async |url| {
        let pair = pair(&url, |_| ()).await;
        let (mut texts, mut profiles) = clients(&pair).await;
        let mine = Profile { text: Some("brief".into()), ..weighted("me", 1) };
        let kept = profiles.put(put(mine.clone())).await.unwrap().into_inner().profile.unwrap();
        assert_eq!((kept.revision, kept.kept_feedback), (1, 0));
        assert!(!kept.model_id.is_empty() && !kept.model_revision.is_empty());
        assert!(kept.created_at.is_some() && kept.created_at == kept.updated_at);

        let direct = Guidance { text: mine.text, weights: mine.weights, ..Guidance::default() };
        let direct = Generated::of(&mut texts, guided_by(direct)).await.unwrap();
        let by_name = Generated::of(&mut texts, by_profile("me")).await.unwrap();
        assert_eq!(by_name.tokens, direct.tokens);
        let resolved = &by_name.finish.guidances[0];
        assert_eq!((resolved.profile.as_deref(), resolved.profile_revision), (Some("me"), 1));
        assert_eq!((resolved.text.as_deref(), &resolved.weights), (Some("brief"), &kept.weights));

        // The next session sees a change, and words of the request go before the profile's.
        profiles.put(put(weighted("me", 2))).await.unwrap();
        let changed = Generated::of(&mut texts, by_profile("me")).await.unwrap().finish.guidances.remove(0);
        assert_eq!(
            (changed.profile_revision, changed.text, changed.weights),
            (2, None, weighted("me", 2).weights)
        );
        let own = Guidance { profile: Some("me".into()), text: Some("long".into()), ..Guidance::default() };
        let own = Generated::of(&mut texts, guided_by(own)).await.unwrap().finish.guidances.remove(0);
        assert_eq!((own.text.as_deref(), own.weights), (Some("long"), weighted("me", 2).weights));

        profiles.delete(DeleteRequest { name: "me".into() }).await.unwrap();
        let gone = Generated::of(&mut texts, by_profile("me")).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
        pair.stop().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn every_worker_of_a_store_sees_a_change_at_its_next_session() {
    both(async |url| {
        let (one, other) = (pair(&url, |_| ()).await, pair(&url, |_| ()).await);
        let ((mut texts, _), (_, mut profiles)) = (clients(&one).await, clients(&other).await);
        for revision in 1..4 {
            profiles.put(put(weighted("me", revision))).await.unwrap();
            let answer = Generated::of(&mut texts, by_profile("me")).await.unwrap();
            assert_eq!(answer.finish.guidances[0].profile_revision, revision as u64);
            assert_eq!(answer.finish.guidances[0].weights, weighted("me", revision).weights);
        }
        let stale = PutRequest { expected_revision: Some(1), ..put(text("me", "x")) };
        let stale = profiles.put(stale).await.unwrap_err();
        assert_eq!(stale.code(), Code::Aborted);
        assert!(
            stale.message().contains("revision 3") && stale.message().contains("revision 1"),
            "{stale:?}"
        );
        one.stop().await.unwrap();
        other.stop().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_was_made_for_another_model_is_kept_and_not_used() {
    both(async |url| {
        let pair = pair(&url, |_| ()).await;
        let (mut texts, mut profiles) = clients(&pair).await;
        let here = profiles.put(put(text("here", "brief"))).await.unwrap().into_inner().profile.unwrap();
        let prompt = Some(Prompt { kind: Some(prompt::Kind::Text("How?".into())) });
        let pair_of = FeedbackPair { chosen: "a".into(), rejected: "b".into(), ..FeedbackPair::default() };
        let feedback = vec![
            Feedback { prompt: prompt.clone(), kind: Some(feedback::Kind::Pair(pair_of)) },
            Feedback {
                prompt,
                kind: Some(feedback::Kind::Thumb(Thumb {
                    answer: "c".into(),
                    up: true,
                    base_log_prob: Some(-2.0),
                })),
            },
        ];
        let old = Profile { model_id: "older".into(), model_revision: "f0f0".into(), ..weighted("old", 1) };
        let import = PutRequest { imported: true, feedback: feedback.clone(), ..put(old) };
        let imported = profiles.put(import).await.unwrap().into_inner().profile.unwrap();
        assert_eq!((imported.model_revision.as_str(), imported.kept_feedback), ("f0f0", 2));
        let refused = Generated::of(&mut texts, by_profile("old")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        for fingerprint in ["f0f0", here.model_revision.as_str()] {
            assert!(refused.message().contains(fingerprint), "{refused:?}");
        }
        // Its feedback is there to fit it again; numbers of the request's own need nothing of the profile's.
        let asked = GetRequest { name: "old".into(), with_feedback: true };
        assert_eq!(profiles.get(asked).await.unwrap().into_inner().feedback, feedback);
        assert!(profiles.get(get("old")).await.unwrap().into_inner().feedback.is_empty());
        let weights = weighted("", 3).weights;
        let own = Guidance { profile: Some("old".into()), weights, ..Guidance::default() };
        Generated::of(&mut texts, guided_by(own)).await.unwrap();
        // Words fit every model.
        let words =
            Profile { model_id: "older".into(), model_revision: "f0f0".into(), ..text("words", "brief") };
        profiles.put(PutRequest { imported: true, ..put(words) }).await.unwrap();
        Generated::of(&mut texts, by_profile("words")).await.unwrap();
        pair.stop().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let pair = pair(&format!("sqlite:{}", folder.path().join("p.db").display()), |_| ()).await;
    let (mut texts, mut profiles) = clients(&pair).await;
    let short = Profile { weights: Some(Weights { values: vec![1.0] }), ..text("me", "x") };
    for (sent, field) in [
        (PutRequest::default(), "profile"),
        (put(text("", "x")), "profile.name"),
        (put(text(&"x".repeat(129), "x")), "profile.name"),
        (put(text("me", "")), "profile.text"),
        (put(short), "profile.weights.values"),
        (put(Profile { model_id: "another".into(), ..text("me", "x") }), "reward_model"),
        (PutRequest { feedback: vec![Feedback::default()], ..put(text("me", "x")) }, "feedback"),
        (
            PutRequest { imported: true, feedback: vec![Feedback::default()], ..put(text("me", "x")) },
            "feedback[0].prompt",
        ),
    ] {
        let status = profiles.put(sent).await.unwrap_err();
        let details = status.get_error_details();
        let fields = details.bad_request().map(|b| b.field_violations.as_slice()).unwrap_or_default();
        let named = fields
            .iter()
            .map(|v| v.field.as_str())
            .chain(details.resource_info().map(|r| r.resource_type.as_str()));
        assert!(named.clone().any(|named| named == field), "{field}: {status:?}");
    }
    for (size, token, field) in [(1001, "", "page_size"), (0, "a\nb", "page_token")] {
        let asked = ListRequest { page_size: size, page_token: token.into() };
        let status = profiles.list(asked).await.unwrap_err();
        assert!(status.message().starts_with(field), "{status:?}");
    }
    let status = Generated::of(&mut texts, by_profile("\n")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("guidances[0].guidance.profile"), "{status:?}");
    pair.stop().await.unwrap();
}

fn by<T>(token: &Secret, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {}", token.expose()).parse().unwrap());
    request
}

#[tokio::test]
async fn another_owners_profile_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let (alice, bob) = (new_token("alice").unwrap(), new_token("bob").unwrap());
    std::fs::write(&tokens, format!("{}\n{}\n", alice.line, bob.line)).unwrap();
    let (alice, bob) = (&alice.token, &bob.token);
    let url = format!("sqlite:{}", folder.path().join("p.db").display());
    let pair = pair(&url, |config| {
        config.auth.tokens = Some(tokens);
        config.auth.limits = OwnerLimits { profiles: Some(3), ..OwnerLimits::default() };
    })
    .await;
    let (mut texts, mut profiles) = clients(&pair).await;
    assert_eq!(profiles.get(get("me")).await.unwrap_err().code(), Code::Unauthenticated);
    let connected = async { while profiles.put(by(alice, put(text("me", "brief")))).await.is_err() {} };
    tokio::time::timeout(PATIENCE, connected).await.expect("a worker is connected");

    // Under the same name, and by one who says that he is another.
    let lying = || {
        let mut request = by(bob, get("me"));
        Caller { owner: "alice".into(), profiles: None }.forward(&mut request);
        request
    };
    let not_found = |status: Status| assert_eq!(status.code(), Code::NotFound, "{status:?}");
    not_found(profiles.get(by(bob, get("me"))).await.unwrap_err());
    not_found(profiles.get(lying()).await.unwrap_err());
    not_found(profiles.delete(by(bob, DeleteRequest { name: "me".into() })).await.unwrap_err());
    not_found(Generated::of(&mut texts, by(bob, by_profile("me"))).await.unwrap_err());
    let based_on_hers = PutRequest { expected_revision: Some(1), ..put(text("me", "mine now")) };
    assert_eq!(profiles.put(by(bob, based_on_hers)).await.unwrap_err().code(), Code::Aborted);
    assert!(profiles.list(by(bob, ListRequest::default())).await.unwrap().into_inner().profiles.is_empty());
    Generated::of(&mut texts, by(alice, by_profile("me"))).await.unwrap();

    // Each has so many, and the number is said.
    for name in ["a", "b"] {
        profiles.put(by(alice, put(text(name, "x")))).await.unwrap();
    }
    let full = profiles.put(by(alice, put(text("c", "x")))).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains('3'), "{full:?}");
    profiles.put(by(bob, put(text("me", "his own")))).await.unwrap();
    let page = ListRequest { page_size: 2, page_token: String::new() };
    let first = profiles.list(by(alice, page)).await.unwrap().into_inner();
    let rest = ListRequest { page_size: 2, page_token: first.next_page_token };
    let rest = profiles.list(by(alice, rest)).await.unwrap().into_inner();
    let names: Vec<_> = first.profiles.iter().chain(&rest.profiles).map(|p| p.name.as_str()).collect();
    assert_eq!((names, rest.next_page_token.as_str()), (vec!["a", "b", "me"], ""));
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_worker_nothing_is_kept_and_it_is_said() {
    let pair =
        Pair::random_with(&shape(), (1, 2), |config| config.reward = Vec::new(), |_| ()).await.unwrap();
    let mut profiles = ProfileServiceClient::connect(pair.endpoint.clone()).await.unwrap();
    let status = profiles.put(put(text("me", "x"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("--reward"), "{status:?}");
    let fit = FitRequest { name: "me".into(), ..FitRequest::default() };
    assert_eq!(profiles.fit(fit).await.unwrap_err().code(), Code::Unavailable);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_lost_database_is_noticed_by_those_alone_who_need_it() {
    let Some(mut server) = Postgres::start().unwrap() else { return };
    let url = Secret::new(server.url());
    let keep = |config: &mut RewardConfig| {
        (config.profiles.url, config.profiles.wait_seconds) = (Some(url), 1.0);
    };
    let pair = Pair::random_with(&shape(), (1, 2), |_| (), keep).await.unwrap();
    let (mut texts, mut profiles) = clients(&pair).await;
    profiles.put(put(weighted("me", 1))).await.unwrap();
    // A text that runs goes on; what its profile said is with it.
    let long = GenerateRequest { guidances: by_profile("me").guidances, ..by_ids(&[1, 2], 400) };
    let mut running = texts.generate(long).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();
    server.kill().unwrap();
    let lost = profiles.put(put(text("me", "x"))).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
    assert!(!lost.message().contains("SELECT") && !lost.message().contains("/tmp"), "{lost:?}");
    let lost = Generated::of(&mut texts, by_profile("me")).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
    let own = Guidance { text: Some("brief".into()), ..Guidance::default() };
    Generated::of(&mut texts, guided_by(own)).await.unwrap();
    let mut finished = false;
    while let Some(message) = running.message().await.unwrap() {
        finished |= message.finish.is_some();
    }
    assert!(finished);
    server.restart().unwrap();
    let answer = Generated::of(&mut texts, by_profile("me")).await.unwrap();
    assert_eq!(answer.finish.guidances[0].profile_revision, 1);
    pair.stop().await.unwrap();
}
