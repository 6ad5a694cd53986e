//! Any bytes as a worker's messages, to a generator: every text ends, and nothing is left over.
#![no_main]

use std::sync::Arc;

use attune_generator::{
    GeneratorConfig,
    simulation::{Turn, World, generator},
};
use attune_proto::reward::v1::{DescribeResponse, ScoreResponse};
use attune_service::engine::EngineConfig;
use attune_tests::{by_ids, guided, micro_models};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let config = GeneratorConfig {
        engine: EngineConfig { slots: 2, cache_mib: Some(1), ..EngineConfig::default() },
        reward: vec!["http://worker".into()],
        reward_grace_ms: 0.0,
        reward_loss_seconds: 0.0,
        ..GeneratorConfig::default()
    };
    let world = World {
        dial: Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await })),
        resolve: Arc::new(|_, _| Box::pin(async { Ok(vec![]) })),
        seed: 1,
    };
    let (base, persrm) = micro_models();
    // The service and the finder hold the ways to the engine open.
    let (_service, mut driver, _finder) = generator(&config, Arc::clone(base), world).unwrap();
    let mut requests = driver.connect(DescribeResponse {
        model_id: persrm.assets.id.clone(),
        model_revision: persrm.assets.revision.clone(),
        slots: 4,
        ..DescribeResponse::default()
    });
    let streams: Vec<_> = (0..3)
        .map(|i| {
            let mut request = by_ids(&[1, 2, 3 + i], 4);
            request.guidances = (0..i % 3).map(|_| guided(1.0)).collect();
            driver.submit(request).unwrap()
        })
        .collect();
    let mut rest = data;
    while let Some((&length, tail)) = rest.split_first() {
        let (message, next) = tail.split_at(tail.len().min(length.into()));
        rest = next;
        if let Ok(message) = ScoreResponse::decode(message) {
            driver.hear(message.frames.into_iter().filter_map(|f| f.frame).collect());
            let passes = (0..1000).take_while(|_| driver.proceed() == Turn::Computed).count();
            assert!(passes < 1000, "it never comes to rest");
            while requests.try_recv().is_ok() {}
        }
    }
    driver.disconnect();
    let turns = (0..1000).take_while(|_| {
        if let Turn::Waits(Some(until)) = driver.proceed() {
            std::thread::sleep(until.saturating_duration_since(std::time::Instant::now()));
        }
        driver.held().0 > 0
    });
    assert!(turns.count() < 1000, "texts go on for ever");
    assert_eq!(driver.held(), (0, 0, 0));
    drop(streams);
});
