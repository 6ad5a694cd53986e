//! Frames that do not fit end their own session, with a reason and a field, and nobody else's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use attune_proto::reward::v1::{
    ChatMessages, Context, FailureReason, Guidance, Open, Prompt, Reference, ResolvedGuidance, ScoreRequest,
    Weights, open::By, prompt, request_frame, response_frame::Frame,
};
use common::*;
use tonic::Code;

const PROMPT: [u32; 3] = [1, 2, 3];

fn open_by(prompt: Option<Prompt>, by: Option<By>) -> request_frame::Frame {
    request_frame::Frame::Open(Open { session_id: 5, prompt, by, ..Default::default() })
}

fn method(name: &str, reference: Reference, text: Option<&str>) -> Guidance {
    Guidance {
        method: name.into(),
        reference: reference.into(),
        text: text.map(str::to_owned),
        ..Guidance::default()
    }
}

#[tokio::test]
async fn a_frame_that_does_not_fit_ends_its_own_session_alone() {
    use FailureReason::{Invalid, NotFound, OutOfOrder, Precondition, UnknownSession};
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    let resolved = call.open(1, ids(&PROMPT), Guidance::default()).await;
    let before = call.ask(1, 0, &[4, 5, 6]).await;

    let guided = |guidance: Guidance| open(5, ids(&PROMPT), guidance);
    let again = |edit: fn(&mut ResolvedGuidance)| {
        let mut resolved = resolved.clone();
        edit(&mut resolved);
        reopen(5, &[], resolved)
    };
    let cases = [
        (candidates(5, 0, &[1]), UnknownSession, ""),
        (advance(5, 0, 1), UnknownSession, ""),
        (open(0, ids(&PROMPT), Guidance::default()), Invalid, "session_id"),
        (open_by(Some(ids(&PROMPT)), None), Invalid, ""),
        (open_by(None, Some(By::Guidance(Guidance::default()))), Invalid, "prompt"),
        (open_by(Some(Prompt { kind: None }), Some(By::Guidance(Guidance::default()))), Invalid, "prompt"),
        (open(5, ids(&[]), Guidance::default()), Invalid, "prompt"),
        (open(5, text(""), Guidance::default()), Invalid, "prompt"),
        (
            open(
                5,
                Prompt { kind: Some(prompt::Kind::Messages(ChatMessages::default())) },
                Guidance::default(),
            ),
            Invalid,
            "prompt",
        ),
        (open(5, ids(&[512]), Guidance::default()), Invalid, "prompt"),
        (open(5, ids(&[1; 513]), Guidance::default()), Invalid, "prompt"),
        (guided(weights(vec![1.0; D - 1])), Invalid, "weights.values"),
        (guided(weights(vec![f32::NAN; D])), Invalid, "weights.values"),
        (guided(Guidance { method: "magic".into(), ..Default::default() }), NotFound, "method"),
        (guided(method("genarm", Reference::Generator, None)), Invalid, "reference"),
        (guided(method("linear-alignment", Reference::Unspecified, None)), Invalid, "text"),
        (guided(method("linear-alignment", Reference::None, Some("brief"))), Invalid, "reference"),
        (guided(method("experts", Reference::Unspecified, Some("brief"))), Invalid, "text"),
        (guided(Guidance { method: "genarm".into(), ..weights(vec![1.0; D]) }), Invalid, "weights"),
        (guided(Guidance { reward_model: "other".into(), ..Default::default() }), NotFound, "reward_model"),
        (guided(Guidance { profile: Some("me".into()), ..Default::default() }), Precondition, "profile"),
        (
            guided(Guidance { reference: Reference::Model.into(), ..Default::default() }),
            Precondition,
            "reference",
        ),
        (guided(Guidance { reference: 77, ..Default::default() }), Invalid, "reference"),
        (guided(Guidance { normalization: 77, ..Default::default() }), Invalid, "normalization"),
        (guided(Guidance { context: 77, ..Default::default() }), Invalid, "context"),
        (guided(Guidance { text: Some("brief".into()), ..Default::default() }), Invalid, "context"),
        (
            guided(Guidance {
                text: Some("brief".into()),
                context: Context::Template.into(),
                ..Default::default()
            }),
            Invalid,
            "context",
        ),
        (reopen(5, &[512], resolved.clone()), Invalid, "generated_tokens"),
        (reopen(5, &[1; 600], resolved.clone()), Invalid, "generated_tokens"),
        (reopen(5, &[1; 510], resolved.clone()), Invalid, "prompt"),
        (again(|r| r.prompt_token_ids.clear()), Invalid, "prompt_token_ids"),
        (again(|r| r.prompt_token_ids[0] = 9999), Invalid, "prompt"),
        (again(|r| r.weights = Some(Weights { values: vec![1.0] })), Invalid, "weights.values"),
        (again(|r| r.model_revision = "else".into()), Precondition, "model_revision"),
        (again(|r| r.reward_model = "else".into()), NotFound, "reward_model"),
        (again(|r| r.reference = 0), Invalid, "reference"),
    ];
    for (i, (frame, reason, field)) in cases.into_iter().enumerate() {
        assert_eq!(call.refused(frame).await, (reason, field.to_owned()), "case {i}");
    }

    // Frames that an open session's step does not allow.
    let steps: [(&[request_frame::Frame], FailureReason); 8] = [
        (&[candidates(9, 1, &[1])], OutOfOrder),
        (&[advance(9, 1, 1)], OutOfOrder),
        (&[advance(9, 0, 1), candidates(9, 0, &[1])], OutOfOrder),
        (&[candidates(9, 0, &[1]), candidates(9, 0, &[1])], OutOfOrder),
        (&[candidates(9, 0, &[])], Invalid),
        (&[candidates(9, 0, &[1; 65])], Invalid),
        (&[candidates(9, 0, &[512])], Invalid),
        (&[advance(9, 0, 512)], Invalid),
    ];
    for (frames, reason) in steps {
        call.open(9, ids(&PROMPT), Guidance::default()).await;
        call.send(frames.to_vec()).await;
        assert_eq!(call.failed().await.reason(), reason, "{frames:?}");
        assert_eq!(call.refused(advance(9, 0, 1)).await.0, UnknownSession, "it is gone");
    }
    // Two Opens of one id: the session ends.
    call.open(9, ids(&PROMPT), Guidance::default()).await;
    assert_eq!(call.refused(open(9, ids(&PROMPT), Guidance::default())).await.0, OutOfOrder);
    assert_eq!(call.refused(candidates(9, 0, &[1])).await.0, UnknownSession);
    // Closing what is not open is no failure.
    call.send([close(9), close(77)]).await;

    // And the bystander goes on as if nothing had been.
    call.send([reopen(30, &[], resolved)]).await;
    call.opened().await;
    assert_eq!(call.ask(30, 0, &[4, 5, 6]).await, before);
    call.send([advance(1, 0, 4)]).await;
    call.ask(1, 1, &[4, 5, 6]).await;
}

#[tokio::test]
async fn a_full_context_ends_the_session() {
    let folder = write(Checkpoint::default());
    let mut config = config(&folder);
    config.engine.context = Some(5);
    let running = start(config).await;
    assert_eq!(running.describe().await.context_length, 5);
    let mut call = running.call().await;
    call.open(1, ids(&[1, 2, 3]), Guidance::default()).await;
    call.send([advance(1, 0, 1), advance(1, 1, 1)]).await;
    call.ask(1, 2, &[1, 2]).await;
    assert_eq!(call.refused(advance(1, 2, 1)).await.0, FailureReason::Invalid);
}

#[tokio::test]
async fn weights_that_overflow_fail_their_session_alone() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    call.open(1, ids(&PROMPT), weights(vec![f32::MAX; D])).await;
    call.open(2, ids(&PROMPT), weights(vec![1.0; D])).await;
    call.send([candidates(1, 0, &[1, 2]), candidates(2, 0, &[1, 2])]).await;
    let (mut failed, mut rewards) = (0, 0);
    for _ in 0..2 {
        match call.next().await {
            Frame::Failed(f) => {
                assert_eq!(
                    (f.session_id, f.reason(), f.field.as_str()),
                    (1, FailureReason::Invalid, "weights.values")
                );
                failed += 1;
            }
            Frame::Rewards(r) => {
                assert_eq!(r.session_id, 2);
                rewards += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((failed, rewards), (1, 1));
}

#[tokio::test]
async fn a_message_over_the_limit_ends_its_call_alone() {
    let folder = write(Checkpoint::default());
    let mut config = config(&folder);
    config.server.max_message_bytes = 64 << 10;
    let running = start(config).await;
    let mut good = running.call().await;
    good.open(1, ids(&PROMPT), Guidance::default()).await;
    let mut bad = running.call().await;
    bad.open(1, ids(&PROMPT), Guidance::default()).await;
    bad.send([open(2, text(&"a".repeat(70 << 10)), Guidance::default())]).await;
    let status = loop {
        match bad.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the call must end with a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("65536"), "{status:?}");
    good.sessions(1).await;
    good.ask(1, 0, &[1, 2]).await;
}

#[tokio::test]
async fn frames_that_are_unknown_or_empty_are_ignored() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    let requests = call.requests.as_ref().unwrap();
    requests.send(ScoreRequest { frames: vec![] }).await.unwrap();
    requests.send(ScoreRequest { frames: vec![Default::default()] }).await.unwrap();
    call.open(1, ids(&PROMPT), Guidance::default()).await;
}
