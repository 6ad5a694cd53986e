//! A fit to do, how far it is, how it went, and why there is none.

use attune_engine::ForwardError;

use super::{Item, Method, Refusal};
use crate::{Reference, Vector};

/// A fit to do.
#[derive(Debug, Clone)]
pub struct Job {
    /// The feedback.
    pub items: Vec<Item>,
    /// What it is measured against.
    pub reference: Reference,
    /// What is fitted.
    pub method: Method,
    /// The weights that the fit goes on from, `[d]`, where the feedback behind them was not kept: the prior is
    /// centred there instead of at ones.
    pub start: Option<Vec<f32>>,
    /// In place of the method's own, to try others.
    pub spread: Option<f64>,
}

/// How far a fit is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done: answers read, folds held out, answers measured.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// Share of held-out feedback that is ordered rightly, once it is known.
    pub accuracy: Option<f64>,
}

/// How a fit went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Pieces of feedback that it was fitted to.
    pub feedback: usize,
    /// Pieces that were held out, each in its turn.
    pub held_out: usize,
    /// Share of the feedback that is ordered rightly before the fit.
    pub accuracy_before: f64,
    /// Share of held-out feedback that is ordered rightly.
    pub accuracy_after: f64,
    /// Mean negative log-likelihood of the feedback before the fit, by exact log-probabilities, in nats.
    pub loss_before: f64,
    /// The same with the fit.
    pub loss_after: f64,
    /// What it took.
    pub seconds: f64,
}

/// A fitted person.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Who it is.
    pub person: Vector,
    /// How it went.
    pub measured: Measured,
    /// Steps that it took: as [`Progress::total`].
    pub steps: usize,
}

/// Why there is no fit.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// Nothing can be learned from the feedback.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The model lacks what the fit needs, or the feedback lacks what the reference needs.
    #[error("{0}")]
    Unfit(&'static str),
    /// Nobody waits for it any more.
    #[error("the fit was cancelled")]
    Cancelled,
    /// The weights or features are not finite.
    #[error(
        "the model's features of an answer are not finite: the model is damaged, or the profile's weights too large"
    )]
    NotFinite,
    /// The device failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}
