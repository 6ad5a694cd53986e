//! People: the fit of a profile to feedback, and the store that keeps it.
