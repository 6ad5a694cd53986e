//! From flags to a request. Ranges are the server's to check: it knows the model, and its answer names
//! the field.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use attune_proto::{
    generator::v1::{
        BaseContext, GenerateRequest, GuidanceTerm, OnRewardLoss, OutputOptions, Resume, Sampling,
    },
    reward::v1::{
        ChatMessage, ChatMessages, Context, Guidance, Normalization, Prompt, Reference, TokenIds, Weights,
        prompt,
    },
};

use crate::request_args::{DetailArgs, GuidanceArgs, PromptArgs, SamplingArgs};

impl PromptArgs {
    /// The prompt; `-` is read from `stdin`.
    pub(crate) fn prompt(&self, stdin: impl FnOnce() -> std::io::Result<String>) -> Result<Prompt> {
        let kind = if !self.prompt_ids.is_empty() {
            prompt::Kind::TokenIds(TokenIds { ids: self.prompt_ids.clone() })
        } else if let Some(text) = &self.text {
            prompt::Kind::Text(text.clone())
        } else {
            let mut content = self.prompt.clone().unwrap_or_default();
            if content == "-" {
                content = stdin().context("cannot read the prompt from stdin")?;
                content.truncate(content.trim_end().len());
            }
            let message = |role: &str, content: String| ChatMessage { role: role.to_owned(), content };
            let system = self.system.clone().map(|text| message("system", text));
            let messages = system.into_iter().chain([message("user", content)]).collect();
            prompt::Kind::Messages(ChatMessages { messages })
        };
        Ok(Prompt { kind: Some(kind) })
    }
}

impl GuidanceArgs {
    /// Whether anything of a guidance is asked for.
    fn any(&self) -> bool {
        !self.prefer.is_empty()
            || !self.strength.is_empty()
            || self.clip.is_some()
            || self.weights.is_some()
            || !self.profile.is_empty()
            || !self.reward_model.is_empty()
            || self.method.is_some()
            || self.reference.is_some()
            || self.normalization.is_some()
            || self.guide_context.is_some()
    }

    /// One term for each preference, then one for each profile; a single one without words where other guidance is
    /// asked for.
    pub(crate) fn terms(&self) -> Result<Vec<GuidanceTerm>> {
        if !self.any() {
            return Ok(Vec::new());
        }
        // Without words, one for each reward model: an expert is its own preference.
        let texts = self.prefer.iter().cloned().map(|text| (Some(text), None));
        let profiles = self.profile.iter().cloned().map(|name| (None, Some(name)));
        let mut tastes: Vec<(Option<String>, Option<String>)> = texts.chain(profiles).collect();
        if tastes.is_empty() {
            tastes = vec![(None, None); self.reward_model.len().max(1)];
        }
        for (what, flag, count) in [
            ("strengths", "--strength", self.strength.len()),
            ("reward models", "--reward-model", self.reward_model.len()),
        ] {
            if count > 1 && count != tastes.len() {
                bail!(
                    "{count} {what} for {} guidances: give one {flag} for all, or one for each --prefer and each --profile",
                    tastes.len()
                );
            }
        }
        let weights = self.weights.as_deref().map(read_weights).transpose()?;
        let term = |(i, (text, profile))| GuidanceTerm {
            guidance: Some(Box::new(Guidance {
                reward_model: of_each(&self.reward_model, i).unwrap_or_default(),
                method: self.method.clone().unwrap_or_default(),
                text,
                profile,
                weights: weights.clone(),
                reference: self.reference.map_or(Reference::Unspecified, Into::into).into(),
                normalization: self.normalization.map_or(Normalization::Unspecified, Into::into).into(),
                context: self.guide_context.map_or(Context::Unspecified, Into::into).into(),
                latent: None,
            })),
            strength: of_each(&self.strength, i),
            clip: self.clip,
        };
        Ok(tastes.into_iter().enumerate().map(term).collect())
    }
}

/// The value for guidance `i`, of one for all or one for each.
fn of_each<T: Clone>(values: &[T], i: usize) -> Option<T> {
    match values {
        [one] => Some(one.clone()),
        each => each.get(i).cloned(),
    }
}

/// Numbers with commas, or a JSON file: a list, or an object with the list under `weights` or `values`.
pub(crate) fn read_weights(text: &str) -> Result<Weights> {
    let numbers: Result<Vec<f32>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    if let Ok(values) = numbers {
        return Ok(Weights { values });
    }
    if !Path::new(text).exists() {
        bail!("--weights {text} is neither numbers with commas nor a file");
    }
    let json = fs::read_to_string(text).with_context(|| format!("cannot read --weights {text}"))?;
    let value: serde_json::Value =
        serde_json::from_str(&json).with_context(|| format!("--weights {text} is no JSON"))?;
    let list = match &value {
        serde_json::Value::Object(fields) => fields.get("weights").or_else(|| fields.get("values")),
        _ => Some(&value),
    };
    let values = list
        .and_then(|list| serde_json::from_value(list.clone()).ok())
        .with_context(|| format!("--weights {text} holds no list of numbers (nor one under \"weights\")"))?;
    Ok(Weights { values })
}

impl SamplingArgs {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            candidates: self.candidates,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens.unwrap_or_default(),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.iter().copied().collect::<HashMap<_, _>>(),
        }
    }
}

/// The request for these terms.
pub(crate) fn build(
    prompt: Prompt,
    guidances: Vec<GuidanceTerm>,
    guidance: &GuidanceArgs,
    sampling: &SamplingArgs,
    details: &DetailArgs,
) -> GenerateRequest {
    let resume = (!sampling.resume_ids.is_empty())
        .then(|| Resume { token_ids: sampling.resume_ids.clone(), seed: sampling.seed });
    let output =
        OutputOptions { token_rewards: details.token_rewards, candidate_tables: details.candidate_tables };
    GenerateRequest {
        prompt: Some(prompt),
        guidances,
        base_context: guidance.base_context.map_or(BaseContext::Unspecified, Into::into).into(),
        sampling: Some(sampling.sampling()),
        on_reward_loss: guidance.on_reward_loss.map_or(OnRewardLoss::Unspecified, Into::into).into(),
        resume,
        output: (output.token_rewards || output.candidate_tables).then_some(output),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::request_args::{BaseContextArg, GuideContextArg, OnRewardLossArg, ReferenceArg, bias};

    fn no_stdin() -> std::io::Result<String> {
        panic!("stdin is not asked for")
    }

    #[test]
    fn prompts_of_each_kind() {
        let args = PromptArgs { prompt: Some("hi".into()), system: Some("s".into()), ..Default::default() };
        let Some(prompt::Kind::Messages(m)) = args.prompt(no_stdin).unwrap().kind else { panic!() };
        let said: Vec<_> = m.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(said, [("system", "s"), ("user", "hi")]);
        let args = PromptArgs { prompt: Some("-".into()), ..Default::default() };
        let Some(prompt::Kind::Messages(m)) = args.prompt(|| Ok("piped\n".into())).unwrap().kind else {
            panic!()
        };
        assert_eq!(m.messages[0].content, "piped");
        let args = PromptArgs { text: Some("raw".into()), ..Default::default() };
        assert_eq!(args.prompt(no_stdin).unwrap().kind, Some(prompt::Kind::Text("raw".into())));
        let args = PromptArgs { prompt_ids: vec![1, 2], ..Default::default() };
        let Some(prompt::Kind::TokenIds(ids)) = args.prompt(no_stdin).unwrap().kind else { panic!() };
        assert_eq!(ids.ids, [1, 2]);
    }

    #[test]
    fn no_guidance_unless_asked_for() {
        assert!(GuidanceArgs::default().terms().unwrap().is_empty());
        let base = GuidanceArgs {
            base_context: Some(BaseContextArg::Plain),
            on_reward_loss: Some(OnRewardLossArg::Fail),
            ..Default::default()
        };
        assert!(base.terms().unwrap().is_empty());
    }

    #[test]
    fn a_reference_alone_is_a_guidance_without_words() {
        let args = GuidanceArgs {
            reference: Some(ReferenceArg::Generator),
            guide_context: Some(GuideContextArg::AsIs),
            strength: vec![0.8],
            ..Default::default()
        };
        let terms = args.terms().unwrap();
        let guidance = terms[0].guidance.as_ref().unwrap();
        assert_eq!(terms.len(), 1);
        assert_eq!(terms[0].strength, Some(0.8));
        assert_eq!(guidance.text, None);
        assert_eq!(guidance.reference(), Reference::Generator);
        assert_eq!(guidance.context(), Context::AsIs);
        assert_eq!(guidance.normalization(), Normalization::Unspecified);
    }

    #[test]
    fn strengths_pair_by_order_or_serve_all() {
        let prefer = vec!["a".to_owned(), "b".to_owned()];
        let with = |strength: &[f32]| {
            let args =
                GuidanceArgs { prefer: prefer.clone(), strength: strength.to_vec(), ..Default::default() };
            args.terms().map(|t| t.iter().map(|t| t.strength).collect::<Vec<_>>())
        };
        assert_eq!(with(&[]).unwrap(), [None, None]);
        assert_eq!(with(&[2.0]).unwrap(), [Some(2.0), Some(2.0)]);
        assert_eq!(with(&[2.0, -1.0]).unwrap(), [Some(2.0), Some(-1.0)]);
        assert!(with(&[1.0, 2.0, 3.0]).unwrap_err().to_string().contains("3 strengths for 2"));
    }

    #[test]
    fn profiles_stand_beside_words() {
        let args = GuidanceArgs {
            prefer: vec!["brief".into()],
            profile: vec!["me".into(), "work".into()],
            strength: vec![1.0, 2.0, 3.0],
            ..Default::default()
        };
        let terms = args.terms().unwrap();
        let tastes: Vec<_> = terms
            .iter()
            .map(|t| (t.guidance.as_ref().unwrap(), t.strength))
            .map(|(g, strength)| (g.text.as_deref(), g.profile.as_deref(), strength))
            .collect();
        assert_eq!(
            tastes,
            [
                (Some("brief"), None, Some(1.0)),
                (None, Some("me"), Some(2.0)),
                (None, Some("work"), Some(3.0)),
            ]
        );
    }

    #[test]
    fn experts_need_no_words() {
        let experts = vec!["brief".to_owned(), "formal".to_owned()];
        let args = GuidanceArgs { reward_model: experts.clone(), strength: vec![0.5], ..Default::default() };
        let terms = args.terms().unwrap();
        let models: Vec<_> = terms.iter().map(|t| t.guidance.clone().unwrap().reward_model).collect();
        assert_eq!((models, terms[1].strength), (experts.clone(), Some(0.5)));
        let args = GuidanceArgs { prefer: vec!["a".into(); 3], reward_model: experts, ..Default::default() };
        assert!(args.terms().unwrap_err().to_string().contains("2 reward models for 3"));
    }

    #[test]
    fn weights_are_numbers_or_a_file() {
        assert_eq!(read_weights("1,-2.5, 3").unwrap().values, [1.0, -2.5, 3.0]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"weights\": [0.5, 1]}").unwrap();
        assert_eq!(read_weights(file.path().to_str().unwrap()).unwrap().values, [0.5, 1.0]);
        assert!(read_weights("nowhere.json").unwrap_err().to_string().contains("neither"));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"other\": 1}").unwrap();
        assert!(read_weights(file.path().to_str().unwrap()).unwrap_err().to_string().contains("no list"));
    }

    #[test]
    fn sampling_is_passed_on_as_given() {
        let sampling = SamplingArgs {
            temperature: Some(f32::NAN),
            candidates: Some(65),
            resume_ids: vec![7],
            seed: Some(u64::MAX),
            logit_bias: vec![(3, -1.0)],
            ..Default::default()
        };
        let request =
            build(Prompt::default(), Vec::new(), &GuidanceArgs::default(), &sampling, &DetailArgs::default());
        let sent = request.sampling.unwrap();
        assert!(sent.temperature.unwrap().is_nan());
        assert_eq!(sent.candidates, Some(65));
        assert_eq!(sent.logit_bias[&3], -1.0);
        assert_eq!(request.resume.unwrap().seed, Some(u64::MAX));
        assert_eq!(request.output, None);
        assert_eq!(bias("3=-1").unwrap(), (3, -1.0));
        assert!(bias("3").is_err());
    }
}
