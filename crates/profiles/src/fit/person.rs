//! What of a person is fitted, and what it makes of a model's features.

use attune_engine::{Gates, PersRm};

/// What of a person is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The weight vector `w_p`.
    Weights,
    /// A latent (Latent DPO, arXiv 2412.20834).
    Latent,
}

/// A person, as a session runs with one.
#[derive(Debug, Clone, PartialEq)]
pub enum Person {
    /// `w_p`, `[d]`: multiplies the features of policy and reference.
    Weights(Vec<f32>),
    /// A latent, which the model's adapter applies to the features of the policy.
    Latent(Vec<f32>),
}

/// A person made ready for a model.
pub(crate) enum Ready<'a> {
    Weights(&'a [f32]),
    Latent(&'a attune_engine::LatentAdapter, Gates),
}

impl Person {
    /// Made ready for `persrm`; `None` where it has no latent adapter and this is a latent.
    pub(crate) fn ready<'a>(&'a self, persrm: &'a PersRm) -> Option<Ready<'a>> {
        match self {
            Self::Weights(weights) => Some(Ready::Weights(weights)),
            Self::Latent(latent) => persrm.latent().map(|a| Ready::Latent(a, a.gates(latent))),
        }
    }
}

impl Ready<'_> {
    /// The policy's features of one row, in place.
    pub(crate) fn policy(&self, features: &mut [f32]) {
        match self {
            Self::Weights(weights) => features.iter_mut().zip(*weights).for_each(|(f, w)| *f *= w),
            Self::Latent(adapter, gates) => adapter.apply(gates, features),
        }
    }

    /// The reference's features of one row, in place.
    pub(crate) fn reference(&self, features: &mut [f32]) {
        if let Self::Weights(weights) = self {
            features.iter_mut().zip(*weights).for_each(|(f, w)| *f *= w);
        }
    }
}
