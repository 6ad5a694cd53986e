//! People: the fit of a profile to feedback, and the store that keeps it.
#![forbid(unsafe_code)]

pub mod fit;
