"""What comes back: parts of a text, and the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from attune._errors import AttuneError
from attune.generator.v1 import generator_pb2 as generator


@dataclass
class Answer:
    """A text, as far as it has come."""

    text: str = ""
    """What is certain of it."""
    tokens: list[generator.Token] = field(default_factory=list)
    """The tokens behind it, with their log-probabilities and what else was asked for."""
    finish: generator.Finish | None = None
    """Its end: reason, usage, timings, seed, and the guidances as they acted. None: it has not come yet."""

    @property
    def token_ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.tokens]

    @property
    def reason(self) -> str:
        """Why it ended: "eos", "stop" or "length"; empty before its end."""
        if self.finish is None:
            return ""
        return generator.FinishReason.Name(self.finish.reason).removeprefix("FINISH_REASON_").lower()

    def take(self, part: generator.GenerateResponse) -> None:
        """Adds a part."""
        self.text += part.text
        self.tokens.extend(part.tokens)
        if part.HasField("finish"):
            self.finish = part.finish


def cut_off() -> AttuneError:
    """A stream that is over before its last message."""
    return AttuneError(grpc.StatusCode.DATA_LOSS, "the stream ended without its end")
