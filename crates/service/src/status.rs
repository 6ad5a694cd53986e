//! gRPC statuses with `google.rpc` details, so that clients need not parse sentences.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

/// One field at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field as a path from the request ("sampling.top_p", "guidances[1].strength").
    pub field: String,
    /// What is wrong, and what is allowed.
    pub description: String,
}

impl Violation {
    /// A field and what is wrong with it.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// INVALID_ARGUMENT for one field.
pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Status {
    invalid_all(vec![Violation::new(field, description)])
}

/// The most fields that one status names: it travels in trailers, of which clients read 16 KiB.
const NAMED: usize = 32;

/// INVALID_ARGUMENT for the fields at fault, the first 32 of them; the message holds them too, for clients without
/// details.
pub fn invalid_all(mut violations: Vec<Violation>) -> Status {
    let others = violations.len().saturating_sub(NAMED);
    violations.truncate(NAMED);
    let mut message: Vec<String> =
        violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    if others > 0 {
        message.push(format!("and {others} more"));
    }
    let fields: Vec<FieldViolation> =
        violations.into_iter().map(|v| FieldViolation::new(v.field, v.description)).collect();
    Status::with_error_details(
        Code::InvalidArgument,
        message.join("; "),
        ErrorDetails::with_bad_request(fields),
    )
}

/// RESOURCE_EXHAUSTED: full now, worth another try after `retry_after`.
pub fn exhausted(message: impl Into<String>, retry_after: Duration) -> Status {
    retry(Code::ResourceExhausted, message, retry_after)
}

/// UNAVAILABLE: nobody can serve it now, worth another try after `retry_after`.
pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Status {
    retry(Code::Unavailable, message, retry_after)
}

/// UNAVAILABLE in mid-text: `google.rpc.ErrorInfo` holds what the client needs to go on from there.
pub fn interrupted<const N: usize>(
    message: impl Into<String>,
    retry_after: Duration,
    metadata: [(&str, String); N],
) -> Status {
    let metadata: HashMap<String, String> = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    let mut details = ErrorDetails::with_retry_info(Some(retry_after));
    details.set_error_info("INTERRUPTED", "attune", metadata);
    Status::with_error_details(Code::Unavailable, message, details)
}

fn retry(code: Code, message: impl Into<String>, retry_after: Duration) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(retry_after)))
}

/// FAILED_PRECONDITION: `subject` (a model, a profile) does not fit; no retry helps before it changes.
/// `kind` is a class for programs, such as "TOKENIZER".
pub fn precondition(kind: &str, subject: impl Into<String>, message: impl Into<String>) -> Status {
    let message = message.into();
    let violation = PreconditionViolation::new(kind, subject, message.clone());
    Status::with_error_details(
        Code::FailedPrecondition,
        message,
        ErrorDetails::with_precondition_failure(vec![violation]),
    )
}

/// NOT_FOUND: no `kind` ("profile", "method", "reward_model") has this name.
pub fn not_found(kind: &str, name: impl Into<String>, message: impl Into<String>) -> Status {
    let message = message.into();
    Status::with_error_details(
        Code::NotFound,
        message.clone(),
        ErrorDetails::with_resource_info(kind, name, "", message),
    )
}

/// A code's name as gRPC writes it.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a code is the server's fault, as OpenTelemetry's conventions for gRPC have it: then a server's
/// span is marked as failed.
pub fn is_servers_fault(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
}

/// UNIMPLEMENTED in this version.
pub fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not implemented in version {}", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_in_details_and_message() {
        let status = invalid_all(vec![Violation::new("a", "must be 1"), Violation::new("b.c", "is empty")]);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "a: must be 1; b.c: is empty");
        let request = status.get_details_bad_request().unwrap();
        assert_eq!(request.field_violations[1].field, "b.c");
    }

    #[test]
    fn a_status_names_no_more_fields_than_travel() {
        let many = (0..100).map(|i| Violation::new(format!("a[{i}]"), "is empty")).collect();
        let status = invalid_all(many);
        assert!(status.message().ends_with("a[31]: is empty; and 68 more"), "{}", status.message());
        assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), 32);
    }

    #[test]
    fn retries_say_when() {
        let status = exhausted("full", Duration::from_millis(250));
        let info = status.get_details_retry_info().unwrap();
        assert_eq!(info.retry_delay, Some(Duration::from_millis(250)));
        assert_eq!(unavailable("none", Duration::from_secs(1)).code(), Code::Unavailable);
        let status = interrupted("lost", Duration::from_secs(1), [("resume_seed", "7".to_owned())]);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["resume_seed"].as_str()), ("INTERRUPTED", "7"));
        assert!(status.get_details_retry_info().is_some());
        assert!(precondition("TOKENIZER", "worker", "differs").get_details_precondition_failure().is_some());
        assert!(not_found("profile", "x", "no such profile").get_details_resource_info().is_some());
    }
}
