//! The fit of a profile to one person's feedback, on a frozen PersRM.
//!
//! `job` is what to do and how it went, [`feedback`] is what came, [`reader`] reads it with the model, [`gradient`]
//! makes numbers of what was read, [`logistic`] finds the minimum, [`person`] holds what is fitted, [`refusal`] says
//! what no profile is made of.

pub mod cholesky;
pub mod feedback;
pub mod gradient;
mod job;
pub mod logistic;
pub mod person;
pub mod reader;
pub mod refusal;
mod run;

pub use feedback::{Answer, Item, Said};
pub use job::{FitError, Fitted, Job, Measured, Progress};
pub use person::Method;
pub use refusal::Refusal;
pub use run::{WEIGHTS_SPREAD, fit, margins};
