//! From a client's message to a `ValidRequest`: another type, with every default resolved, so that
//! nothing behind this file checks or guesses again.

use attune_engine::{Assets, Message, PreferenceTemplate};
use attune_guidance::MAX_CANDIDATES;
use attune_proto::{
    LINEAR_ALIGNMENT,
    generator::v1::{BaseContext, GenerateRequest, GuidanceTerm, OnRewardLoss, OutputOptions, Sampling},
    reward::v1::{ChatMessage, ChatMessages, Guidance, Prompt, prompt::Kind},
};
use attune_service::status::Violation;

/// The most guidances of one request.
pub(crate) const MAX_GUIDANCES: usize = 16;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
const MAX_BIASES: usize = 1024;

/// What the server allows and assumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most tokens that a request may generate.
    pub(crate) max_tokens: u32,
    /// The longest sequence that the cache can hold at all.
    pub(crate) cache_tokens: usize,
}

/// A request that can be served, whole and consistent.
#[derive(Debug, Clone)]
pub(crate) struct ValidRequest {
    /// The prompt as it came, for the reward workers.
    pub(crate) prompt: Prompt,
    /// The prompt as the base model reads it; at least one token.
    pub(crate) prompt_ids: Vec<u32>,
    /// Tokens of an interrupted text that this request goes on with.
    pub(crate) resumed: Vec<u32>,
    /// The preferences that act.
    pub(crate) guidances: Vec<ValidGuidance>,
    /// How tokens are chosen.
    pub(crate) sampling: ValidSampling,
    /// Texts that end the generation.
    pub(crate) stop: Vec<String>,
    /// Whether to go on without guidance when no worker is left.
    pub(crate) continue_unguided: bool,
    /// What each token carries.
    pub(crate) output: OutputOptions,
}

/// One preference with its strength.
#[derive(Debug, Clone)]
pub(crate) struct ValidGuidance {
    /// As the worker shall resolve it.
    pub(crate) guidance: Guidance,
    /// Finite, in [-10, 10].
    pub(crate) strength: f32,
    /// Above 0. `None`: no limit.
    pub(crate) clip: Option<f32>,
    /// The weights that its worker must have. `None`: any.
    pub(crate) revision: Option<String>,
}

/// How tokens are chosen, every default resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ValidSampling {
    /// 0 is greedy.
    pub(crate) temperature: f32,
    /// `k`, 1 to 64, at most the vocabulary.
    pub(crate) candidates: usize,
    /// In (0, 1].
    pub(crate) top_p: f32,
    /// In [0, 1].
    pub(crate) min_p: f32,
    /// The seed of the noise.
    pub(crate) seed: u64,
    /// The most tokens of the text, those resumed included; prompt and text fit the context.
    pub(crate) max_tokens: usize,
    /// End-of-text is masked before this many.
    pub(crate) min_tokens: usize,
    /// What ends a text; empty with `ignore_eos`.
    pub(crate) eos: Vec<u32>,
    /// 1: none.
    pub(crate) repetition_penalty: f32,
    /// By token id.
    pub(crate) bias: Vec<(u32, f32)>,
}

impl ValidRequest {
    /// Checks a request against the model and the limits. `draw` gives a seed where none was asked for.
    ///
    /// # Errors
    /// Every violation found, with its field and the allowed range.
    pub(crate) fn new(
        request: GenerateRequest,
        assets: &Assets,
        limits: Limits,
        draw: impl FnOnce() -> u64,
    ) -> Result<Self, Vec<Violation>> {
        let mut check = Checker::default();
        let vocab = assets.config.vocab;
        let guidances = check.guidances(request.guidances, &assets.revision);
        let with_preference = request.base_context == BaseContext::WithPreference as i32;
        if with_preference && guidances.iter().any(|g| g.guidance.method == LINEAR_ALIGNMENT) {
            let problem = format!("must be PLAIN for method `{LINEAR_ALIGNMENT}`, which contrasts the two");
            check.fail("base_context", problem);
        }
        let preferences: Vec<&str> = if with_preference {
            guidances.iter().filter_map(|g| g.guidance.text.as_deref()).collect()
        } else {
            Vec::new()
        };
        let prompt_ids = check.prompt(request.prompt.as_ref(), assets, &preferences);
        let resume = request.resume.unwrap_or_default();
        check.token_ids("resume.token_ids", &resume.token_ids, vocab);
        let sampling = request.sampling.unwrap_or_default();
        let seed = resume.seed.or(sampling.seed).unwrap_or_else(draw);
        let stop = check.stop(&sampling.stop);
        let room = assets.config.context.min(limits.cache_tokens).saturating_sub(prompt_ids.len());
        if !prompt_ids.is_empty() && room == 0 {
            let (context, cache) = (assets.config.context, limits.cache_tokens);
            check.fail(
                "prompt",
                format!(
                    "has {} tokens; it must leave room for at least one more in a context of {}",
                    prompt_ids.len(),
                    context.min(cache)
                ),
            );
        }
        let sampling = check.sampling(sampling, assets, seed, room.min(limits.max_tokens as usize));
        if room > 0 && resume.token_ids.len() >= sampling.max_tokens {
            let (have, most) = (resume.token_ids.len(), sampling.max_tokens);
            check.fail(
                "resume.token_ids",
                format!("has {have} ids; max_tokens {most} leaves nothing to generate"),
            );
        }
        match (check.violations.is_empty(), request.prompt) {
            (true, Some(prompt)) => Ok(Self {
                prompt,
                prompt_ids,
                resumed: resume.token_ids,
                guidances,
                sampling,
                stop,
                continue_unguided: request.on_reward_loss == OnRewardLoss::ContinueUnguided as i32,
                output: request.output.unwrap_or_default(),
            }),
            _ => Err(check.violations),
        }
    }
}

#[derive(Default)]
struct Checker {
    violations: Vec<Violation>,
}

impl Checker {
    fn fail(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.violations.push(Violation::new(field, description));
    }

    /// The number if it lies in the range, else the default and a violation.
    fn number(
        &mut self,
        field: &str,
        value: Option<f32>,
        default: f32,
        range: &str,
        ok: fn(f32) -> bool,
    ) -> f32 {
        match value {
            Some(v) if ok(v) => v,
            Some(v) => {
                self.fail(field, format!("is {v}; it must be {range}"));
                default
            }
            None => default,
        }
    }

    /// The terms, each with its strength; `base` is the revision of the base model's weights.
    fn guidances(&mut self, terms: Vec<GuidanceTerm>, base: &str) -> Vec<ValidGuidance> {
        if terms.len() > MAX_GUIDANCES {
            self.fail(
                "guidances",
                format!("has {} entries; at most {MAX_GUIDANCES} are allowed", terms.len()),
            );
            return Vec::new();
        }
        let mut valid = Vec::with_capacity(terms.len());
        for (i, term) in terms.into_iter().enumerate() {
            let field = |name: &str| format!("guidances[{i}].{name}");
            let strength = self.number(&field("strength"), term.strength, 1.0, "in [-10, 10]", |s| {
                (-10.0..=10.0).contains(&s)
            });
            let clip = term.clip.map(|clip| {
                self.number(&field("clip"), Some(clip), 1.0, "finite and above 0", |c| {
                    c.is_finite() && c > 0.0
                })
            });
            match term.guidance {
                Some(guidance) => {
                    let weights = guidance.weights.iter().flat_map(|w| &w.values);
                    if !{ weights }.all(|w| w.is_finite()) {
                        self.fail(field("guidance.weights"), "must be finite numbers");
                    }
                    let latent = guidance.latent.iter().flat_map(|z| &z.values);
                    if !{ latent }.all(|z| z.is_finite()) {
                        self.fail(field("guidance.latent"), "must be finite numbers");
                    }
                    // It contrasts a model with itself.
                    let revision = (guidance.method == LINEAR_ALIGNMENT).then(|| base.to_owned());
                    valid.push(ValidGuidance { guidance: *guidance, strength, clip, revision });
                }
                None => self.fail(field("guidance"), "is required"),
            }
        }
        valid
    }

    fn prompt(&mut self, prompt: Option<&Prompt>, assets: &Assets, preferences: &[&str]) -> Vec<u32> {
        let encoded = match prompt.and_then(|p| p.kind.as_ref()) {
            None => Err("is required: one of messages, text, token_ids".to_owned()),
            Some(Kind::TokenIds(ids)) => {
                if !preferences.is_empty() {
                    self.fail("base_context", "WITH_PREFERENCE needs a prompt of messages or text");
                }
                self.token_ids("prompt.token_ids.ids", &ids.ids, assets.config.vocab);
                Ok(ids.ids.clone())
            }
            Some(Kind::Text(text)) if text.is_empty() => Err("is empty".to_owned()),
            Some(Kind::Text(text)) => encode_text(assets, text, preferences),
            Some(Kind::Messages(messages)) => encode_messages(assets, messages, preferences),
        };
        match encoded {
            Ok(ids) if ids.is_empty() => {
                self.fail("prompt", "is empty");
                ids
            }
            Ok(ids) => ids,
            Err(problem) => {
                self.fail("prompt", problem);
                Vec::new()
            }
        }
    }

    fn token_ids(&mut self, field: &str, ids: &[u32], vocab: usize) {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            self.fail(field, format!("has id {id}; ids must be below the vocabulary size {vocab}"));
        }
    }

    fn stop(&mut self, stops: &[String]) -> Vec<String> {
        if stops.len() > MAX_STOPS {
            self.fail(
                "sampling.stop",
                format!("has {} entries; at most {MAX_STOPS} are allowed", stops.len()),
            );
        }
        if stops.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            self.fail("sampling.stop", format!("entries must have 1 to {MAX_STOP_BYTES} bytes"));
        }
        stops.to_vec()
    }

    fn sampling(&mut self, s: Sampling, assets: &Assets, seed: u64, room: usize) -> ValidSampling {
        let vocab = assets.config.vocab;
        let most = MAX_CANDIDATES.min(vocab);
        let candidates = s.candidates.map_or(10.min(most), |k| k as usize);
        if !(1..=most).contains(&candidates) {
            self.fail("sampling.candidates", format!("is {candidates}; it must be in 1..={most}"));
        }
        let max_tokens = s.max_tokens.map_or(room, |n| n as usize);
        if max_tokens == 0 && (room > 0 || s.max_tokens.is_some()) {
            self.fail("sampling.max_tokens", "is 0; it must be at least 1");
        }
        if s.logit_bias.len() > MAX_BIASES {
            self.fail(
                "sampling.logit_bias",
                format!("has {} entries; at most {MAX_BIASES}", s.logit_bias.len()),
            );
        }
        let mut bias: Vec<(u32, f32)> = s.logit_bias.into_iter().collect();
        bias.sort_by_key(|entry| entry.0);
        let ids: Vec<u32> = bias.iter().map(|entry| entry.0).collect();
        self.token_ids("sampling.logit_bias", &ids, vocab);
        if let Some((id, b)) = bias.iter().find(|(_, b)| !(-100.0..=100.0).contains(b)) {
            self.fail("sampling.logit_bias", format!("of id {id} is {b}; it must be in [-100, 100]"));
        }
        ValidSampling {
            temperature: self.number("sampling.temperature", s.temperature, 0.0, "in [0, 100]", |t| {
                (0.0..=100.0).contains(&t)
            }),
            candidates,
            top_p: self.number("sampling.top_p", s.top_p, 1.0, "in (0, 1]", |p| p > 0.0 && p <= 1.0),
            min_p: self.number("sampling.min_p", s.min_p, 0.0, "in [0, 1]", |p| (0.0..=1.0).contains(&p)),
            seed,
            max_tokens: max_tokens.min(room),
            min_tokens: s.min_tokens as usize,
            eos: if s.ignore_eos { Vec::new() } else { assets.eos.clone() },
            repetition_penalty: self.number(
                "sampling.repetition_penalty",
                s.repetition_penalty,
                1.0,
                "in (0, 10]",
                |p| p > 0.0 && p <= 10.0,
            ),
            bias,
        }
    }
}

fn encode_text(assets: &Assets, text: &str, preferences: &[&str]) -> Result<Vec<u32>, String> {
    let text = match preferences {
        [] => text.to_owned(),
        some => default_template()?.apply_text(text, &some.join("; ")).map_err(|e| e.to_string())?,
    };
    assets.tokenizer.encode_raw(&text).map_err(|e| e.to_string())
}

fn encode_messages(
    assets: &Assets,
    messages: &ChatMessages,
    preferences: &[&str],
) -> Result<Vec<u32>, String> {
    if messages.messages.is_empty() {
        return Err("is empty: at least one message is required".to_owned());
    }
    let convert = |m: &ChatMessage| Message { role: m.role.clone(), content: m.content.clone() };
    let mut messages: Vec<Message> = messages.messages.iter().map(convert).collect();
    if !preferences.is_empty() {
        messages =
            default_template()?.apply(&messages, &preferences.join("; ")).map_err(|e| e.to_string())?;
    }
    let text = assets.chat.render(&messages, true).map_err(|e| e.to_string())?;
    assets.tokenizer.encode_rendered(&text).map_err(|e| e.to_string())
}

fn default_template() -> Result<PreferenceTemplate, String> {
    PreferenceTemplate::new(None).map_err(|e| e.to_string())
}
