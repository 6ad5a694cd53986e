//! A profile as JSON: what `export` writes, `import` reads and `--json` prints.

use anyhow::{Result, ensure};
use attune_proto::{
    profile::v1::{Feedback, FitMethod, FitReport, Pair, Profile, Thumb, feedback},
    reward::v1::{ChatMessage, ChatMessages, Latent, Prompt, Reference, TokenIds, Weights, prompt},
};
use serde::{Deserialize, Serialize};

/// Counts the changes of this form that older commands cannot read.
const FORMAT: u32 = 1;

/// A profile with everything that is known of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProfileFile {
    attune_profile: u32,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<Vec<f32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latent: Option<Vec<f32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<ReferenceName>,
    #[serde(default)]
    model_id: String,
    #[serde(default)]
    model_revision: String,
    #[serde(default)]
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fit: Option<FitJson>,
    #[serde(default)]
    kept_feedback: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    feedback: Vec<FeedbackJson>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ReferenceName {
    Model,
    Generator,
    None,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FitJson {
    method: MethodName,
    feedback: u32,
    held_out: u32,
    accuracy_before: f32,
    accuracy_after: f32,
    loss_before: f32,
    loss_after: f32,
    seconds: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MethodName {
    Weights,
    Latent,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum FeedbackJson {
    Pair {
        prompt: PromptJson,
        chosen: String,
        rejected: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chosen_base_log_prob: Option<f32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rejected_base_log_prob: Option<f32>,
    },
    Thumb {
        prompt: PromptJson,
        answer: String,
        up: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base_log_prob: Option<f32>,
    },
}

/// What was asked: a text is a user's one message.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum PromptJson {
    User(String),
    Messages(Vec<MessageJson>),
    Raw { text: String },
    TokenIds { token_ids: Vec<u32> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct MessageJson {
    role: String,
    content: String,
}

impl ProfileFile {
    /// Of what the server said.
    ///
    /// # Errors
    /// The server sent feedback without a prompt or a verdict.
    pub(crate) fn of(profile: &Profile, feedback: &[Feedback]) -> Result<Self> {
        Ok(Self {
            attune_profile: FORMAT,
            name: profile.name.clone(),
            text: profile.text.clone(),
            weights: profile.weights.as_ref().map(|w| w.values.clone()),
            latent: profile.latent.as_ref().map(|l| l.values.clone()),
            reference: match profile.reference() {
                Reference::Unspecified => None,
                Reference::Model => Some(ReferenceName::Model),
                Reference::Generator => Some(ReferenceName::Generator),
                Reference::None => Some(ReferenceName::None),
            },
            model_id: profile.model_id.clone(),
            model_revision: profile.model_revision.clone(),
            revision: profile.revision,
            created_at: profile.created_at.as_ref().map(timestamp),
            updated_at: profile.updated_at.as_ref().map(timestamp),
            fit: profile.fit.as_ref().map(FitJson::of),
            kept_feedback: profile.kept_feedback,
            feedback: feedback.iter().map(FeedbackJson::of).collect::<Result<_>>()?,
        })
    }

    /// For the server: what it sets itself is left out, save for what an import keeps.
    ///
    /// # Errors
    /// It is of a newer form.
    pub(super) fn profile(self) -> Result<(Profile, Vec<Feedback>)> {
        ensure!(
            self.attune_profile == FORMAT,
            "its form is {}, and this command reads form {FORMAT}: take the command of the version that wrote it",
            self.attune_profile
        );
        let reference = match self.reference {
            None => Reference::Unspecified,
            Some(ReferenceName::Model) => Reference::Model,
            Some(ReferenceName::Generator) => Reference::Generator,
            Some(ReferenceName::None) => Reference::None,
        };
        let profile = Profile {
            name: self.name,
            text: self.text,
            weights: self.weights.map(|values| Weights { values }),
            latent: self.latent.map(|values| Latent { values }),
            reference: reference.into(),
            model_id: self.model_id,
            model_revision: self.model_revision,
            fit: self.fit.map(FitJson::report),
            ..Profile::default()
        };
        Ok((profile, self.feedback.into_iter().map(FeedbackJson::feedback).collect()))
    }
}

impl FitJson {
    fn of(fit: &FitReport) -> Self {
        let method = match fit.method() {
            FitMethod::Unspecified | FitMethod::Weights => MethodName::Weights,
            FitMethod::Latent => MethodName::Latent,
        };
        let &FitReport { feedback, held_out, accuracy_before, accuracy_after, .. } = fit;
        let &FitReport { loss_before, loss_after, seconds, .. } = fit;
        Self { method, feedback, held_out, accuracy_before, accuracy_after, loss_before, loss_after, seconds }
    }

    fn report(self) -> FitReport {
        let method = match self.method {
            MethodName::Weights => FitMethod::Weights,
            MethodName::Latent => FitMethod::Latent,
        };
        let Self { feedback, held_out, accuracy_before, accuracy_after, .. } = self;
        let Self { loss_before, loss_after, seconds, .. } = self;
        let method = method.into();
        FitReport {
            method,
            feedback,
            held_out,
            accuracy_before,
            accuracy_after,
            loss_before,
            loss_after,
            seconds,
        }
    }
}

impl FeedbackJson {
    fn of(feedback: &Feedback) -> Result<Self> {
        let prompt = PromptJson::of(feedback.prompt.as_ref().and_then(|p| p.kind.as_ref()))?;
        match feedback.kind.clone() {
            Some(feedback::Kind::Pair(pair)) => {
                let Pair { chosen, rejected, chosen_base_log_prob, rejected_base_log_prob } = pair;
                Ok(Self::Pair { prompt, chosen, rejected, chosen_base_log_prob, rejected_base_log_prob })
            }
            Some(feedback::Kind::Thumb(Thumb { answer, up, base_log_prob })) => {
                Ok(Self::Thumb { prompt, answer, up, base_log_prob })
            }
            None => anyhow::bail!("the server sent feedback of a kind that this command does not know"),
        }
    }

    fn feedback(self) -> Feedback {
        let (prompt, kind) = match self {
            Self::Pair { prompt, chosen, rejected, chosen_base_log_prob, rejected_base_log_prob } => {
                let pair = Pair { chosen, rejected, chosen_base_log_prob, rejected_base_log_prob };
                (prompt, feedback::Kind::Pair(pair))
            }
            Self::Thumb { prompt, answer, up, base_log_prob } => {
                (prompt, feedback::Kind::Thumb(Thumb { answer, up, base_log_prob }))
            }
        };
        Feedback { prompt: Some(prompt.prompt()), kind: Some(kind) }
    }
}

impl PromptJson {
    fn of(kind: Option<&prompt::Kind>) -> Result<Self> {
        Ok(match kind {
            Some(prompt::Kind::Messages(all)) => match all.messages.as_slice() {
                [one] if one.role == "user" => Self::User(one.content.clone()),
                all => Self::Messages(
                    all.iter()
                        .map(|m| MessageJson { role: m.role.clone(), content: m.content.clone() })
                        .collect(),
                ),
            },
            Some(prompt::Kind::Text(text)) => Self::Raw { text: text.clone() },
            Some(prompt::Kind::TokenIds(ids)) => Self::TokenIds { token_ids: ids.ids.clone() },
            None => anyhow::bail!("the server sent feedback without what was asked"),
        })
    }

    fn prompt(self) -> Prompt {
        let message = |role: String, content: String| ChatMessage { role, content };
        let kind = match self {
            Self::User(text) => {
                let messages = vec![message("user".to_owned(), text)];
                prompt::Kind::Messages(ChatMessages { messages })
            }
            Self::Messages(all) => {
                let messages = all.into_iter().map(|m| message(m.role, m.content)).collect();
                prompt::Kind::Messages(ChatMessages { messages })
            }
            Self::Raw { text } => prompt::Kind::Text(text),
            Self::TokenIds { token_ids } => prompt::Kind::TokenIds(TokenIds { ids: token_ids }),
        };
        Prompt { kind: Some(kind) }
    }
}

/// A time in RFC 3339, UTC.
pub(super) fn timestamp(time: &prost_types::Timestamp) -> String {
    match jiff::Timestamp::new(time.seconds, time.nanos) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{} s after 1970", time.seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feedback() -> Vec<Feedback> {
        let prompt = |kind| Some(Prompt { kind: Some(kind) });
        let message = |role: &str| ChatMessage { role: role.into(), content: "How?".into() };
        let pair = Pair {
            chosen: "a".into(),
            rejected: "b".into(),
            chosen_base_log_prob: Some(-1.1),
            ..Pair::default()
        };
        let pair = Some(feedback::Kind::Pair(pair));
        let thumb = Some(feedback::Kind::Thumb(Thumb { answer: "a".into(), up: true, base_log_prob: None }));
        let messages = |roles: &[&str]| {
            prompt::Kind::Messages(ChatMessages { messages: roles.iter().map(|r| message(r)).collect() })
        };
        vec![
            Feedback { prompt: prompt(messages(&["user"])), kind: pair.clone() },
            Feedback { prompt: prompt(messages(&["system", "user"])), kind: thumb },
            Feedback { prompt: prompt(prompt::Kind::Text("raw".into())), kind: pair.clone() },
            Feedback { prompt: prompt(prompt::Kind::TokenIds(TokenIds { ids: vec![1, 2] })), kind: pair },
        ]
    }

    #[test]
    fn all_of_it_comes_back() {
        let profile = Profile {
            name: "me".into(),
            text: Some("brief\n\"please\"".into()),
            weights: Some(Weights { values: vec![0.1, f32::MIN_POSITIVE, -3.000_000_2] }),
            reference: Reference::Generator.into(),
            model_id: "taste".into(),
            model_revision: "f1".into(),
            fit: Some(FitReport {
                method: FitMethod::Latent.into(),
                accuracy_after: 0.9,
                ..FitReport::default()
            }),
            ..Profile::default()
        };
        let kept = Profile {
            revision: 3,
            kept_feedback: 4,
            created_at: Some(prost_types::Timestamp { seconds: 0, nanos: 1000 }),
            ..profile.clone()
        };
        let text = serde_json::to_string_pretty(&ProfileFile::of(&kept, &feedback()).unwrap()).unwrap();
        assert!(
            text.contains("1970-01-01T00:00:00.000001Z") && text.contains("\"prompt\": \"How?\""),
            "{text}"
        );
        let file: ProfileFile = serde_json::from_str(&text).unwrap();
        assert_eq!(file.profile().unwrap(), (profile, feedback()));
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let read = |text: &str| serde_json::from_str::<ProfileFile>(text).map_err(|e| e.to_string());
        assert!(read(r#"{"attune_profile": 1, "name": "me", "txet": "x"}"#).unwrap_err().contains("txet"));
        assert!(read(r#"{"name": "me"}"#).unwrap_err().contains("attune_profile"));
        let newer =
            read(r#"{"attune_profile": 2, "name": "me"}"#).unwrap().profile().unwrap_err().to_string();
        assert!(newer.contains("form is 2"), "{newer}");
    }
}
