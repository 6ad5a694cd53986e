//! `--json`: one object a line. Numbers that are not finite (the score of a candidate that is out) are
//! null.

use attune_proto::{
    generator::v1::{Finish, FinishReason, GenerateResponse, Timings, Token, Usage},
    reward::v1::ResolvedGuidance,
};
use serde::Serialize;

use crate::{failure::Failure, stream::Whole};

/// One line of output.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    /// A part of the text.
    Chunk(Chunk<'a>),
    /// All of it; the last line.
    Finish(Box<Finished<'a>>),
    /// It failed; the last line.
    Error(Failed<'a>),
}

/// A response as it came.
#[derive(Debug, Serialize)]
pub(crate) struct Chunk<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<&'a str>,
    text: &'a str,
    tokens: Vec<TokenJson<'a>>,
}

#[derive(Debug, Serialize)]
struct TokenJson<'a> {
    id: u32,
    base_log_prob: f32,
    fused_log_prob: f32,
    guided: bool,
    unguided_id: u32,
    #[serde(skip_serializing_if = "<[f32]>::is_empty")]
    rewards: &'a [f32],
    #[serde(skip_serializing_if = "<[f32]>::is_empty")]
    contributions: &'a [f32],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<CandidateJson<'a>>,
}

#[derive(Debug, Serialize)]
struct CandidateJson<'a> {
    id: u32,
    base_log_prob: f32,
    rewards: &'a [f32],
    contributions: &'a [f32],
    score: f32,
}

/// The whole text.
#[derive(Debug, Serialize)]
pub(crate) struct Finished<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<&'a str>,
    tokens: Vec<u32>,
    text: &'a str,
    finish_reason: &'static str,
    usage: UsageJson,
    timings: TimingsJson,
    seed: u64,
    guidances: Vec<GuidanceJson<'a>>,
}

#[derive(Debug, Default, Serialize)]
struct UsageJson {
    prompt_tokens: u32,
    generated_tokens: u32,
    cached_tokens: u32,
}

#[derive(Debug, Default, Serialize)]
struct TimingsJson {
    queue_seconds: f64,
    prefill_seconds: f64,
    decode_seconds: f64,
    reward_wait_seconds: f64,
}

#[derive(Debug, Serialize)]
struct GuidanceJson<'a> {
    reward_model: &'a str,
    model_revision: &'a str,
    method: &'a str,
    text: Option<&'a str>,
    profile: Option<&'a str>,
    profile_revision: u64,
    weights: Option<&'a [f32]>,
    reference: String,
    normalization: String,
    context: String,
    prompt_token_ids: &'a [u32],
}

/// Why it failed.
#[derive(Debug, Serialize)]
pub(crate) struct Failed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<&'a str>,
    #[serde(flatten)]
    failure: Failure,
}

impl<'a> Event<'a> {
    /// A response as an event. `column` is the comparison's column that it belongs to.
    pub(crate) fn chunk(response: &'a GenerateResponse, column: Option<&'a str>) -> Self {
        let tokens = response.tokens.iter().map(token).collect();
        Self::Chunk(Chunk { column, text: &response.text, tokens })
    }

    /// The end of a text as an event.
    pub(crate) fn finish(whole: &'a Whole, column: Option<&'a str>) -> Self {
        let finish = &whole.finish;
        Self::Finish(Box::new(Finished {
            column,
            tokens: whole.tokens.iter().map(|t| t.id).collect(),
            text: &whole.text,
            finish_reason: reason_name(finish),
            usage: finish.usage.as_ref().map(usage).unwrap_or_default(),
            timings: finish.timings.as_ref().map(timings).unwrap_or_default(),
            seed: finish.seed,
            guidances: finish.guidances.iter().map(guidance).collect(),
        }))
    }

    /// A failure as an event.
    pub(crate) fn error(failure: Failure, column: Option<&'a str>) -> Self {
        Self::Error(Failed { column, failure })
    }

    /// The line, without its end.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// Why a text ended, in a word.
pub(crate) fn reason_name(finish: &Finish) -> &'static str {
    match finish.reason() {
        FinishReason::Eos => "eos",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Unspecified => "unknown",
    }
}

/// `REFERENCE_GENERATOR` as `generator`: an enum's value without the name of its enum.
pub(crate) fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

fn token(token: &Token) -> TokenJson<'_> {
    TokenJson {
        id: token.id,
        base_log_prob: token.base_log_prob,
        fused_log_prob: token.fused_log_prob,
        guided: token.guided,
        unguided_id: token.unguided_id,
        rewards: &token.rewards,
        contributions: &token.contributions,
        candidates: token
            .candidates
            .iter()
            .map(|c| CandidateJson {
                id: c.id,
                base_log_prob: c.base_log_prob,
                rewards: &c.rewards,
                contributions: &c.contributions,
                score: c.score,
            })
            .collect(),
    }
}

fn usage(usage: &Usage) -> UsageJson {
    UsageJson {
        prompt_tokens: usage.prompt_tokens,
        generated_tokens: usage.generated_tokens,
        cached_tokens: usage.cached_tokens,
    }
}

fn timings(timings: &Timings) -> TimingsJson {
    TimingsJson {
        queue_seconds: timings.queue_seconds,
        prefill_seconds: timings.prefill_seconds,
        decode_seconds: timings.decode_seconds,
        reward_wait_seconds: timings.reward_wait_seconds,
    }
}

fn guidance(g: &ResolvedGuidance) -> GuidanceJson<'_> {
    GuidanceJson {
        reward_model: &g.reward_model,
        model_revision: &g.model_revision,
        method: &g.method,
        text: g.text.as_deref(),
        profile: g.profile.as_deref(),
        profile_revision: g.profile_revision,
        weights: g.weights.as_ref().map(|w| w.values.as_slice()),
        reference: short(g.reference().as_str_name(), "REFERENCE_"),
        normalization: short(g.normalization().as_str_name(), "NORMALIZATION_"),
        context: short(g.context().as_str_name(), "CONTEXT_"),
        prompt_token_ids: &g.prompt_token_ids,
    }
}

#[cfg(test)]
mod tests {
    use attune_proto::{
        generator::v1::Candidate,
        reward::v1::{Context, Reference},
    };
    use serde_json::{Value, json};

    use super::*;

    fn parse(event: &Event<'_>) -> Value {
        serde_json::from_str(&event.line().unwrap()).unwrap()
    }

    #[test]
    fn a_chunk_leaves_out_what_was_not_asked_for() {
        let mut token =
            Token { id: 5, base_log_prob: -0.1, unguided_id: 6, guided: true, ..Token::default() };
        let response =
            |token: &Token| GenerateResponse { text: "a".into(), tokens: vec![token.clone()], finish: None };
        assert_eq!(
            Event::chunk(&response(&token), None).line().unwrap(),
            r#"{"event":"chunk","text":"a","tokens":[{"id":5,"base_log_prob":-0.1,"fused_log_prob":0.0,"guided":true,"unguided_id":6}]}"#
        );
        token.rewards = vec![0.5];
        token.contributions = vec![-1.0];
        token.candidates = vec![Candidate { id: 1, score: f32::NEG_INFINITY, ..Candidate::default() }];
        let response = response(&token);
        let line = parse(&Event::chunk(&response, Some("formal")));
        assert_eq!(line["column"], "formal");
        assert_eq!(line["tokens"][0]["rewards"], json!([0.5]));
        assert_eq!(line["tokens"][0]["contributions"], json!([-1.0]));
        assert_eq!(line["tokens"][0]["candidates"][0]["score"], Value::Null);
    }

    #[test]
    fn the_last_object_has_everything() {
        let mut whole = Whole::default();
        whole.add(GenerateResponse {
            text: "hi".into(),
            tokens: vec![Token { id: 1, ..Token::default() }, Token { id: 2, ..Token::default() }],
            finish: Some(Finish {
                reason: FinishReason::Length.into(),
                usage: Some(Usage { prompt_tokens: 3, generated_tokens: 2, cached_tokens: 0 }),
                timings: Some(Timings { decode_seconds: 0.5, ..Timings::default() }),
                seed: u64::MAX,
                guidances: vec![ResolvedGuidance {
                    reference: Reference::Generator.into(),
                    context: Context::AsIs.into(),
                    ..ResolvedGuidance::default()
                }],
            }),
        });
        let line = parse(&Event::finish(&whole, None));
        assert_eq!(line["event"], "finish");
        assert_eq!(line["tokens"], json!([1, 2]));
        assert_eq!(line["text"], "hi");
        assert_eq!(line["finish_reason"], "length");
        assert_eq!(line["usage"]["prompt_tokens"], 3);
        assert_eq!(line["timings"]["decode_seconds"], 0.5);
        assert_eq!(line["seed"], u64::MAX);
        assert_eq!(line["guidances"][0]["reference"], "generator");
        assert_eq!(line["guidances"][0]["context"], "as_is");
    }
}
