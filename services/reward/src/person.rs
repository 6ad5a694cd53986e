//! Whose text a session is, as the model runs with it.

use attune_engine::{Feature, ForwardError, Gates, PersRm, PersonWeights};
use attune_proto::reward::v1::ResolvedGuidance;

/// What is made of a model's features for one person. Any number of different people stand in one batch.
#[derive(Default)]
pub(crate) enum Person {
    /// `w_p` is ones.
    #[default]
    Ones,
    /// `w_p`, `[d]`: multiplies the features of policy and reference.
    Weights(PersonWeights),
    /// A latent: the adapter, which its gates open, moves the features of the policy.
    Latent(Gates),
}

impl Person {
    /// The person of a settled guidance; a latent has been checked to fit the model's adapter.
    ///
    /// # Errors
    /// The device's memory is full.
    pub(crate) fn of(guidance: &ResolvedGuidance, persrm: &PersRm) -> Result<Self, ForwardError> {
        Ok(match (&guidance.weights, &guidance.latent, persrm.latent()) {
            (Some(weights), _, _) => Self::Weights(persrm.weights(weights.values.clone())?),
            (None, Some(latent), Some(adapter)) => Self::Latent(adapter.gates(&latent.values)),
            _ => Self::Ones,
        })
    }

    /// Turns the policy's features of one row into the person's.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn policy(&self, persrm: &PersRm, feature: &mut Feature) -> Result<(), ForwardError> {
        match (self, persrm.latent()) {
            (Self::Latent(gates), Some(adapter)) => feature.change(|row| adapter.apply(gates, row)),
            _ => {
                self.reference(feature);
                Ok(())
            }
        }
    }

    /// The same of the reference's features.
    pub(crate) fn reference(&self, feature: &mut Feature) {
        if let Self::Weights(weights) = self {
            feature.weigh(weights);
        }
    }

    /// The field that holds the person, as a path within `Guidance`. `None`: there is none.
    pub(crate) fn field(&self) -> Option<&'static str> {
        match self {
            Self::Ones => None,
            Self::Weights(_) => Some("weights.values"),
            Self::Latent(_) => Some("latent.values"),
        }
    }
}
