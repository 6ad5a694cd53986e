//! The maths against vectors that Python computed in double precision (`tests/peers/guidance_vectors.py`).
#![allow(clippy::unwrap_used)] // a test that fails should say where

use attune_guidance::{Candidates, Term, against_model, fuse};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    logits: Vec<f32>,
    log_sum_exp: f32,
    min_p: f32,
    terms: Vec<Given>,
    scores: Vec<Option<f64>>,
    log_probs: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Given {
    policy: Vec<f32>,
    reference: Vec<f32>,
    rewards: Vec<f64>,
    strength: f32,
    clip: Option<f32>,
}

#[test]
fn rewards_scores_and_probabilities_are_those_of_double_precision() {
    let vectors: Vectors = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert!(vectors.cases.len() >= 40);
    for case in &vectors.cases {
        let candidates = Candidates {
            ids: (0..case.logits.len() as u32).collect(),
            logits: case.logits.clone(),
            raw_logits: case.logits.clone(),
            log_sum_exp: case.log_sum_exp,
            raw_log_sum_exp: case.log_sum_exp,
        };
        let mut sent = Vec::new();
        for given in &case.terms {
            let rewards = against_model(&given.policy, &given.reference);
            for (r, want) in rewards.iter().zip(&given.rewards) {
                assert!((r - want).abs() < 1e-12, "{r} for {want}");
            }
            // On the wire a reward is in single precision.
            sent.push(rewards.iter().map(|&r| r as f32).collect::<Vec<f32>>());
        }
        let term =
            |(given, rewards): (&Given, _)| Term { strength: given.strength, clip: given.clip, rewards };
        let terms: Vec<Term<'_>> = case.terms.iter().zip(sent.iter().map(Vec::as_slice)).map(term).collect();
        let fused = fuse(&candidates, &terms, case.min_p).unwrap();
        for (i, (score, prob)) in case.scores.iter().zip(&case.log_probs).enumerate() {
            match (score, prob) {
                (Some(score), Some(prob)) => {
                    assert!((fused.scores[i] - score).abs() < 1e-4, "{} for {score}", fused.scores[i]);
                    assert!((fused.log_prob(i) - prob).abs() < 2e-4, "{} for {prob}", fused.log_prob(i));
                }
                _ => assert_eq!(fused.scores[i], f64::NEG_INFINITY),
            }
        }
    }
}
