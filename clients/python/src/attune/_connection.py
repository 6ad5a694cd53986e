"""Where a generator is, how it is known, and who calls."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc

DEFAULT_ENDPOINT = "http://127.0.0.1:50051"

# Tables of 64 candidates with 16 rewards each, and the last message's resolved prompts, fit well.
_OPTIONS: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", 64 << 20)]

FilePath = str | os.PathLike[str]


@dataclass(frozen=True)
class Connection:
    """The settings of a client's connection, checked.

    Raises:
        ValueError: they do not fit together; the sentence says what to change.
    """

    endpoint: str
    ca: FilePath | None
    cert: FilePath | None
    key: FilePath | None
    server_name: str | None
    token_file: FilePath | None

    def __post_init__(self) -> None:
        url = urlsplit(self.endpoint)
        if url.scheme not in ("http", "https") or not url.hostname or not url.port:
            raise ValueError(f"endpoint {self.endpoint!r}: write it as https://HOST:PORT or http://HOST:PORT")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both, or none")
        if url.scheme == "http":
            for name in ("ca", "cert", "server_name"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for TLS: write the endpoint as https://")
            if self.token_file is not None and not _is_loopback(url.hostname):
                raise ValueError(f"a token is not sent to {self.endpoint} in plain text: write https://")

    @property
    def target(self) -> str:
        """Host and port, as gRPC wants them."""
        return urlsplit(self.endpoint).netloc

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What TLS needs, as it stands in the files now; None for plain text."""
        if self.endpoint.startswith("http://"):
            return None
        ca, cert, key = (path and Path(path).read_bytes() for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(ca or None, key or None, cert or None)

    def options(self) -> list[tuple[str, int | str]]:
        """The channel's options."""
        if self.server_name is None:
            return _OPTIONS
        return [*_OPTIONS, ("grpc.ssl_target_name_override", self.server_name)]

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What says who calls. The token is read for every call, so that a new one counts at once.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no token.
        """
        if self.token_file is None:
            return ()
        token = Path(self.token_file).read_text(encoding="utf-8").strip()
        if not token.isascii() or not token.isprintable() or len(token.split()) != 1:
            raise ValueError(f"token_file {os.fspath(self.token_file)} holds no token")
        return (("authorization", f"Bearer {token}"),)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
