//! Any bytes as a generator's messages, to a worker: a status at worst, and nothing is left over.
#![no_main]

use std::{cell::RefCell, sync::Arc};

use attune_proto::reward::v1::ScoreRequest;
use attune_reward::{RewardConfig, simulation};
use attune_service::engine::EngineConfig;
use attune_tests::micro_models;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

thread_local! {
    static WORKER: RefCell<simulation::Driver> = RefCell::new({
        let config = RewardConfig {
            engine: EngineConfig { slots: 3, prefill_chunk: Some(7), cache_mib: Some(1), ..EngineConfig::default() },
            ..RewardConfig::default()
        };
        simulation::worker(&config, Arc::clone(&micro_models().1), false).unwrap().1
    });
}

fuzz_target!(|data: &[u8]| {
    // Each message is as long as the byte before it says.
    WORKER.with_borrow_mut(|worker| {
        let mut call = worker.connect();
        let mut rest = data;
        while let Some((&length, tail)) = rest.split_first() {
            let (message, next) = tail.split_at(tail.len().min(length.into()));
            rest = next;
            if let Ok(message) = ScoreRequest::decode(message) {
                worker.hear(&call, message.frames);
                worker.proceed();
                call.answers();
            }
        }
        let passes = (0..1000).take_while(|_| worker.proceed()).count();
        assert!(passes < 1000, "it never comes to rest");
        worker.disconnect(call);
        worker.proceed();
        assert_eq!(worker.held(), (0, 0));
    });
});
