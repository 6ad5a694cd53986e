//! How rewards are made: the names that a guidance may ask for, and what each one fixes.
//!
//! All of them are the same arithmetic, `E[a] . h` of a policy less a reference. They differ in which
//! weights the policy has, what it reads, and what is subtracted.

use attune_engine::PersRm;
use attune_proto::{
    LINEAR_ALIGNMENT,
    reward::v1::{Context, FailureReason, Guidance, Reference},
};

use crate::failure::Failure;

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// PAD (arXiv 2410.04070): `w_p . (phi_theta - phi_ref)`, any reference.
    Pad,
    /// GenARM (arXiv 2410.08193): the log-probability under an autoregressive reward model.
    Genarm,
    /// Linear Alignment (arXiv 2401.11458): the base model's own logits with the preference in its prompt,
    /// less those without.
    LinearAlignment,
    /// Merging of experts token by token (arXiv 2407.04181): an expert's log-probability less the base
    /// model's; one guidance for each expert.
    Experts,
}

impl Method {
    /// All, the default first.
    const ALL: [Self; 4] = [Self::Pad, Self::Genarm, Self::LinearAlignment, Self::Experts];

    /// Its name on the wire.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pad => "pad",
            Self::Genarm => "genarm",
            Self::LinearAlignment => LINEAR_ALIGNMENT,
            Self::Experts => "experts",
        }
    }

    /// The methods that a model can serve, the default first.
    pub(crate) fn offered(persrm: &PersRm) -> impl Iterator<Item = Self> {
        // Behind a value head the features give rewards, but no longer a language model's probabilities.
        let language_model = !persrm.has_value_head();
        Self::ALL.into_iter().filter(move |&method| method == Self::Pad || language_model)
    }

    /// The method of this name; empty: the default.
    ///
    /// # Errors
    /// NOT_FOUND for a name that the model does not serve, with those that it does.
    pub(crate) fn named(name: &str, persrm: &PersRm) -> Result<Self, Failure> {
        if name.is_empty() {
            return Ok(Self::Pad);
        }
        Self::offered(persrm).find(|method| method.name() == name).ok_or_else(|| {
            let offered: Vec<&str> = Self::offered(persrm).map(Self::name).collect();
            let message =
                format!("this reward model does not serve that method; it offers {}", offered.join(", "));
            Failure::new(FailureReason::NotFound, message).at("method")
        })
    }

    /// Whether a weight vector `w_p` acts.
    pub(crate) fn is_weighted(self) -> bool {
        self == Self::Pad
    }

    /// The guidance with what the method fixes.
    ///
    /// # Errors
    /// INVALID, with the field, for what contradicts the method.
    pub(crate) fn fix(self, mut guidance: Guidance) -> Result<Guidance, Failure> {
        let reference = match self {
            Self::Pad => return Ok(guidance),
            Self::Genarm => Reference::None,
            Self::LinearAlignment | Self::Experts => Reference::Generator,
        };
        let name = self.name();
        if ![Reference::Unspecified as i32, reference as i32].contains(&guidance.reference) {
            let (asked, fixed) = (guidance.reference().as_str_name(), reference.as_str_name());
            let message = format!("{asked} does not go with `{name}`; leave it out, or ask for {fixed}");
            return Err(Failure::invalid("reference", message));
        }
        guidance.reference = reference.into();
        if guidance.weights.is_some() {
            let message = format!("`{name}` knows no weight vector; leave it out, or ask for `pad`");
            return Err(Failure::invalid("weights", message));
        }
        if guidance.latent.is_some() {
            let message = format!("`{name}` knows no latent; leave it out, or ask for `pad`");
            return Err(Failure::invalid("latent", message));
        }
        let asked = guidance.text.as_deref().is_some_and(|text| !text.trim().is_empty());
        match self {
            Self::LinearAlignment if !asked => {
                let message = format!("`{name}` contrasts a prompt with and without a preference; give one");
                Err(Failure::invalid("text", message))
            }
            Self::LinearAlignment if guidance.context() == Context::AsIs => {
                let message =
                    format!("`{name}` puts the preference into the prompt; ask for TEMPLATE, not AS_IS");
                Err(Failure::invalid("context", message))
            }
            Self::Experts if asked => {
                let message = format!(
                    "with `{name}` the reward model is the preference, and reads none; name the expert in \
                     `reward_model` instead"
                );
                Err(Failure::invalid("text", message))
            }
            _ => Ok(guidance),
        }
    }
}
