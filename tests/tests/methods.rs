//! The named methods of the reward service, served over the same call, against the numbers they stand for.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::{collections::HashMap, path::Path};

use attune_engine::random_checkpoint::{self, Family, Kind, Shape};
use attune_proto::{
    generator::v1::{BaseContext, GenerateRequest, GuidanceTerm, OutputOptions, Sampling, Token},
    reward::v1::{Guidance, Prompt, Reference, prompt::Kind as PromptKind},
};
use attune_tests::{Generated, Pair, by_ids};
use tonic::Code;

fn term(method: &str, text: Option<&str>, strength: f32) -> GuidanceTerm {
    let guidance = Guidance { method: method.into(), text: text.map(str::to_owned), ..Guidance::default() };
    GuidanceTerm { guidance: Some(guidance.into()), strength: Some(strength), clip: None }
}

/// A request whose answer shows all of 64 candidates.
fn request(prompt: Prompt, terms: Vec<GuidanceTerm>) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(prompt),
        guidances: terms,
        sampling: Some(Sampling { candidates: Some(64), max_tokens: Some(6), ..Sampling::default() }),
        output: Some(OutputOptions { token_rewards: true, candidate_tables: true }),
        ..GenerateRequest::default()
    }
}

fn text(text: &str) -> Prompt {
    Prompt { kind: Some(PromptKind::Text(text.into())) }
}

fn ids(ids: &[u32]) -> Prompt {
    by_ids(ids, 1).prompt.unwrap()
}

/// A model without a value head: a language model.
fn write(folder: &Path, seed: u64) {
    random_checkpoint::write(folder, &Shape::tiny(Family::Llama), seed, Kind::Base).unwrap();
}

/// The base log-probabilities of a token's candidates.
fn base(token: &Token) -> HashMap<u32, f32> {
    token.candidates.iter().map(|c| (c.id, c.base_log_prob)).collect()
}

#[tokio::test]
async fn linear_alignment_contrasts_the_base_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 5);
    let pair = Pair::start(folder.path(), folder.path()).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let strength = 2.5;
    let aligned = request(text("hello there"), vec![term("linear-alignment", Some("brief"), strength)]);
    let aligned = Generated::of(&mut client, aligned).await.unwrap();
    let resolved = &aligned.finish.guidances[0];
    assert_eq!((resolved.method.as_str(), resolved.reference()), ("linear-alignment", Reference::Generator));

    // What the base says of the same step with the preference in its own prompt.
    let mut prompt = resolved.prompt_token_ids.clone();
    let mut compared = 0;
    for token in &aligned.tokens {
        let with = Generated::of(&mut client, request(ids(&prompt), vec![])).await.unwrap();
        let (with, without) = (base(&with.tokens[0]), base(token));
        let common: Vec<_> = token.candidates.iter().filter(|c| with.contains_key(&c.id)).collect();
        for pair in common.windows(2) {
            let formula = |id: u32| without[&id] + strength * (with[&id] - without[&id]);
            // Constants of the step have no say: differences are what counts.
            let (got, want) = (pair[0].score - pair[1].score, formula(pair[0].id) - formula(pair[1].id));
            assert!((got - want).abs() < 1e-3, "{got} for {want}");
            compared += 1;
        }
        prompt.push(token.id);
    }
    assert!(compared > 20, "{compared}");

    let mut both = request(text("hello"), vec![term("linear-alignment", Some("brief"), 1.0)]);
    both.base_context = BaseContext::WithPreference.into();
    let refused = Generated::of(&mut client, both).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn linear_alignment_needs_the_bases_own_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    write(&own, 5);
    write(&other, 6);
    let pair = Pair::start(&own, &other).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let aligned = request(text("hello"), vec![term("linear-alignment", Some("brief"), 1.0)]);
    let refused = Generated::of(&mut client, aligned).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("with itself"), "{refused}");
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn genarm_adds_the_log_probability_and_experts_replace_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    write(&own, 5);
    write(&other, 6);
    let pair = Pair::start(&own, &other).await.unwrap();
    // The worker's model as a base of its own.
    let alone = Pair::start(&other, &other).await.unwrap();
    let (mut client, mut expert) = (pair.client().await.unwrap(), alone.client().await.unwrap());
    for (method, reference) in [("genarm", Reference::None), ("experts", Reference::Generator)] {
        let guided = request(ids(&[3, 4, 5]), vec![term(method, None, 1.0)]);
        let guided = Generated::of(&mut client, guided).await.unwrap();
        assert_eq!(guided.finish.guidances[0].reference(), reference);
        let token = &guided.tokens[0];
        let own = base(token);
        let other =
            base(&Generated::of(&mut expert, request(ids(&[3, 4, 5]), vec![])).await.unwrap().tokens[0]);
        let formula = |id: u32| match reference {
            Reference::None => own[&id] + other[&id],
            _ => other[&id],
        };
        let common: Vec<_> = token.candidates.iter().filter(|c| other.contains_key(&c.id)).collect();
        assert!(common.len() > 4, "{}", common.len());
        for pair in common.windows(2) {
            let (got, want) = (pair[0].score - pair[1].score, formula(pair[0].id) - formula(pair[1].id));
            assert!((got - want).abs() < 1e-3, "{method}: {got} for {want}");
        }
    }
    pair.stop().await.unwrap();
    alone.stop().await.unwrap();
}

#[tokio::test]
async fn a_method_that_a_model_cannot_serve_is_refused_with_those_that_it_can() {
    let pair = Pair::random(&Shape::tiny(Family::Llama), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    // The pair's reward model has a value head.
    for method in ["genarm", "no-such-method"] {
        let asked = request(ids(&[3, 4]), vec![term(method, None, 1.0)]);
        let refused = Generated::of(&mut client, asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("offers pad"), "{refused}");
    }
    pair.stop().await.unwrap();
}
