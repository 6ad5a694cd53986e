"""Errors as exceptions, with what `google.rpc` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from attune._requests import Resume


@dataclass(frozen=True)
class Violation:
    """A field at fault."""

    field: str
    """Its path from the request, such as "sampling.top_p"."""
    description: str
    """What is wrong, and what is allowed."""


class AttuneError(Exception):
    """A call that failed. Its subclasses are gRPC's codes that a caller may want to tell apart."""

    code: grpc.StatusCode
    """gRPC's code."""
    message: str
    """The server's sentence."""
    violations: tuple[Violation, ...]
    """The fields at fault."""
    retry_after: float | None
    """Seconds after which another try is worth it. None: the server does not say."""
    resume: Resume | None
    """What goes on with a text that was interrupted in its middle: the option `resume` of the same request."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
        resume: Resume | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.violations = violations
        self.retry_after = retry_after
        self.resume = resume


class InvalidArgument(AttuneError):
    """A field is at fault: see `violations`."""


class NotFound(AttuneError):
    """No profile, model or method of this name is there for this caller."""


class Aborted(AttuneError):
    """A profile changed meanwhile: its revision is not the expected one."""


class FailedPrecondition(AttuneError):
    """The models that are served cannot do what was asked."""


class ResourceExhausted(AttuneError):
    """The server is full, or a limit is reached: try again after `retry_after`."""


class Unavailable(AttuneError):
    """Nobody can answer now. A text that had begun goes on with `resume`."""


class DeadlineExceeded(AttuneError):
    """The time is up."""


class Cancelled(AttuneError):
    """The call was cancelled."""


class Unauthenticated(AttuneError):
    """The token is missing, unknown or expired."""


class Unimplemented(AttuneError):
    """The server does not have this, or is of an older version."""


_CLASSES: dict[grpc.StatusCode, type[AttuneError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def error_of(failed: grpc.RpcError, received: Sequence[int] = ()) -> AttuneError:
    """The exception for a failed call, of a text of which these token ids are there."""
    code = failed.code()
    violations: list[Violation] = []
    retry_after = None
    resume = None
    for detail in _details(failed):
        bad, retry, info = (
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.ErrorInfo(),
        )
        if detail.Unpack(bad):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(info) and info.metadata.get("resume_seed", "").isdecimal():
            resume = Resume(tuple(received), int(info.metadata["resume_seed"]))
    kind = _CLASSES.get(code, AttuneError)
    return kind(code, failed.details() or "", tuple(violations), retry_after, resume)


def _details(failed: grpc.RpcError) -> Sequence[any_pb2.Any]:
    try:
        # What is raised is the call itself, or has the same methods.
        status = rpc_status.from_call(failed)  # type: ignore[arg-type]
    except ValueError:
        # Details that speak of another status than the call's are none of its.
        return ()
    return () if status is None else status.details
