//! Slots, cache memory, calls that end, and the end of the worker itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use attune_engine::SharedPrefix;
use attune_proto::{
    profile::v1::{GetRequest, profile_service_client::ProfileServiceClient},
    reward::v1::{
        ChatMessage, ChatMessages, DescribeRequest, FailureReason, Guidance, Normalization, Open, Prompt,
        Reference, RequestFrame, ScoreRequest, prompt, request_frame, response_frame::Frame,
    },
};
use attune_service::server::Drain;
use common::*;
use tonic::Code;

const PROMPT: [u32; 3] = [1, 2, 3];

#[tokio::test]
async fn the_worker_describes_itself() {
    let folder = write(Checkpoint { reference: true, ..Default::default() });
    let mut config = config(&folder);
    config.engine.slots = 3;
    let running = start(config).await;
    let all = running.describe().await;
    assert_eq!((all.model_id.as_str(), all.vocab_size, all.hidden_size), ("taste", 512, D as u32));
    assert_eq!((all.context_length, all.slots, all.protocol_version), (512, 3, 1));
    assert_eq!((all.dtype.as_str(), all.device.as_str()), ("f32", "cpu"));
    assert_eq!(all.methods, ["pad", "genarm", "linear-alignment", "experts"]);
    assert_eq!(
        all.references().collect::<Vec<_>>(),
        [Reference::Model, Reference::Generator, Reference::None]
    );
    assert_eq!(all.normalizations().next(), Some(Normalization::Candidates));
    assert!(!all.model_revision.is_empty() && !all.server_version.is_empty());
    let part = |n| DescribeRequest { tokenizer_size: n };
    let mut client = running.client().await;
    let some = client.describe(part(300)).await.unwrap().into_inner();
    assert_eq!(some.tokenizer_size, all.tokenizer_size);
    assert_ne!(some.tokenizer_fingerprint, all.tokenizer_fingerprint);
    let more = client.describe(part(u32::MAX)).await.unwrap().into_inner();
    assert_eq!(more.tokenizer_fingerprint, all.tokenizer_fingerprint);
}

#[tokio::test]
async fn without_a_store_there_are_no_profiles() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut client = ProfileServiceClient::connect(format!("http://{}", running.address)).await.unwrap();
    let asked = GetRequest { name: "me".into(), with_feedback: false };
    let status = client.get(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("`profiles.url`"), "{status:?}");
}

#[tokio::test]
async fn slots_are_refused_when_full_and_freed_when_a_call_ends() {
    let folder = write(Checkpoint::default());
    let mut config = config(&folder);
    config.engine.slots = 2;
    let running = start(config).await;
    let mut first = running.call().await;
    first.open(1, ids(&PROMPT), Guidance::default()).await;
    first.open(2, ids(&PROMPT), Guidance::default()).await;
    let mut second = running.call().await;
    second.sessions(2).await;
    let load = *second.loads.last().unwrap();
    assert_eq!((load.slots, load.blocks_used), (2, 2));
    assert!(load.blocks_total >= load.blocks_used);
    let refused = second.refused(open(1, ids(&PROMPT), Guidance::default())).await;
    assert_eq!(refused.0, FailureReason::Exhausted);
    // A session that ends makes room, and so does a call that breaks off.
    first.send([close(1)]).await;
    second.sessions(1).await;
    second.open(2, ids(&PROMPT), Guidance::default()).await;
    drop(first);
    second.sessions(1).await;
    second.open(3, ids(&PROMPT), Guidance::default()).await;
    second.ask(3, 0, &[1, 2]).await;
}

#[tokio::test]
async fn the_youngest_session_makes_room_when_the_cache_is_full() {
    let folder = write(Checkpoint::default());
    let mut config = config(&folder);
    // Blocks of the tiny shape take 8 KiB: 128 of them, 512 tokens are 32.
    config.engine.cache_mib = Some(1);
    config.engine.slots = 8;
    let running = start(config).await;
    let mut call = running.call().await;
    for session in 1..=4 {
        call.open(session, ids(&starting_with(session as u32, 495)), Guidance::default()).await;
    }
    let refused = call.refused(open(5, ids(&starting_with(5, 70)), Guidance::default())).await;
    assert_eq!(refused.0, FailureReason::Exhausted, "124 of 128 blocks are taken");
    call.open(6, ids(&starting_with(6, 62)), Guidance::default()).await;
    assert_eq!(call.loads.last().unwrap().blocks_used, 128);
    let before = call.ask(1, 0, &[1, 2, 3]).await;
    call.send([advance(1, 0, 5), advance(1, 1, 5)]).await;
    let failed = call.failed().await;
    assert_eq!((failed.session_id, failed.reason()), (6, FailureReason::Preempted));
    call.ask(1, 2, &[1, 2, 3]).await;
    // The same again, beside what is left of the others.
    call.send([close(2)]).await;
    call.open(7, ids(&starting_with(1, 495)), Guidance::default()).await;
    assert_eq!(call.ask(7, 0, &[1, 2, 3]).await, before);
}

#[tokio::test]
async fn what_is_read_is_found_by_its_owner_and_configured_text_by_all() {
    let folder = write(Checkpoint { reference: true, ..Default::default() });
    let mut config = config(&folder);
    let system = "ba be bi bo bu ".repeat(8);
    config.engine.shared_prefixes = vec![SharedPrefix { system: Some(system.clone()), ..Default::default() }];
    let running = start(config).await;
    let mut call = running.call().await;
    // Opens a session, waits until it is read, and gives the blocks it took beyond what was in use.
    let mut used = 0;
    let mut session = 0;
    let mut took = async |owner: &str, prompt: Prompt, reference: Reference| {
        session += 1;
        let guidance = Guidance { reference: reference.into(), ..Default::default() };
        let request_frame::Frame::Open(frame) = open(session, prompt, guidance) else { unreachable!() };
        call.send([request_frame::Frame::Open(Open { owner: owner.to_owned(), ..frame })]).await;
        let prompt = call.opened().await.guidance.unwrap().prompt_token_ids.len();
        let rewards = call.ask(session, 0, &[1, 2, 3]).await;
        let now = call.loads.last().unwrap().blocks_used;
        let took = now - std::mem::replace(&mut used, now);
        (took, prompt as u32, rewards)
    };
    let own = ids(&starting_with(9, 40));
    let (first, _, rewards) = took("ann", own.clone(), Reference::Generator).await;
    assert_eq!(first, 3);
    assert_eq!(took("ann", own.clone(), Reference::Generator).await, (1, 40, rewards.clone()));
    assert_eq!(took("bob", own.clone(), Reference::Generator).await, (3, 40, rewards.clone()));
    let (both, _, measured) = took("ann", own.clone(), Reference::Model).await;
    assert_eq!(both, 3, "the reference has not read it");
    assert_eq!(took("ann", own.clone(), Reference::Model).await, (1, 40, measured));

    let said = |text: &str| {
        let message = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into() };
        let messages = vec![message("system", &system), message("user", text)];
        Prompt { kind: Some(prompt::Kind::Messages(ChatMessages { messages })) }
    };
    let (all, tokens, alone) = took("cem", said("da de di"), Reference::Generator).await;
    assert_eq!(all, (tokens + 1).div_ceil(16));
    let (rest, _, again) = took("dan", said("da de di"), Reference::Generator).await;
    assert_eq!(again, alone);
    assert!(rest < all && rest > 1, "{rest} of {all}: the system prompt is found, the user's words are not");
}

/// A prompt of `n` ids that shares no block with one that starts otherwise.
fn starting_with(first: u32, n: usize) -> Vec<u32> {
    let mut ids = vec![7; n];
    ids[0] = first;
    ids
}

#[tokio::test]
async fn a_reader_that_stops_reading_does_not_stop_the_others() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut stuck = running.call().await;
    stuck.open(1, ids(&PROMPT), Guidance::default()).await;
    let mut other = running.call().await;
    other.open(1, ids(&PROMPT), Guidance::default()).await;
    other.sessions(2).await;
    // Each frame earns a failure that nobody reads. In the end the worker gives the call up.
    let requests = stuck.requests.take().unwrap();
    let flood = async {
        loop {
            let frames = (0..100).map(|_| RequestFrame { frame: Some(advance(9, 0, 1)) }).collect();
            if requests.send(ScoreRequest { frames }).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let work = async {
        for step in 0..50 {
            other.ask(1, step, &[1, 2, 3]).await;
            other.send([advance(1, step, 2)]).await;
        }
        other.sessions(1).await;
    };
    let race = async {
        tokio::select! {
            () = flood => {}
            () = work => {}
        }
    };
    tokio::time::timeout(PATIENCE, race).await.unwrap();
    let status = loop {
        match stuck.message().await {
            Ok(message) => assert!(message.is_some(), "the call must end with a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_half_closed_call_is_answered_to_its_end() {
    let folder = write(Checkpoint::default());
    let running = start(config(&folder)).await;
    let mut call = running.call().await;
    call.send([open(1, ids(&PROMPT), Guidance::default()), candidates(1, 0, &[1, 2])]).await;
    call.requests = None;
    call.opened().await;
    assert_eq!(call.rewards().await.values.len(), 2);
    while let Some(message) = call.message().await.unwrap() {
        assert!(message.frames.iter().all(|f| matches!(f.frame, Some(Frame::Load(_)))));
    }
}

#[tokio::test]
async fn a_drain_refuses_new_sessions_and_waits_for_open_ones() {
    let folder = write(Checkpoint::default());
    let mut running = start(config(&folder)).await;
    let mut busy = running.call().await;
    let mut idle = running.call().await;
    busy.open(1, ids(&PROMPT), Guidance::default()).await;
    running.shutdown.cancel();
    let status = loop {
        match idle.message().await {
            Ok(Some(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    let refused = busy.refused(open(2, ids(&PROMPT), Guidance::default())).await;
    assert_eq!(refused.0, FailureReason::Draining);
    busy.ask(1, 0, &[1, 2]).await;
    busy.send([close(1)]).await;
    let served = tokio::time::timeout(PATIENCE, &mut running.served).await.unwrap();
    assert_eq!(served.unwrap().unwrap(), Drain::Complete);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let folder = write(Checkpoint::default());
    let mut config = config(&folder);
    config.server.drain_seconds = 0.2;
    let mut running = start(config).await;
    let mut call = running.call().await;
    call.open(1, ids(&PROMPT), Guidance::default()).await;
    running.shutdown.cancel();
    let served = tokio::time::timeout(PATIENCE, &mut running.served).await.unwrap();
    assert_eq!(served.unwrap().unwrap(), Drain::DeadlinePassed);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_named_before_the_port_opens() {
    let folder = tempfile::tempdir().unwrap();
    let error = match attune_reward::Worker::start(config(&folder)).await {
        Ok(_) => panic!("an empty folder is no model"),
        Err(error) => format!("{error:#}"),
    };
    assert!(error.contains("config.json"), "{error}");
}
