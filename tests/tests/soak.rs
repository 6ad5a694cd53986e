//! Random joins, leaves and lengths for a while, in caches that are too small: at the end nothing is
//! held and nothing has grown.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::time::{Duration, Instant};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_proto::generator::v1::{GenerateRequest, generator_service_client::GeneratorServiceClient};
use attune_tests::{Pair, by_ids, guided, wait_for_load, wait_for_sessions};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_leaves_nothing_behind() {
    soak(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes; see docs/operations.md"]
async fn a_long_soak_leaves_nothing_behind() {
    soak(Duration::from_secs(600)).await;
}

async fn soak(length: Duration) {
    let shape = Shape { max_position: 512, layers: 4, kv_heads: 4, ..Shape::tiny(Family::Llama) };
    // A block takes 32 KiB: 32 of them here and 64 there, where one text may need 32 and two sessions.
    let pair = Pair::random_with(
        &shape,
        (1, 2),
        |g| {
            (g.engine.slots, g.queue, g.engine.cache_mib) = (6, 5, Some(1));
            // A machine with much else to do is no failure; a service that hangs is.
            g.reward_wait_max_seconds = 120.0;
        },
        |r| (r.engine.slots, r.engine.cache_mib) = (10, Some(2)),
    )
    .await
    .unwrap();
    let end = Instant::now() + length;
    let mut clients = JoinSet::new();
    // One more than there is room for.
    for seed in 0..12 {
        let client = pair.client().await.unwrap();
        clients.spawn(visitor(client, seed, end));
    }
    // Once every cache and every buffer has been in use.
    tokio::time::sleep_until((end - length * 2 / 3).into()).await;
    let before = resident_bytes();
    let mut outcomes = Outcomes::default();
    while let Some(ended) = clients.join_next().await {
        let Outcomes { finished, left, refused } = ended.unwrap();
        outcomes.finished += finished;
        outcomes.left += left;
        outcomes.refused += refused;
    }
    println!("{outcomes:?}");
    assert!(outcomes.finished > 0 && outcomes.left > 0 && outcomes.refused > 0, "{outcomes:?}");

    let mut client = pair.client().await.unwrap();
    let load = wait_for_load(&mut client, |l| l.running + l.waiting == 0).await.unwrap();
    assert_eq!(load.blocks_used, 0, "{load:?}");
    assert!(load.blocks_kept > 0 && load.hit_tokens > 0, "{load:?}");
    let load = wait_for_sessions(&pair.workers[0], 0).await.unwrap();
    assert_eq!(load.blocks_used, 0, "{load:?}");
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        println!("resident: {} KiB after a third, {} KiB at the end", before >> 10, after >> 10);
        assert!(after < before + before / 10 + (4 << 20), "memory grew from {before} to {after} bytes");
    }
    pair.stop().await.unwrap();
}

#[derive(Debug, Default)]
struct Outcomes {
    finished: u64,
    left: u64,
    refused: u64,
}

/// Sends one request after the other until the end.
async fn visitor(mut client: GeneratorServiceClient<Channel>, seed: u64, end: Instant) -> Outcomes {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut outcomes = Outcomes::default();
    while Instant::now() < end {
        let request = request(&mut dice);
        let patience = if dice.random_bool(0.4) { dice.random_range(0..20) } else { u32::MAX };
        let mut request = tonic::Request::new(request);
        if dice.random_bool(0.1) {
            request.set_timeout(Duration::from_millis(dice.random_range(0..100)));
        }
        let mut stream = match client.generate(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                expected(&status);
                outcomes.refused += 1;
                continue;
            }
        };
        let mut read = 0;
        loop {
            if read == patience {
                outcomes.left += 1;
                break;
            }
            read += 1;
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    outcomes.finished += 1;
                    break;
                }
                Err(status) => {
                    expected(&status);
                    break;
                }
            }
        }
    }
    outcomes
}

/// A few conversations, continued at many lengths.
fn request(dice: &mut StdRng) -> GenerateRequest {
    let conversation: u32 = dice.random_range(0..6);
    let long = dice.random_bool(0.15);
    let length = dice.random_range(1..if long { 400 } else { 60 });
    let mut prompt: Vec<u32> = (0..length).map(|t| (t * 31 + conversation * 17) % 500).collect();
    prompt.push(dice.next_u32() % 500);
    let mut request = by_ids(&prompt, dice.random_range(1..if long { 100 } else { 40 }));
    if let Some(sampling) = &mut request.sampling {
        sampling.temperature = Some(dice.random_range(0.0..1.5));
        sampling.seed = Some(dice.next_u64());
    }
    request.guidances = (0..dice.random_range(0..3)).map(|_| guided(dice.random_range(-2.0..2.0))).collect();
    request
}

/// What a full service, or a client in a hurry, may see.
fn expected(status: &tonic::Status) {
    let known = [Code::ResourceExhausted, Code::DeadlineExceeded, Code::Cancelled];
    assert!(known.contains(&status.code()), "{status:?}");
}

/// The memory of this process: both services and their clients. `None` where the system does not tell.
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kib| kib << 10)
}
