//! Whose text a session is, as the model runs with it.

use attune_engine::{Gates, PersRm};
use attune_proto::reward::v1::ResolvedGuidance;

/// What is made of a model's features for one person. Any number of different people stand in one batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Person {
    /// `w_p` is ones.
    #[default]
    Ones,
    /// `w_p`, `[d]`: multiplies the features of policy and reference.
    Weights(Vec<f32>),
    /// A latent: the adapter, which its gates open, moves the features of the policy.
    Latent(Gates),
}

impl Person {
    /// The person of a settled guidance; a latent has been checked to fit the model's adapter.
    pub(crate) fn of(guidance: &ResolvedGuidance, persrm: &PersRm) -> Self {
        match (&guidance.weights, &guidance.latent, persrm.latent()) {
            (Some(weights), _, _) => Self::Weights(weights.values.clone()),
            (None, Some(latent), Some(adapter)) => Self::Latent(adapter.gates(&latent.values)),
            _ => Self::Ones,
        }
    }

    /// Turns the policy's features of one row into the person's, in place.
    pub(crate) fn policy(&self, persrm: &PersRm, features: &mut [f32]) {
        match (self, persrm.latent()) {
            (Self::Latent(gates), Some(adapter)) => adapter.apply(gates, features),
            _ => self.reference(features),
        }
    }

    /// The same of the reference's features.
    pub(crate) fn reference(&self, features: &mut [f32]) {
        if let Self::Weights(weights) = self {
            features.iter_mut().zip(weights).for_each(|(f, w)| *f *= w);
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
