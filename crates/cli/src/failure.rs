//! Errors as people and programs need them: what is wrong, in which field, and what to do.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Ctrl-c was pressed.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A status taken apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Failure {
    /// The gRPC code's name, such as INVALID_ARGUMENT.
    pub(crate) code: &'static str,
    /// The server's sentence.
    pub(crate) message: String,
    /// The fields at fault.
    pub(crate) violations: Vec<Violation>,
    /// When another try is worth it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_seconds: Option<f64>,
}

/// A field at fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Violation {
    pub(crate) field: String,
    pub(crate) description: String,
}

impl Failure {
    pub(crate) fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let violations = details.bad_request().map(|b| b.field_violations.as_slice()).unwrap_or_default();
        Self {
            code: code_name(status.code()),
            message: status.message().to_owned(),
            violations: violations
                .iter()
                .map(|v| Violation { field: v.field.clone(), description: v.description.clone() })
                .collect(),
            retry_after_seconds: details
                .retry_info()
                .and_then(|info| info.retry_delay)
                .as_ref()
                .map(Duration::as_secs_f64),
        }
    }

    /// The lines for a terminal.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}: {}", self.code, self.message)];
        // A server may put the same into its sentence; once is enough.
        let unsaid = |v: &&Violation| !self.message.contains(&v.description);
        for v in self.violations.iter().filter(unsaid) {
            lines.push(format!("  {}: {}", v.field, v.description));
        }
        if let Some(advice) = self.advice() {
            lines.push(advice);
        }
        lines
    }

    fn advice(&self) -> Option<String> {
        Some(match (self.code, self.retry_after_seconds) {
            ("INVALID_ARGUMENT", _) => "change what is named above".into(),
            (_, Some(seconds)) => format!("try again in {seconds} s"),
            ("UNAVAILABLE", None) => {
                "no server can answer now: `attune describe` shows its reward workers".into()
            }
            ("FAILED_PRECONDITION", _) => {
                "the models here cannot do what was asked: `attune describe` shows what they offer".into()
            }
            ("DEADLINE_EXCEEDED", _) => "allow more time with --timeout, or ask for fewer tokens".into(),
            ("UNIMPLEMENTED", _) => "the server does not have this (yet): is it of an older version?".into(),
            _ => return None,
        })
    }
}

/// Writes the error to stderr and gives the exit code: 1, or 130 for ctrl-c.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        return ExitCode::from(130);
    }
    // The reader of a pipe has had enough.
    if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<Status>() {
        Some(status) => {
            for (i, line) in Failure::of(status).lines().iter().enumerate() {
                anstream::eprintln!("{}{line}", if i == 0 { "error: " } else { "" });
            }
        }
        None => anstream::eprintln!("error: {error:#}"),
    }
    ExitCode::FAILURE
}

fn code_name(code: Code) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;
    use attune_service::status;

    #[test]
    fn violations_are_said_once() {
        let failure = Failure::of(&status::invalid("sampling.top_p", "must be in (0, 1]"));
        assert_eq!(failure.violations[0].field, "sampling.top_p");
        let lines = failure.lines();
        assert_eq!(lines[0], "INVALID_ARGUMENT: sampling.top_p: must be in (0, 1]");
        assert_eq!(lines.len(), 2, "{lines:?}");
    }

    #[test]
    fn a_retry_says_when() {
        let failure = Failure::of(&status::exhausted("the queue is full", Duration::from_secs(2)));
        assert_eq!(failure.lines()[1], "try again in 2 s");
        let json = serde_json::to_string(&failure).unwrap();
        assert!(json.contains("\"retry_after_seconds\":2.0"), "{json}");
    }
}
