//! Any sequence of frames, to either side, ends in a status: never in a panic, a hang, or something that
//! is held for ever. The same bodies are the targets of `cargo fuzz` (`fuzz/`).
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{cell::RefCell, sync::Arc};

use attune_generator::{GeneratorConfig, simulation as generator};
use attune_proto::{
    generator::v1::{GenerateRequest, OnRewardLoss},
    reward::v1::{
        Advance, Candidates, Close, DescribeResponse, Failed, Guidance, Load, Open, Opened, Prompt,
        RequestFrame, ResolvedGuidance, Rewards, TokenIds, Weights, open::By, prompt::Kind, request_frame,
        response_frame::Frame,
    },
};
use attune_reward::{RewardConfig, simulation as reward};
use attune_service::engine::EngineConfig;
use attune_tests::{by_ids, guided, micro_models};
use proptest::prelude::*;

const SLOTS: usize = 3;

thread_local! {
    static WORKER: RefCell<reward::Driver> = RefCell::new(worker());
}

fn worker() -> reward::Driver {
    let config = RewardConfig {
        engine: EngineConfig {
            slots: SLOTS,
            prefill_chunk: Some(7),
            cache_mib: Some(1),
            ..EngineConfig::default()
        },
        ..RewardConfig::default()
    };
    reward::worker(&config, Arc::clone(&micro_models().1), false).unwrap().1
}

/// Whoever was refused waits a moment before it is tried again.
fn wait(turn: generator::Turn) {
    if let generator::Turn::Waits(Some(until)) = turn {
        std::thread::sleep(until.saturating_duration_since(std::time::Instant::now()));
    }
}

/// Ids that mostly lie in the vocabulary.
fn id() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..256, 1 => any::<u32>()]
}

fn ids(most: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(id(), 0..most)
}

/// Few sessions, so that frames meet.
fn session() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..5, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..4, 1 => any::<u32>()]
}

fn floats() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(prop_oneof![4 => -2f32..2.0, 1 => any::<f32>()], 0..20)
}

fn guidance() -> impl Strategy<Value = Guidance> {
    (0i32..5, 0i32..4, 0i32..4, prop::option::of(floats()), any::<bool>()).prop_map(
        |(reference, normalization, context, values, wrong)| Guidance {
            reference,
            normalization,
            context,
            weights: values.map(|values| Weights { values }),
            reward_model: if wrong { "another".into() } else { String::new() },
            ..Guidance::default()
        },
    )
}

fn resolved() -> impl Strategy<Value = ResolvedGuidance> {
    (0i32..5, 0i32..4, ids(20), any::<bool>()).prop_map(
        |(reference, normalization, prompt_token_ids, known)| {
            let assets = &micro_models().1.assets;
            ResolvedGuidance {
                reward_model: assets.id.clone(),
                model_revision: if known { assets.revision.clone() } else { "another".into() },
                method: "pad".into(),
                reference,
                normalization,
                context: 2,
                prompt_token_ids,
                ..ResolvedGuidance::default()
            }
        },
    )
}

fn request() -> impl Strategy<Value = RequestFrame> {
    use request_frame::Frame;
    let by = prop_oneof![
        3 => guidance().prop_map(|g| Some(By::Guidance(g))),
        3 => resolved().prop_map(|r| Some(By::Resolved(r))),
        1 => Just(None),
    ];
    let prompt =
        prop::option::of(ids(20).prop_map(|ids| Prompt { kind: Some(Kind::TokenIds(TokenIds { ids })) }));
    let traceparent = prop_oneof![
        Just(String::new()),
        Just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        Just("00-\u{e9}-".to_owned()),
    ];
    let open = (session(), prompt, ids(6), by, traceparent).prop_map(
        |(session_id, prompt, generated_tokens, by, traceparent)| {
            let owner = "local".into();
            Frame::Open(Open { session_id, owner, prompt, generated_tokens, by, traceparent })
        },
    );
    let advance = (session(), step(), id())
        .prop_map(|(session_id, step, token)| Frame::Advance(Advance { session_id, step, token }));
    let candidates = (session(), step(), ids(70)).prop_map(|(session_id, step, token_ids)| {
        Frame::Candidates(Candidates { session_id, step, token_ids })
    });
    let close = session().prop_map(|session_id| Frame::Close(Close { session_id }));
    prop_oneof![3 => open, 3 => advance, 3 => candidates, 1 => close]
        .prop_map(|frame| RequestFrame { frame: Some(frame) })
}

fn response() -> impl Strategy<Value = Frame> {
    let opened = (session(), prop::option::of(resolved()))
        .prop_map(|(session_id, guidance)| Frame::Opened(Opened { session_id, guidance }));
    let rewards = (session(), step(), floats()).prop_map(|(session_id, step, values)| {
        Frame::Rewards(Rewards { session_id, step, values, work_seconds: 0.0 })
    });
    // What a good worker says, ten finite values, must stand among the rest, or nothing ever goes on.
    let good = (0u64..5, 0u32..4).prop_map(|(session_id, step)| {
        Frame::Rewards(Rewards { session_id, step, values: vec![0.5; 10], work_seconds: 0.0 })
    });
    let failed = (session(), 0i32..12, any::<bool>()).prop_map(|(session_id, reason, field)| {
        let field = if field { "weights.values".into() } else { String::new() };
        Frame::Failed(Failed { session_id, reason, message: "because".into(), field })
    });
    let load = (0u32..9, 0u32..5, any::<bool>()).prop_map(|(sessions, slots, draining)| {
        Frame::Load(Load { sessions, slots, draining, ..Load::default() })
    });
    prop_oneof![2 => opened, 3 => rewards, 4 => good, 2 => failed, 1 => load]
}

/// A generator of two slots that gives a lost worker up at once.
fn impatient() -> GeneratorConfig {
    GeneratorConfig {
        engine: EngineConfig { slots: 2, cache_mib: Some(1), ..EngineConfig::default() },
        reward: vec!["http://worker".into()],
        reward_grace_ms: 0.0,
        reward_loss_seconds: 0.0,
        ..GeneratorConfig::default()
    }
}

fn world() -> generator::World {
    generator::World {
        dial: Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await })),
        resolve: Arc::new(|_, _| Box::pin(async { Ok(vec![]) })),
        seed: 1,
    }
}

/// A worker that fits.
fn description() -> DescribeResponse {
    let (_, persrm) = micro_models();
    DescribeResponse {
        model_id: persrm.assets.id.clone(),
        model_revision: persrm.assets.revision.clone(),
        slots: 4,
        ..DescribeResponse::default()
    }
}

#[test]
fn a_text_goes_on_unguided_at_once() {
    let (base, _) = micro_models();
    let (_service, mut driver, _finder) =
        generator::generator(&impatient(), Arc::clone(base), world()).unwrap();
    let _requests = driver.connect(description());
    let mut request = GenerateRequest {
        guidances: vec![guided(1.0)],
        on_reward_loss: OnRewardLoss::ContinueUnguided.into(),
        ..by_ids(&[1, 2, 3], 4)
    };
    request.sampling.get_or_insert_default().temperature = Some(0.0);
    let mut stream = driver.submit(request).unwrap();
    while driver.proceed() == generator::Turn::Computed {}
    driver.disconnect();
    // Its first step is pending, and nothing else will ever arrive.
    while driver.held().0 > 0 {
        let turn = driver.proceed();
        assert!(driver.held().0 == 0 || turn != generator::Turn::Waits(None), "it waits for nothing");
        wait(turn);
    }
    let mut tokens = 0;
    while let Ok(message) = stream.try_recv() {
        tokens += message.unwrap().tokens.len();
    }
    assert_eq!(tokens, 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_worker_survives_any_generator(messages in prop::collection::vec(prop::collection::vec(request(), 0..6), 0..12)) {
        WORKER.with_borrow_mut(|worker| {
            let mut call = worker.connect();
            let mut opens = 0;
            for frames in messages {
                opens += frames.iter().filter(|f| matches!(f.frame, Some(request_frame::Frame::Open(_)))).count();
                worker.hear(&call, frames);
                worker.proceed();
                let (sessions, _) = worker.held();
                prop_assert!(sessions as usize <= SLOTS.min(opens));
                for answer in call.answers() {
                    if let Frame::Rewards(rewards) = answer {
                        prop_assert!(rewards.values.iter().all(|v| v.is_finite()));
                    }
                }
            }
            // All that could be read is read in the end: nothing spins.
            for turn in 0.. {
                if !worker.proceed() {
                    break;
                }
                prop_assert!(turn < 1000, "it never comes to rest");
            }
            worker.disconnect(call);
            worker.proceed();
            prop_assert_eq!(worker.held(), (0, 0));
            Ok(())
        })?;
    }

    #[test]
    fn a_generator_survives_any_worker(messages in prop::collection::vec(prop::collection::vec(response(), 0..6), 0..20)) {
        let (base, _) = micro_models();
        // The service and the finder hold the ways to the engine open.
        let (_service, mut driver, _finder) = generator::generator(&impatient(), Arc::clone(base), world()).unwrap();
        let mut requests = driver.connect(description());
        let mut streams = Vec::new();
        for i in 0..3 {
            let mut request = by_ids(&[1, 2, 3 + i], 4);
            request.guidances = (0..i % 3).map(|_| guided(1.0)).collect();
            streams.push(driver.submit(request).unwrap());
        }
        for frames in messages {
            driver.hear(frames);
            for turn in 0.. {
                if driver.proceed() != generator::Turn::Computed {
                    break;
                }
                prop_assert!(turn < 1000, "it never comes to rest");
            }
            while requests.try_recv().is_ok() {}
        }
        // Without any worker, everything ends at once.
        driver.disconnect();
        for turn in 0.. {
            if driver.held().0 == 0 {
                break;
            }
            wait(driver.proceed());
            prop_assert!(turn < 1000, "texts go on for ever");
        }
        prop_assert_eq!(driver.held(), (0, 0, 0));
        for mut stream in streams {
            let mut ended = false;
            while let Ok(message) = stream.try_recv() {
                prop_assert!(!ended, "something came behind the end");
                match message {
                    Ok(message) => {
                        prop_assert!(message.tokens.iter().all(|t| t.base_log_prob.is_finite()));
                        ended = message.finish.is_some();
                    }
                    Err(status) => {
                        prop_assert!(!status.message().is_empty());
                        ended = true;
                    }
                }
            }
            prop_assert!(ended, "every stream has an end");
        }
    }
}
