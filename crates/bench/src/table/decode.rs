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
    let term = GuidanceTerm { guidance: Some(guidance.into()), strength: Some(STRENGTH), clip: None };
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

/// Decodes one text for each request, all at once.
pub(super) async fn streams(
    client: &GeneratorServiceClient<Channel>,
    requests: impl Iterator<Item = GenerateRequest>,
) -> Result<Vec<TextTimes>> {
    let begun = requests.map(|request| {
        let client = client.clone();
        tokio::spawn(async move { decode(&client, request).await })
    });
    let mut texts = Vec::new();
    for text in begun.collect::<Vec<_>>() {
        texts.push(text.await??);
    }
    Ok(texts)
}

/// Tokens a second while every stream decodes: between the last first token and the first end.
pub(super) fn throughput(texts: &[TextTimes]) -> f64 {
    let from = texts.iter().map(|t| t.arrivals().next()).max().flatten();
    let to = texts.iter().map(|t| t.arrivals().last()).min().flatten();
    let (Some(from), Some(to)) = (from, to) else { return f64::NAN };
    let within = texts.iter().flat_map(TextTimes::arrivals).filter(|&at| at > from && at <= to).count();
    within as f64 / to.saturating_duration_since(from).as_secs_f64()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use attune_proto::generator::v1::Finish;

    use super::*;

    #[test]
    fn throughput_counts_only_while_all_decode() {
        let due = Instant::now();
        let text = |first: u64, gap: u64| TextTimes {
            due,
            first_token: Duration::from_millis(first),
            gaps: vec![Duration::from_millis(gap); 10],
            tokens: vec![0; 11],
            finish: Finish::default(),
        };
        // The first decodes from 10 ms to 110 ms, the second from 60 ms to 160 ms: 5 tokens each.
        let got = throughput(&[text(10, 10), text(60, 10)]);
        assert!((got - 10.0 / 0.05).abs() < 1e-6, "{got}");
    }
}
