//! The texts that are decoded: random prompts of 128 tokens, greedy, guided as the official algorithm does.

use std::time::Instant;

use anyhow::{Context as _, Result};
use attune_proto::{
    generator::v1::{
        GenerateRequest, GuidanceTerm, Sampling, generator_service_client::GeneratorServiceClient,
    },
    reward::v1::{Context as Reads, Guidance, Reference},
};
use tonic::transport::Channel;

use crate::{
    load::{TextTimes, timed},
    prompts,
    report::median,
    solo::K,
};

/// Tokens of a prompt.
pub(super) const PROMPT: usize = 128;
/// How strongly guidance acts.
pub(super) const STRENGTH: f32 = 0.8;
/// Rows of the embedding in both shapes.
const VOCAB: usize = 32_000;

/// The prompt of one text.
pub(super) fn prompt(seed: u64) -> Vec<u32> {
    prompts::random_ids(1, PROMPT, VOCAB, seed).remove(0)
}

/// A text of exactly `tokens` tokens, greedy, without guidance.
pub(super) fn plain(prompt: &[u32], tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(prompts::ids(prompt.to_vec())),
        sampling: Some(Sampling {
            temperature: Some(0.0),
            candidates: Some(K as u32),
            max_tokens: Some(tokens),
            ignore_eos: true,
            ..Sampling::default()
        }),
        ..GenerateRequest::default()
    }
}

/// The same with guidance, the reward measured against the base model itself.
pub(super) fn guided(prompt: &[u32], tokens: u32) -> GenerateRequest {
    let guidance = Guidance {
        reference: Reference::Generator.into(),
        context: Reads::AsIs.into(),
        ..Guidance::default()
    };
    let term = GuidanceTerm { guidance: Some(guidance), strength: Some(STRENGTH), clip: None };
    GenerateRequest { guidances: vec![term], ..plain(prompt, tokens) }
}

/// Decodes one text.
pub(super) async fn decode(
    client: &GeneratorServiceClient<Channel>,
    request: GenerateRequest,
) -> Result<TextTimes> {
    let mut client = client.clone();
    timed(&mut client, request, Instant::now(), || ()).await.context("a text failed")
}

/// The median step of a text, in milliseconds.
pub(super) fn step_ms(text: &TextTimes) -> f64 {
    median(text.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3)).unwrap_or(f64::NAN)
}

/// Tokens a second behind the first one.
pub(super) fn tokens_per_second(text: &TextTimes) -> f64 {
    text.gaps.len() as f64 / text.gaps.iter().sum::<std::time::Duration>().as_secs_f64()
}

/// The median; not a number without values.
pub(super) fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    median(values).unwrap_or(f64::NAN)
}
