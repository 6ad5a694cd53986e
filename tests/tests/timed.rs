//! A generator with the bench's timed worker in place of a real one, under the bench's own load.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{path::Path, time::Duration};

use attune_bench::{
    load::{Arrivals, Load, drive},
    prompts,
    report::Report,
    timed::{TimedConfig, TimedWorker},
};
use attune_engine::{
    Tokenizer,
    random_checkpoint::{self, Family, Kind, Shape},
};
use attune_generator::{Generator, GeneratorConfig};
use attune_proto::generator::v1::{GenerateRequest, generator_service_client::GeneratorServiceClient};
use attune_service::{engine::EngineConfig, sections::ServerConfig};
use attune_tests::{by_ids, guided};
use tokio_util::sync::CancellationToken;

const FORWARD: Duration = Duration::from_millis(10);

fn config(folder: &Path, slots: u32) -> TimedConfig {
    let tokenizer = Tokenizer::load(folder).unwrap();
    let fingerprint = tokenizer.fingerprint(tokenizer.size() as u32);
    TimedConfig { slots, forward: FORWARD, on_card: false, fingerprint, vocab: 512, model_id: "timed".into() }
}

#[tokio::test]
async fn a_generator_takes_a_timed_worker_and_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    random_checkpoint::write(folder.path(), &Shape::tiny(Family::Llama), 1, Kind::Base).unwrap();
    // Fewer slots than streams: the others wait, and nothing is lost.
    let worker = TimedWorker::start(config(folder.path(), 2)).unwrap();
    let generator = Generator::start(GeneratorConfig {
        engine: EngineConfig {
            model: folder.path().to_string_lossy().into_owned(),
            threads: 1,
            cache_mib: Some(64),
            ..EngineConfig::default()
        },
        reward: vec![worker.endpoint()],
        server: ServerConfig { drain_seconds: 5.0, ..ServerConfig::on_port(0) },
        ..GeneratorConfig::default()
    })
    .await
    .unwrap();
    let endpoint = format!("http://{}", generator.address());
    let stop = CancellationToken::new();
    let served = tokio::spawn(generator.serve(stop.clone()));
    let client = GeneratorServiceClient::connect(endpoint).await.unwrap();

    let requests: Vec<GenerateRequest> = prompts::random_ids(4, 12, 512, 7)
        .iter()
        .map(|ids| GenerateRequest { guidances: vec![guided(0.5)], ..by_ids(ids, 6) })
        .collect();
    let load = Load { streams: 4, texts: 4, warmup: 1, arrivals: Arrivals::Closed, seed: 0 };
    let measured = drive(&client, &requests, &load, || ()).await.unwrap();
    let report = Report::new(&measured);
    assert_eq!((report.texts, report.tokens, report.failures.len()), (4, 24, 0), "{report:?}");
    let gaps = report.time_per_output_token.unwrap();
    assert!(gaps.p50 >= FORWARD.as_secs_f64(), "each step waits for a forward: {report:?}");
    // The tiny model's own forward is far shorter than the wait.
    assert!(report.reward_wait_share.unwrap() > 0.5, "{report:?}");

    stop.cancel();
    served.await.unwrap().unwrap();
}
