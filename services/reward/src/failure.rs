//! Why a session ends, as it goes on the wire.

use attune_proto::reward::v1::{Failed, FailureReason};

/// A failure of one session. Its message never contains people's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The class of failure.
    pub(crate) reason: FailureReason,
    /// The field at fault, as a path within `Guidance`; empty: none.
    pub(crate) field: &'static str,
    /// A sentence that says what to do.
    pub(crate) message: String,
}

impl Failure {
    /// A failure that no field is to blame for.
    pub(crate) fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, field: "", message: message.into() }
    }

    /// A request that can never be served, because of `field`.
    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::new(FailureReason::Invalid, message).at(field)
    }

    /// A frame that the session's step does not allow.
    pub(crate) fn out_of_order(message: impl Into<String>) -> Self {
        Self::new(FailureReason::OutOfOrder, message)
    }

    /// Names the field at fault.
    pub(crate) fn at(self, field: &'static str) -> Self {
        Self { field, ..self }
    }

    /// The frame that tells the generator.
    pub(crate) fn frame(self, session_id: u64) -> Failed {
        Failed { session_id, reason: self.reason.into(), message: self.message, field: self.field.to_owned() }
    }
}
