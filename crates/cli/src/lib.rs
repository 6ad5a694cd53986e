//! The attune command.
