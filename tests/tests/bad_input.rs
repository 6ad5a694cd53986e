//! What must not work gets a clear status, and nobody else notices. Over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{collections::HashMap, sync::OnceLock, time::Duration};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_proto::{
    generator::v1::{
        GenerateRequest, GuidanceTerm, Resume, Sampling, generator_service_client::GeneratorServiceClient,
    },
    reward::v1::{ChatMessages, Guidance, Prompt, TokenIds, Weights, prompt::Kind},
};
use attune_tests::{Generated, Pair, by_ids, guided};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

const VOCAB: usize = 512;

fn shape() -> Shape {
    Shape { vocab: VOCAB, max_position: 64, ..Shape::tiny(Family::Llama) }
}

/// What an undisturbed request gives, made once.
static EXPECTED: OnceLock<Vec<u32>> = OnceLock::new();

async fn neighbour(client: &mut GeneratorServiceClient<Channel>) {
    let mut request = by_ids(&[1, 2, 3], 8);
    request.guidances = vec![guided(1.0)];
    let ids = Generated::of(client, request).await.unwrap().ids();
    assert_eq!(EXPECTED.get_or_init(|| ids.clone()), &ids);
}

fn sampling(edit: impl FnOnce(&mut Sampling)) -> GenerateRequest {
    let mut request = by_ids(&[1, 2, 3], 4);
    request.sampling.as_mut().map(edit);
    request
}

fn prompt(kind: Option<Kind>) -> GenerateRequest {
    GenerateRequest { prompt: Some(Prompt { kind }), ..by_ids(&[1], 4) }
}

fn guidance(edit: impl FnOnce(&mut GuidanceTerm)) -> GenerateRequest {
    let mut term = guided(1.0);
    edit(&mut term);
    GenerateRequest { guidances: vec![term], ..by_ids(&[1, 2, 3], 4) }
}

fn inner(edit: impl FnOnce(&mut Guidance)) -> GenerateRequest {
    guidance(|term| {
        term.guidance.as_deref_mut().map(edit);
    })
}

fn assert_names(status: &Status, field: &str, about: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{about}: {status:?}");
    let details =
        status.get_details_bad_request().unwrap_or_else(|| panic!("{about}: no details: {status:?}"));
    let fields: Vec<&str> = details.field_violations.iter().map(|v| v.field.as_str()).collect();
    assert!(fields.iter().any(|f| f.starts_with(field)), "{about}: {fields:?} should name {field}");
    assert!(!status.message().is_empty(), "{about}");
}

#[tokio::test]
async fn each_bad_request_names_its_field() {
    let pair = Pair::random(&shape(), (1, 2)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    neighbour(&mut client).await;
    let ids = |ids: Vec<u32>| Some(Kind::TokenIds(TokenIds { ids }));
    let cases = [
        ("no prompt", GenerateRequest { prompt: None, ..by_ids(&[1], 4) }, "prompt"),
        ("no kind of prompt", prompt(None), "prompt"),
        ("no ids", prompt(ids(vec![])), "prompt"),
        ("empty text", prompt(Some(Kind::Text(String::new()))), "prompt"),
        ("no messages", prompt(Some(Kind::Messages(ChatMessages::default()))), "prompt"),
        ("a prompt as long as the context", prompt(ids(vec![1; 64])), "prompt"),
        ("an id outside the vocabulary", prompt(ids(vec![1, VOCAB as u32])), "prompt.token_ids"),
        ("no candidates", sampling(|s| s.candidates = Some(0)), "sampling.candidates"),
        ("too many candidates", sampling(|s| s.candidates = Some(65)), "sampling.candidates"),
        ("a negative temperature", sampling(|s| s.temperature = Some(-0.1)), "sampling.temperature"),
        ("a temperature of NaN", sampling(|s| s.temperature = Some(f32::NAN)), "sampling.temperature"),
        (
            "an infinite temperature",
            sampling(|s| s.temperature = Some(f32::INFINITY)),
            "sampling.temperature",
        ),
        ("a top_p of 0", sampling(|s| s.top_p = Some(0.0)), "sampling.top_p"),
        ("a top_p above 1", sampling(|s| s.top_p = Some(1.01)), "sampling.top_p"),
        ("a min_p above 1", sampling(|s| s.min_p = Some(1.5)), "sampling.min_p"),
        ("no tokens", sampling(|s| s.max_tokens = Some(0)), "sampling.max_tokens"),
        ("a penalty of 0", sampling(|s| s.repetition_penalty = Some(0.0)), "sampling.repetition_penalty"),
        ("an empty stop string", sampling(|s| s.stop = vec![String::new()]), "sampling.stop"),
        (
            "a bias outside the vocabulary",
            sampling(|s| s.logit_bias = HashMap::from([(VOCAB as u32, 1.0)])),
            "sampling.logit_bias",
        ),
        ("a bias of NaN", sampling(|s| s.logit_bias = HashMap::from([(1, f32::NAN)])), "sampling.logit_bias"),
        ("a strength above 10", guidance(|g| g.strength = Some(10.5)), "guidances[0].strength"),
        ("a strength below -10", guidance(|g| g.strength = Some(-10.5)), "guidances[0].strength"),
        ("a strength of NaN", guidance(|g| g.strength = Some(f32::NAN)), "guidances[0].strength"),
        ("a clip of 0", guidance(|g| g.clip = Some(0.0)), "guidances[0].clip"),
        ("a term without guidance", guidance(|g| g.guidance = None), "guidances[0].guidance"),
        (
            "too few weights",
            inner(|g| g.weights = Some(Weights { values: vec![1.0; 3] })),
            "guidances[0].guidance.weights",
        ),
        (
            "weights that are no numbers",
            inner(|g| g.weights = Some(Weights { values: vec![f32::NAN; shape().hidden] })),
            "guidances[0].guidance.weights",
        ),
        (
            "nothing left to resume",
            GenerateRequest {
                resume: Some(Resume { token_ids: vec![5; 4], seed: None }),
                ..by_ids(&[1, 2, 3], 4)
            },
            "resume.token_ids",
        ),
    ];
    for (about, request, field) in cases {
        let status = Generated::of(&mut client, request).await.expect_err(about);
        assert_names(&status, field, about);
        neighbour(&mut client).await;
    }
    // One sentence, however many there are.
    let many = GenerateRequest { guidances: vec![GuidanceTerm::default(); 1 << 20], ..by_ids(&[1], 4) };
    let status = Generated::of(&mut client, many).await.unwrap_err();
    assert_names(&status, "guidances", "a million terms");
    assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 1);
    neighbour(&mut client).await;
    let unknown = inner(|g| g.reward_model = "nobody's".into());
    let status = Generated::of(&mut client, unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let profile = inner(|g| g.profile = Some("mine".into()));
    let status = Generated::of(&mut client, profile).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    neighbour(&mut client).await;
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn candidates_are_bounded_by_a_small_vocabulary() {
    let shape = Shape { vocab: 300, ..shape() };
    let pair = Pair::random(&shape, (3, 4)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let request = sampling(|s| s.candidates = Some(64));
    assert_eq!(Generated::of(&mut client, request).await.unwrap().tokens.len(), 4);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    let limit = |bytes: &mut usize| *bytes = 64 << 10;
    let pair = Pair::random_with(&shape(), (1, 2), |g| limit(&mut g.server.max_message_bytes), |_| ())
        .await
        .unwrap();
    let mut client = pair.client().await.unwrap();
    let request = prompt(Some(Kind::Text("word ".repeat(40_000))));
    let status = Generated::of(&mut client, request).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    neighbour(&mut client).await;
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_request_is_bounded_more_tightly_than_messages_of_the_pair() {
    let pair = Pair::random(&shape(), (1, 2)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let request = prompt(Some(Kind::Text("word ".repeat(6 << 18))));
    let status = Generated::of(&mut client, request).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    neighbour(&mut client).await;
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_with_another_tokenizer_is_refused_and_named() {
    let base = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    use attune_engine::random_checkpoint::{Kind as For, write};
    write(base.path(), &shape(), 1, For::Base).unwrap();
    write(other.path(), &Shape { vocab: 400, ..shape() }, 2, For::PersRm { value_head: false }).unwrap();
    let pair = Pair::start(base.path(), other.path()).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let status = Generated::of(&mut client, guidance(|_| ())).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let fingerprints = status.message().split(|c: char| !c.is_ascii_hexdigit()).filter(|w| w.len() == 64);
    assert_eq!(fingerprints.count(), 2, "both fingerprints are named: {}", status.message());
    // Without guidance the worker does not matter.
    assert_eq!(Generated::of(&mut client, by_ids(&[1, 2], 3)).await.unwrap().tokens.len(), 3);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn guidance_without_a_worker_is_unavailable_and_never_ignored() {
    let base = tempfile::tempdir().unwrap();
    use attune_engine::random_checkpoint::{Kind as For, write};
    write(base.path(), &shape(), 1, For::Base).unwrap();
    let pair = Pair::start_with(
        base.path(),
        base.path(),
        |g| {
            // Nothing listens on the discard port of loopback.
            g.reward = vec!["http://127.0.0.1:9".into()];
            g.reward_loss_seconds = 0.2;
        },
        |_| (),
    )
    .await
    .unwrap();
    let mut client = pair.client().await.unwrap();
    let status = Generated::of(&mut client, guidance(|_| ())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(Generated::of(&mut client, by_ids(&[1, 2], 3)).await.unwrap().tokens.len(), 3);
    let mut asked_beforehand = guidance(|_| ());
    asked_beforehand.on_reward_loss = attune_proto::generator::v1::OnRewardLoss::ContinueUnguided.into();
    let unguided = Generated::of(&mut client, asked_beforehand).await.unwrap();
    assert!(unguided.tokens.iter().all(|t| !t.guided));
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_the_text_and_frees_the_slot() {
    let pair = Pair::random_with(&shape(), (1, 2), |g| g.engine.slots = 1, |_| ()).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let mut late = tonic::Request::new(by_ids(&[1, 2, 3], 60));
    late.set_timeout(Duration::from_nanos(1));
    let status = match client.generate(late).await {
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    neighbour(&mut client).await;
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn more_than_slots_and_queue_is_refused_with_a_time_to_retry() {
    let set =
        |g: &mut attune_generator::GeneratorConfig| (g.engine.slots, g.queue, g.max_tokens) = (1, 1, 4000);
    let pair =
        Pair::random_with(&Shape { max_position: 4096, ..shape() }, (1, 2), set, |_| ()).await.unwrap();
    let client = pair.client().await.unwrap();
    let mut held = Vec::new();
    let mut refused = None;
    // Two fit; a request is counted from the moment it is accepted until its stream ends.
    for _ in 0..3 {
        match client.clone().generate(by_ids(&[1, 2, 3], 4000)).await {
            Ok(stream) => held.push(stream.into_inner()),
            Err(status) => refused = Some(status),
        }
    }
    if let Some(status) = refused {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_details_retry_info().is_some());
    } else {
        panic!("three requests were taken by one slot and one place");
    }
    drop(held);
    pair.stop().await.unwrap();
}
