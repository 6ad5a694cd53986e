//! What a request asks for, it gets: each setting over real sockets, on random checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::collections::{HashMap, HashSet};

use attune_engine::random_checkpoint::{Family, Shape};
use attune_proto::{
    generator::v1::{FinishReason, GenerateRequest, GuidanceTerm, OutputOptions, Resume, Sampling},
    reward::v1::{ChatMessage, ChatMessages, Normalization, Prompt, Reference, prompt::Kind},
};
use attune_tests::{Generated, Pair, by_ids, guided};

fn shape() -> Shape {
    Shape { max_position: 256, ..Shape::tiny(Family::Llama) }
}

fn sampled(seed: u64) -> GenerateRequest {
    let mut request = by_ids(&[1, 7, 9], 24);
    request.sampling =
        Some(Sampling { temperature: Some(1.3), seed: Some(seed), ..request.sampling.unwrap_or_default() });
    request
}

#[tokio::test]
async fn strength_zero_is_plain_decoding_token_by_token() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    for seed in 0..4 {
        let plain = Generated::of(&mut client, sampled(seed)).await.unwrap();
        let guided = GenerateRequest { guidances: vec![guided(0.0)], ..sampled(seed) };
        let guided = Generated::of(&mut client, guided).await.unwrap();
        assert_eq!(plain.ids(), guided.ids());
        assert!(guided.tokens.iter().all(|t| t.guided && t.unguided_id == t.id));
    }
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn what_guidance_changed_can_be_seen() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let output = Some(OutputOptions { token_rewards: true, candidate_tables: true });
    let strengths = [2.0, -1.0];
    let mut guidances: Vec<GuidanceTerm> = strengths.iter().map(|&s| guided(s)).collect();
    // So wide that it limits nothing: the rewards lose their mean alone.
    guidances[1].clip = Some(1e6);
    let request = GenerateRequest { guidances, output, ..sampled(3) };
    let answer = Generated::of(&mut client, request).await.unwrap();
    for token in &answer.tokens {
        assert_eq!((token.rewards.len(), token.candidates.len()), (2, 10));
        let chosen = token.candidates.iter().find(|c| c.id == token.id).unwrap();
        assert_eq!(chosen.rewards, token.rewards);
        assert_eq!(chosen.base_log_prob, token.base_log_prob);
        assert_eq!(chosen.contributions, token.contributions);
        let mean = token.candidates.iter().map(|c| c.rewards[1]).sum::<f32>() / 10.0;
        for c in &token.candidates {
            let added = [strengths[0] * c.rewards[0], strengths[1] * (c.rewards[1] - mean)];
            assert!(c.contributions.iter().zip(added).all(|(got, want)| (got - want).abs() < 1e-3));
            let score = c.base_log_prob + c.contributions.iter().sum::<f32>();
            assert!((score - c.score).abs() < 1e-3);
        }
        let log_sum: f32 = token.candidates.iter().map(|c| c.score.exp()).sum::<f32>().ln();
        assert!((chosen.score - log_sum - token.fused_log_prob).abs() < 1e-3);
    }
    assert_eq!(answer.finish.guidances.len(), 2);
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn normalisation_changes_values_but_no_token() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    for reference in [Reference::Generator, Reference::None] {
        let mut answers = Vec::new();
        for normalization in [Normalization::Candidates, Normalization::Vocabulary] {
            let mut term = guided(0.8);
            if let Some(guidance) = &mut term.guidance {
                guidance.reference = reference.into();
                guidance.normalization = normalization.into();
            }
            let output = Some(OutputOptions { token_rewards: true, candidate_tables: false });
            let request = GenerateRequest { guidances: vec![term], output, ..by_ids(&[5, 6], 24) };
            answers.push(Generated::of(&mut client, request).await.unwrap());
        }
        assert_eq!(answers[0].ids(), answers[1].ids());
        assert_ne!(answers[0].tokens[0].rewards, answers[1].tokens[0].rewards);
    }
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_seed_is_told_and_repeats_the_text() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let mut request = sampled(0);
    if let Some(sampling) = &mut request.sampling {
        sampling.seed = None;
    }
    let first = Generated::of(&mut client, request).await.unwrap();
    let again = Generated::of(&mut client, sampled(first.finish.seed)).await.unwrap();
    assert_eq!(first.ids(), again.ids());
    assert_ne!(first.ids(), Generated::of(&mut client, sampled(first.finish.seed ^ 1)).await.unwrap().ids());
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_text_goes_on_identically() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let request = GenerateRequest { guidances: vec![guided(1.0)], ..sampled(77) };
    let whole = Generated::of(&mut client, request.clone()).await.unwrap();
    for cut in [1, 9, 23] {
        let resume = Some(Resume { token_ids: whole.ids()[..cut].to_vec(), seed: Some(77) });
        let rest = Generated::of(&mut client, GenerateRequest { resume, ..request.clone() }).await.unwrap();
        assert_eq!(rest.ids(), whole.ids()[cut..]);
        assert!(whole.text.ends_with(&rest.text));
        assert_eq!(rest.finish.usage.unwrap().generated_tokens as usize, 24 - cut);
    }
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_string_ends_the_text_across_tokens() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let whole = Generated::of(&mut client, sampled(5)).await.unwrap();
    let characters: Vec<char> = whole.text.chars().collect();
    for at in [2, characters.len() / 2] {
        let stop: String = characters[at..at + 3].iter().collect();
        let mut request = sampled(5);
        if let Some(sampling) = &mut request.sampling {
            sampling.stop = vec![stop.clone()];
        }
        let cut = Generated::of(&mut client, request).await.unwrap();
        let first = whole.text.find(&stop).unwrap();
        assert_eq!(cut.text, whole.text[..first]);
        assert_eq!(cut.finish.reason(), FinishReason::Stop);
        assert!(cut.tokens.len() <= whole.tokens.len());
    }
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn bias_penalty_and_minimum_act_before_the_choice() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let edited = |edit: &dyn Fn(&mut Sampling)| {
        let mut request = by_ids(&[1, 2, 3], 16);
        request.sampling.as_mut().map(edit);
        request
    };
    let forced = edited(&|s| s.logit_bias = HashMap::from([(42, 100.0)]));
    assert!(Generated::of(&mut client, forced).await.unwrap().ids().iter().all(|&id| id == 42));
    let penalised = edited(&|s| s.repetition_penalty = Some(10.0));
    let ids = Generated::of(&mut client, penalised).await.unwrap().ids();
    let distinct: HashSet<u32> = ids.iter().copied().collect();
    assert!(distinct.len() >= 12, "a strong penalty seldom lets a token come twice: {ids:?}");

    // The end of text is forced as soon as it is allowed.
    let eos = 1;
    let ending = |min_tokens, ignore_eos| {
        edited(&|s| {
            s.logit_bias = HashMap::from([(eos, 100.0)]);
            (s.min_tokens, s.ignore_eos) = (min_tokens, ignore_eos);
        })
    };
    let at_once = Generated::of(&mut client, ending(0, false)).await.unwrap();
    assert_eq!((at_once.ids(), at_once.finish.reason()), (vec![eos], FinishReason::Eos));
    let later = Generated::of(&mut client, ending(5, false)).await.unwrap();
    assert_eq!((later.tokens.len(), later.finish.reason()), (6, FinishReason::Eos));
    let never = Generated::of(&mut client, ending(0, true)).await.unwrap();
    assert_eq!((never.tokens.len(), never.finish.reason()), (16, FinishReason::Length));
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_and_its_session() {
    let pair =
        Pair::random_with(&shape(), (11, 12), |g| g.engine.slots = 1, |r| r.engine.slots = 1).await.unwrap();
    let client = pair.client().await.unwrap();
    for _ in 0..3 {
        let request = GenerateRequest { guidances: vec![guided(1.0)], ..by_ids(&[1, 2, 3], 200) };
        let mut stream = client.clone().generate(request).await.unwrap().into_inner();
        stream.message().await.unwrap();
        drop(stream);
        // The only slot on both sides is free again, without waiting for 200 tokens.
        let request = GenerateRequest { guidances: vec![guided(1.0)], ..by_ids(&[4, 5], 3) };
        assert_eq!(Generated::of(&mut client.clone(), request).await.unwrap().tokens.len(), 3);
    }
    pair.stop().await.unwrap();
}

#[tokio::test]
async fn chat_and_preference_are_rendered_for_each_side_by_itself() {
    let pair = Pair::random(&shape(), (11, 12)).await.unwrap();
    let mut client = pair.client().await.unwrap();
    let messages = vec![ChatMessage { role: "user".into(), content: "ba be".into() }];
    let mut term = guided(1.0);
    if let Some(guidance) = &mut term.guidance {
        guidance.context = 0;
        guidance.text = Some("bi bo".into());
    }
    let request = GenerateRequest {
        prompt: Some(Prompt { kind: Some(Kind::Messages(ChatMessages { messages })) }),
        guidances: vec![term.clone(), guided(0.5)],
        ..by_ids(&[1], 4)
    };
    let answer = Generated::of(&mut client, request.clone()).await.unwrap();
    let read = |i: usize| answer.finish.guidances[i].prompt_token_ids.len();
    let plain = answer.finish.usage.unwrap().prompt_tokens as usize;
    assert_eq!(read(1), plain, "AS_IS reads what the base model reads");
    assert!(read(0) > plain, "the template puts the preference in");
    let mut seen = request;
    seen.base_context = attune_proto::generator::v1::BaseContext::WithPreference.into();
    let seen = Generated::of(&mut client, seen).await.unwrap();
    assert!(seen.finish.usage.unwrap().prompt_tokens as usize > plain);
    pair.stop().await.unwrap();
}
