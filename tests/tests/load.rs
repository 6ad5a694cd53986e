//! More work than there is room for, and clients that leave, lag or come back. Over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use attune_engine::random_checkpoint::{Family, Shape};
use attune_proto::generator::v1::{
    GenerateRequest, OutputOptions, generator_service_client::GeneratorServiceClient,
};
use attune_tests::{
    Generated, PATIENCE, Pair, by_ids, generator_load, guided, wait_for_load, wait_for_sessions,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::Code;
use tonic_types::StatusExt as _;

fn shape() -> Shape {
    Shape { max_position: 4096, ..Shape::tiny(Family::Llama) }
}

fn guided_text(first: u32, max_tokens: u32) -> GenerateRequest {
    GenerateRequest { guidances: vec![guided(1.0)], ..by_ids(&[first, 2, 3], max_tokens) }
}

#[tokio::test]
async fn twice_as_many_streams_as_slots_wait_in_order_and_the_rest_is_told_when_to_retry() {
    let pair = Pair::random_with(
        &shape(),
        (1, 2),
        |g| (g.engine.slots, g.queue, g.max_tokens) = (1, 6, 4000),
        |_| (),
    )
    .await
    .unwrap();
    let mut client = pair.client().await.unwrap();
    let mut alone = Vec::new();
    for i in 0..6 {
        alone.push(Generated::of(&mut client, guided_text(i, 20)).await.unwrap().ids());
    }
    // It holds the only slot until all the others are there.
    let first = client.generate(guided_text(9, 4000)).await.unwrap();
    let mut streams = Vec::new();
    for i in 0..6 {
        streams.push(client.generate(guided_text(i, 20)).await.unwrap().into_inner());
    }
    let refused = client.generate(guided_text(6, 20)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.get_details_retry_info().is_some_and(|r| r.retry_delay.is_some()));
    drop(first);

    let (ended, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (i, mut stream) in streams.into_iter().enumerate() {
        let ended = ended.clone();
        tokio::spawn(async move {
            let mut ids = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                ids.extend(message.tokens.iter().map(|t| t.id));
            }
            ended.send((i, ids)).unwrap();
        });
    }
    for (i, alone) in alone.into_iter().enumerate() {
        assert_eq!(timeout(PATIENCE, order.recv()).await.unwrap(), Some((i, alone)));
    }
    // And there is room again.
    Generated::of(&mut client, guided_text(6, 2)).await.unwrap();
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_stops_reading_slows_only_itself() {
    let pair = Pair::random(&shape(), (1, 2)).await.unwrap();
    let output = Some(OutputOptions { token_rewards: true, candidate_tables: true });
    let mut request = GenerateRequest { output, ..guided_text(1, 600) };
    if let Some(sampling) = &mut request.sampling {
        sampling.candidates = Some(64);
    }
    let mut other = pair.client().await.unwrap();
    let expected = Generated::of(&mut other, request.clone()).await.unwrap();
    let bytes: usize = expected.tokens.iter().map(|t| t.candidates.len() * 16).sum();
    assert!(bytes > 8 * 65_535, "more than a connection takes unread");

    // A connection of its own: a connection's streams share its window.
    let mut lagging = pair.client().await.unwrap().generate(request).await.unwrap().into_inner();
    for i in 0..5 {
        Generated::of(&mut other, guided_text(i, 30)).await.unwrap();
    }
    let load = wait_for_load(&mut other, |l| l.running == 0).await.unwrap();
    assert_eq!((load.waiting, load.blocks_used), (0, 0), "the unread text is finished and holds nothing");
    let mut tokens = Vec::new();
    while let Some(message) = lagging.message().await.unwrap() {
        tokens.extend(message.tokens);
    }
    assert_eq!(tokens, expected.tokens);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn who_leaves_frees_slot_and_blocks_on_both_sides_while_others_go_on() {
    let pair = Pair::random_with(&shape(), (1, 2), |g| g.max_tokens = 4000, |_| ()).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let mut stays = client.generate(guided_text(1, 4000)).await.unwrap().into_inner();
    stays.message().await.unwrap();
    for round in 0..3 {
        // Cancelled while it waits for its first token, while it decodes, and with its whole connection.
        let mut leaving = pair.client().await.unwrap();
        let mut text = leaving.generate(guided_text(9, 4000)).await.unwrap().into_inner();
        for _ in 0..round {
            text.message().await.unwrap();
        }
        wait_for_load(&mut client, |l| l.running == 2).await.unwrap();
        wait_for_sessions(&pair.workers[0], 2).await.unwrap();
        drop(text);
        drop(leaving);
        wait_for_load(&mut client, |l| l.running == 1).await.unwrap();
        wait_for_sessions(&pair.workers[0], 1).await.unwrap();
    }
    let load = generator_load(&mut client).await.unwrap();
    assert_eq!((load.running, load.waiting), (1, 0), "the other text still runs");
    drop(stays);
    let load = wait_for_load(&mut client, |l| l.running == 0).await.unwrap();
    assert_eq!(load.blocks_used, 0);
    let load = wait_for_sessions(&pair.workers[0], 0).await.unwrap();
    assert_eq!(load.blocks_used, 0);
    pair.stop().await.unwrap();
}

/// Each text needs two of three slots: whoever held one and waited for the other would wait for ever.
#[tokio::test]
async fn two_generators_that_compete_for_a_workers_last_slots_both_finish() {
    let mut pair = Pair::random_with(&shape(), (1, 2), |_| (), |r| r.engine.slots = 3).await.unwrap();
    let other = pair.another_generator(|_| ()).await.unwrap();
    let clients = [pair.client().await.unwrap(), GeneratorServiceClient::connect(other).await.unwrap()];
    let request =
        |i: u32| GenerateRequest { guidances: vec![guided(1.0), guided(-0.5)], ..by_ids(&[i, 2, 3], 8) };
    let mut alone = Vec::new();
    for i in 0..6 {
        alone.push(Generated::of(&mut clients[0].clone(), request(i)).await.unwrap().ids());
    }
    let mut texts = JoinSet::new();
    for client in &clients {
        for i in 0..6 {
            let mut client = client.clone();
            texts.spawn(async move { (i, Generated::of(&mut client, request(i)).await.unwrap().ids()) });
        }
    }
    let all = async {
        while let Some(ended) = texts.join_next().await {
            let (i, ids) = ended.unwrap();
            assert_eq!(ids, alone[i as usize]);
        }
    };
    timeout(PATIENCE, all).await.unwrap();
    assert_eq!(wait_for_sessions(&pair.workers[0], 0).await.unwrap().blocks_used, 0);
    pair.stop().await.unwrap();
}
