//! What of a person is fitted, and what it makes of a model's features.

use attune_engine::{Gates, LatentAdapter, PersRm};

use crate::Vector;

/// What of a person is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The weight vector `w_p`.
    Weights,
    /// A latent (Latent DPO, arXiv 2412.20834).
    Latent,
}

/// A person made ready for a model.
pub(super) enum Ready<'a> {
    /// `w_p`, `[d]`: multiplies the features of policy and reference.
    Weights(&'a [f32]),
    /// The adapter, opened by a latent: moves the features of the policy.
    Latent(&'a LatentAdapter, Gates),
}

impl<'a> Ready<'a> {
    /// Makes a person ready for `persrm`; `None` where it has no latent adapter and this is a latent.
    pub(super) fn new(person: &'a Vector, persrm: &'a PersRm) -> Option<Self> {
        match person {
            Vector::Weights(weights) => Some(Self::Weights(weights)),
            Vector::Latent(latent) => persrm.latent().map(|a| Self::Latent(a, a.gates(latent))),
        }
    }

    /// The policy's features of one row, in place.
    pub(super) fn policy(&self, features: &mut [f32]) {
        match self {
            Self::Weights(weights) => features.iter_mut().zip(*weights).for_each(|(f, w)| *f *= w),
            Self::Latent(adapter, gates) => adapter.apply(gates, features),
        }
    }

    /// The reference's features of one row, in place.
    pub(super) fn reference(&self, features: &mut [f32]) {
        if let Self::Weights(weights) = self {
            features.iter_mut().zip(*weights).for_each(|(f, w)| *f *= w);
        }
    }
}
