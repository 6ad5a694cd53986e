//! From a guidance as asked for to one with everything settled, or to the field at fault.

use std::sync::Arc;

use attune_engine::{DefaultReference, Message, PersRm, WeightsForm};
use attune_profiles::{Profile, Vector};
use attune_proto::reward::v1::{
    Context, FailureReason, Guidance, Latent, Normalization, Prompt, Reference, ResolvedGuidance, Weights,
    open::By, prompt::Kind,
};

use crate::{failure::Failure, method::Method, profiles::wire};

/// The most tokens of a preference text that the weight head reads: it is read whole, between two
/// passes of the others.
const HEAD_TOKENS: usize = 512;

/// Encodes prompts and checks guidances. It runs no model.
pub(crate) struct Resolver {
    persrm: Arc<PersRm>,
    /// Whether people's texts may stand in the log.
    log_content: bool,
}

/// A guidance with everything settled but what needs the model.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// What the session runs with.
    pub(crate) guidance: ResolvedGuidance,
    /// The preference text's ids, where `w_p` is still to be read off it by the weight head.
    pub(crate) head_text: Option<Vec<u32>>,
}

impl Resolver {
    /// For one model. `log_content`: people's texts may stand in the log.
    pub(crate) fn new(persrm: Arc<PersRm>, log_content: bool) -> Self {
        Self { persrm, log_content }
    }

    /// The references offered, the default first.
    pub(crate) fn references(persrm: &PersRm) -> Vec<Reference> {
        let default = match persrm.default_reference {
            DefaultReference::Model => Reference::Model,
            DefaultReference::Generator => Reference::Generator,
            DefaultReference::None => Reference::None,
        };
        let offered = [Reference::Model, Reference::Generator, Reference::None];
        let others = offered
            .into_iter()
            .filter(|&r| r != default && (r != Reference::Model || persrm.has_reference()));
        std::iter::once(default).chain(others).collect()
    }

    /// Settles what a session runs with.
    ///
    /// # Errors
    /// Names the field of the guidance, or `prompt`, and the allowed range.
    pub(crate) fn resolve(
        &self,
        prompt: Option<Prompt>,
        by: Option<By>,
        profile: Option<Result<Profile, Failure>>,
    ) -> Result<Resolved, Failure> {
        if self.log_content {
            tracing::debug!(?prompt, ?by, "a session is opened");
        }
        match by {
            None => Err(Failure::invalid("", "neither `guidance` nor `resolved` is set; set one")),
            Some(By::Guidance(guidance)) => self.settle(prompt, guidance, profile),
            Some(By::Resolved(guidance)) => {
                self.check_resolved(&guidance)?;
                Ok(Resolved { guidance, head_text: None })
            }
        }
    }

    fn settle(
        &self,
        prompt: Option<Prompt>,
        mut guidance: Guidance,
        profile: Option<Result<Profile, Failure>>,
    ) -> Result<Resolved, Failure> {
        self.check_model(&guidance.reward_model)?;
        let method = Method::named(&guidance.method, &self.persrm)?;
        let profile_revision = match (&guidance.profile, profile) {
            (None, _) => 0,
            (Some(_), Some(profile)) => self.join(&mut guidance, profile?)?,
            (Some(_), None) => {
                let message = "this worker keeps no profiles; its operator can set `profiles.url`";
                return Err(Failure::new(FailureReason::Precondition, message).at("profile"));
            }
        };
        let guidance = method.fix(guidance)?;
        self.check_person(guidance.weights.as_ref(), guidance.latent.as_ref())?;
        let reference = match self.known::<Reference>(guidance.reference, "reference")? {
            Reference::Unspecified => Self::references(&self.persrm)[0],
            asked => self.offered(asked)?,
        };
        let normalization = match self.known::<Normalization>(guidance.normalization, "normalization")? {
            Normalization::Unspecified => Normalization::Candidates,
            asked => asked,
        };
        // A blank preference is none.
        let text = guidance.text.filter(|t| !t.trim().is_empty());
        let form = match (&text, &guidance.weights, &guidance.latent) {
            (Some(_), None, None) if method.is_weighted() => self.persrm.weights_form(),
            _ => WeightsForm::Ones,
        };
        let asked = self.known::<Context>(guidance.context, "context")?;
        let kind = prompt.and_then(|p| p.kind).ok_or_else(|| {
            Failure::invalid("prompt", "the prompt is absent; send messages, text or token ids")
        })?;
        let context = context(asked, &kind, text.is_some(), form != WeightsForm::Ones)?;
        let reads_weights = match form {
            WeightsForm::Ones => false,
            WeightsForm::Head => true,
            WeightsForm::HeadAsIs => context == Context::AsIs,
        };
        let preference = text.as_deref().filter(|_| context == Context::Template);
        let prompt_token_ids = self.encode(kind, preference)?;
        let head_text = match text.as_deref().filter(|_| reads_weights) {
            Some(text) => Some(self.head_text(text)?),
            None => None,
        };
        let guidance = ResolvedGuidance {
            reward_model: self.persrm.assets.id.clone(),
            model_revision: self.persrm.assets.revision.clone(),
            method: method.name().to_owned(),
            text,
            profile: guidance.profile,
            profile_revision,
            weights: guidance.weights,
            reference: reference.into(),
            normalization: normalization.into(),
            context: context.into(),
            prompt_token_ids,
            latent: guidance.latent,
        };
        Ok(Resolved { guidance, head_text })
    }

    /// Puts a profile into a guidance, whose own words and numbers go before the profile's. Gives its revision.
    fn join(&self, guidance: &mut Guidance, profile: Profile) -> Result<u64, Failure> {
        let content = profile.content;
        if guidance.text.as_deref().is_none_or(|text| text.trim().is_empty()) {
            guidance.text = content.text;
        }
        if let (None, None, Some(vector)) = (&guidance.weights, &guidance.latent, content.vector) {
            let (made, serves) = (&content.model, &self.persrm.assets);
            if made.revision != serves.revision {
                let message = format!(
                    "the profile was made for the reward model `{}` with fingerprint {}; this worker serves `{}` with \
                     fingerprint {}: fit it again (`attune profile refit`)",
                    made.id, made.revision, serves.id, serves.revision
                );
                return Err(Failure::new(FailureReason::Precondition, message).at("profile"));
            }
            match vector {
                Vector::Weights(values) => guidance.weights = Some(Weights { values }),
                Vector::Latent(values) => guidance.latent = Some(Latent { values }),
            }
            if guidance.reference == i32::from(Reference::Unspecified) {
                guidance.reference = wire::reference(content.reference).into();
            }
        }
        Ok(profile.revision)
    }

    /// The prompt's ids, the preference put in by the model's own template.
    ///
    /// # Errors
    /// INVALID: it cannot be encoded, or there is nothing of it.
    pub(crate) fn encode(&self, kind: Kind, preference: Option<&str>) -> Result<Vec<u32>, Failure> {
        let assets = &self.persrm.assets;
        let template = &self.persrm.template;
        let unfit = |e: &dyn std::fmt::Display| {
            Failure::invalid("prompt", format!("the prompt cannot be encoded: {e}"))
        };
        let ids = match kind {
            Kind::TokenIds(ids) => ids.ids,
            Kind::Text(text) if text.is_empty() => {
                return Err(Failure::invalid(
                    "prompt",
                    "the prompt's text is empty; send at least one character",
                ));
            }
            Kind::Text(text) => {
                let text = match preference {
                    Some(preference) => template.apply_text(&text, preference).map_err(|e| unfit(&e))?,
                    None => text,
                };
                assets.tokenizer.encode_raw(&text).map_err(|e| unfit(&e))?
            }
            Kind::Messages(messages) => {
                let messages: Vec<Message> = messages
                    .messages
                    .into_iter()
                    .map(|m| Message { role: m.role, content: m.content })
                    .collect();
                if messages.is_empty() {
                    return Err(Failure::invalid(
                        "prompt",
                        "the conversation is empty; send at least one message",
                    ));
                }
                if messages.iter().any(|m| m.role.is_empty()) {
                    return Err(Failure::invalid("prompt", "a message has no role; say who speaks"));
                }
                let messages = match preference {
                    Some(preference) => template.apply(&messages, preference).map_err(|e| unfit(&e))?,
                    None => messages,
                };
                let text = assets.chat.render(&messages, true).map_err(|e| unfit(&e))?;
                assets.tokenizer.encode_rendered(&text).map_err(|e| unfit(&e))?
            }
        };
        if ids.is_empty() {
            return Err(Failure::invalid("prompt", "the prompt is empty; send at least one token"));
        }
        Ok(ids)
    }

    fn head_text(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let most = HEAD_TOKENS.min(self.persrm.assets.config.context);
        let ids = self.persrm.assets.tokenizer.encode_raw(text);
        let ids =
            ids.map_err(|e| Failure::invalid("text", format!("the preference cannot be encoded: {e}")))?;
        if ids.is_empty() || ids.len() > most {
            let message = format!("the preference is {} tokens long; 1 to {most} are allowed", ids.len());
            return Err(Failure::invalid("text", message));
        }
        let vocab = self.persrm.assets.config.vocab;
        if ids.iter().any(|&id| id as usize >= vocab) {
            let message =
                "the model's tokenizer gives ids outside its vocabulary: its folder is inconsistent";
            return Err(Failure::new(FailureReason::Precondition, message));
        }
        Ok(ids)
    }

    fn check_resolved(&self, guidance: &ResolvedGuidance) -> Result<(), Failure> {
        self.check_model(&guidance.reward_model)?;
        let revision = &self.persrm.assets.revision;
        if &guidance.model_revision != revision {
            let message = format!(
                "the guidance was resolved by revision `{}` of the model; this worker serves `{revision}`",
                guidance.model_revision
            );
            return Err(Failure::new(FailureReason::Precondition, message).at("model_revision"));
        }
        Method::named(&guidance.method, &self.persrm)?;
        self.check_person(guidance.weights.as_ref(), guidance.latent.as_ref())?;
        let unset = |field| {
            Failure::invalid(
                field,
                format!("a resolved guidance needs `{field}`; send it as `Opened` gave it"),
            )
        };
        match self.known::<Reference>(guidance.reference, "reference")? {
            Reference::Unspecified => return Err(unset("reference")),
            reference => self.offered(reference)?,
        };
        if self.known::<Normalization>(guidance.normalization, "normalization")? == Normalization::Unspecified
        {
            return Err(unset("normalization"));
        }
        if self.known::<Context>(guidance.context, "context")? == Context::Unspecified {
            return Err(unset("context"));
        }
        if guidance.prompt_token_ids.is_empty() {
            return Err(unset("prompt_token_ids"));
        }
        Ok(())
    }

    fn check_model(&self, asked: &str) -> Result<(), Failure> {
        let serves = &self.persrm.assets.id;
        if asked.is_empty() || asked == serves {
            return Ok(());
        }
        let message =
            format!("this worker serves the reward model `{serves}`, not the one that was asked for");
        Err(Failure::new(FailureReason::NotFound, message).at("reward_model"))
    }

    /// At most one of the two, and it fits the model.
    fn check_person(&self, weights: Option<&Weights>, latent: Option<&Latent>) -> Result<(), Failure> {
        match (weights, latent) {
            (None, None) => Ok(()),
            (Some(weights), None) => self.check_weights(weights),
            (None, Some(latent)) => self.check_latent(latent),
            (Some(_), Some(_)) => {
                let message = "a person has weights or a latent, not both; leave one of them out";
                Err(Failure::invalid("latent", message))
            }
        }
    }

    fn check_latent(&self, latent: &Latent) -> Result<(), Failure> {
        let Some(adapter) = self.persrm.latent() else {
            let message = "the reward model has no latent adapter; leave the latent out";
            return Err(Failure::new(FailureReason::Precondition, message).at("latent"));
        };
        let (got, size) = (latent.values.len(), adapter.size());
        if got != size {
            let message = format!("{got} numbers came; the reward model's latents have {size}");
            return Err(Failure::invalid("latent.values", message));
        }
        match latent.values.iter().position(|z| !z.is_finite()) {
            None => Ok(()),
            Some(i) => Err(Failure::invalid("latent.values", format!("number {i} is not finite"))),
        }
    }

    fn check_weights(&self, weights: &Weights) -> Result<(), Failure> {
        let d = self.persrm.assets.config.hidden;
        let got = weights.values.len();
        if got != d {
            let message =
                format!("{got} weights came; the reward model has {d} features and needs one for each");
            return Err(Failure::invalid("weights.values", message));
        }
        match weights.values.iter().position(|w| !w.is_finite()) {
            None => Ok(()),
            Some(i) => Err(Failure::invalid("weights.values", format!("weight {i} is not finite"))),
        }
    }

    fn offered(&self, reference: Reference) -> Result<Reference, Failure> {
        if reference != Reference::Model || self.persrm.has_reference() {
            return Ok(reference);
        }
        let message = "the model has no reference of its own; ask for GENERATOR or NONE, or name a `reference_model` in its attune.json";
        Err(Failure::new(FailureReason::Precondition, message).at("reference"))
    }

    /// A value of an enumeration that this version knows.
    fn known<T: TryFrom<i32>>(&self, value: i32, field: &'static str) -> Result<T, Failure> {
        T::try_from(value)
            .map_err(|_| Failure::invalid(field, format!("{value} is no `{field}` that this version knows")))
    }
}

/// The context to read, TEMPLATE or AS_IS.
fn context(asked: Context, kind: &Kind, text: bool, has_head: bool) -> Result<Context, Failure> {
    match (asked, kind) {
        (Context::AsIs, _) => Ok(Context::AsIs),
        (Context::Unspecified | Context::Template, Kind::Messages(_) | Kind::Text(_)) => {
            Ok(Context::Template)
        }
        // Without a preference the template puts in nothing.
        (_, Kind::TokenIds(_)) if !text => Ok(Context::AsIs),
        (Context::Template, Kind::TokenIds(_)) => Err(Failure::invalid(
            "context",
            "a preference cannot be put into token ids; send messages or text, or ask for context AS_IS",
        )),
        (Context::Unspecified, Kind::TokenIds(_)) if has_head => Ok(Context::AsIs),
        // It would have no effect, and a guidance is never dropped silently.
        (Context::Unspecified, Kind::TokenIds(_)) => Err(Failure::invalid(
            "context",
            "a preference cannot be put into token ids; where they hold it already, ask for context AS_IS",
        )),
    }
}
