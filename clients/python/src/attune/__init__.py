"""A client of Attune: language models whose text is aligned to each person while it decodes.

`Client` is for threads, `AsyncClient` for asyncio. What comes back are the messages of the protos, typed.
"""

from attune._answers import Answer
from attune._errors import (
    Aborted,
    AttuneError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)
from attune._requests import FitOptions, Options, Preference, Prompt, Raw, Resume, TokenIds, pair, thumb
from attune.aio import AsyncClient
from attune.client import Client

__all__ = [
    "Aborted",
    "Answer",
    "AsyncClient",
    "AttuneError",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FitOptions",
    "InvalidArgument",
    "NotFound",
    "Options",
    "Preference",
    "Prompt",
    "Raw",
    "ResourceExhausted",
    "Resume",
    "TokenIds",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "pair",
    "thumb",
]
