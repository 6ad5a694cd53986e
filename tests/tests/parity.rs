//! The pair against the official algorithm's own tokens, over real sockets.
//!
//! The vectors were made by `tests/peers/make_vectors.py`, which runs the official algorithm in
//! Python on the very checkpoints that this test writes from their seeds.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::collections::BTreeMap;

use attune_engine::random_checkpoint::Shape;
use attune_tests::{Generated, Pair, by_ids, guided};
use serde::Deserialize;
use tokio::task::JoinSet;

#[derive(Deserialize)]
struct Vectors {
    shapes: BTreeMap<String, Shape>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    shape: String,
    base_seed: u64,
    rm_seed: u64,
    prompt_ids: Vec<u32>,
    strength: f32,
    tokens: Vec<u32>,
}

#[tokio::test]
async fn the_pair_decodes_what_the_official_algorithm_decodes() {
    let vectors: Vectors = serde_json::from_str(include_str!("../vectors/pad_official.json")).unwrap();
    for (name, shape) in &vectors.shapes {
        let cases: Vec<&Case> = vectors.cases.iter().filter(|c| &c.shape == name).collect();
        let pair = Pair::random(shape, (cases[0].base_seed, cases[0].rm_seed)).await.unwrap();
        let client = pair.client().await.unwrap();
        // All at once: whoever shares an iteration must not notice.
        let mut running = JoinSet::new();
        for (i, case) in cases.iter().enumerate() {
            let mut request = by_ids(&case.prompt_ids, case.tokens.len() as u32);
            request.guidances = vec![guided(case.strength)];
            let mut client = client.clone();
            running.spawn(async move { (i, Generated::of(&mut client, request).await) });
        }
        let mut seen = 0;
        while let Some(ended) = running.join_next().await {
            let (i, generated) = ended.unwrap();
            let (case, generated) = (cases[i], generated.unwrap());
            let about = format!("{name}, case {i}, strength {}", case.strength);
            assert_eq!(generated.ids(), case.tokens, "{about}");
            assert!(generated.tokens.iter().all(|t| t.guided), "{about}");
            seen += 1;
        }
        assert!(seen >= 20, "{name} has {seen} cases");
        pair.stop().await.unwrap();
    }
}
