"""The client for threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import grpc
from typing_extensions import Self, Unpack

from attune import _requests as requests
from attune._answers import Answer, cut_off
from attune._connection import DEFAULT_ENDPOINT, Connection, FilePath
from attune._errors import error_of
from attune.generator.v1 import generator_pb2 as generator
from attune.generator.v1.generator_pb2_grpc import GeneratorServiceStub
from attune.profile.v1 import profile_pb2 as profile
from attune.profile.v1.profile_pb2_grpc import ProfileServiceStub

Part = TypeVar("Part")


class Client:
    """A connection to a generator. It may be shared by threads, and is closed by `close` or `with`.

    Args:
        endpoint: The generator's address; `https://HOST:PORT` speaks TLS.
        ca: The certificates, PEM, of those who may vouch for the server. Absent: gRPC's own.
        cert: The certificate to show to the server, PEM; `key` is its private key.
        server_name: The name that the server's certificate must be for. Absent: the address's host.
        token_file: A file with the token that says who calls; it is read for every call.
        timeout: Seconds that a call may take, a stream to its very end. Absent: no limit.

    Raises:
        ValueError: the settings do not fit together.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        ca: FilePath | None = None,
        cert: FilePath | None = None,
        key: FilePath | None = None,
        server_name: str | None = None,
        token_file: FilePath | None = None,
        timeout: float | None = None,
    ) -> None:
        connection = Connection(endpoint, ca, cert, key, server_name, token_file)
        credentials, options = connection.credentials(), connection.options()
        self._channel = (
            grpc.insecure_channel(connection.target, options)
            if credentials is None
            else grpc.secure_channel(connection.target, credentials, options)
        )
        self._calls = _Calls(connection, timeout)
        self._generator = GeneratorServiceStub(self._channel)
        self.profiles = Profiles(self._calls, ProfileServiceStub(self._channel))

    def describe(self, *, timeout: float | None = None) -> generator.DescribeResponse:
        """What the generator serves, its workers, and how busy it is."""
        return self._calls.unary(self._generator.Describe, generator.DescribeRequest(), timeout)

    def stream(
        self, prompt: requests.Prompt, *, timeout: float | None = None, **options: Unpack[requests.Options]
    ) -> TextStream:
        """Generates a text, part by part."""
        request = requests.generate_request(prompt, options)
        call = self._calls.stream(self._generator.Generate, request, timeout)
        return TextStream(call, request.resume.token_ids)

    def generate(
        self, prompt: requests.Prompt, *, timeout: float | None = None, **options: Unpack[requests.Options]
    ) -> Answer:
        """Generates a text and gathers it."""
        with self.stream(prompt, timeout=timeout, **options) as stream:
            return stream.collect()

    def close(self) -> None:
        """Ends the connection, and every call on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Profiles:
    """The caller's profiles: what was learned of people."""

    def __init__(self, calls: _Calls, stub: ProfileServiceStub) -> None:
        self._calls = calls
        self._stub = stub

    def put(
        self,
        name: str,
        *,
        text: str | None = None,
        weights: Sequence[float] | None = None,
        latent: Sequence[float] | None = None,
        reference: Literal["model", "generator", "none"] | None = None,
        reward_model: str | None = None,
        expected_revision: int | None = None,
        timeout: float | None = None,
    ) -> profile.Profile:
        """Creates or replaces a profile. `expected_revision` 0: it must not exist yet; a stale one is `Aborted`.
        `reward_model`: the id of the one that weights or latent are for."""
        request = requests.put_request(
            name, text, weights, latent, reference, reward_model, expected_revision
        )
        return self._calls.unary(self._stub.Put, request, timeout).profile

    def get(self, name: str, *, timeout: float | None = None) -> profile.Profile:
        """Reads a profile."""
        return self._calls.unary(self._stub.Get, profile.GetRequest(name=name), timeout).profile

    def export(self, name: str, *, timeout: float | None = None) -> profile.GetResponse:
        """Reads a profile with the feedback that is kept of it, to take it in elsewhere."""
        return self._calls.unary(self._stub.Get, profile.GetRequest(name=name, with_feedback=True), timeout)

    def take_in(
        self,
        exported: profile.GetResponse,
        *,
        expected_revision: int | None = None,
        timeout: float | None = None,
    ) -> profile.Profile:
        """Takes in an exported profile, with its feedback: only with its owner's consent."""
        request = requests.import_request(exported, expected_revision)
        return self._calls.unary(self._stub.Put, request, timeout).profile

    def list(self, *, timeout: float | None = None) -> Iterator[profile.Profile]:
        """The profiles in the order of their names, without their weights; asks for page after page."""
        request = profile.ListRequest()
        while True:
            page = self._calls.unary(self._stub.List, request, timeout)
            yield from page.profiles
            if not page.next_page_token:
                return
            request = profile.ListRequest(page_token=page.next_page_token)

    def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Deletes a profile and the feedback behind it."""
        self._calls.unary(self._stub.Delete, profile.DeleteRequest(name=name), timeout)

    def fit(
        self,
        name: str,
        feedback: Sequence[profile.Feedback] = (),
        *,
        timeout: float | None = None,
        **options: Unpack[requests.FitOptions],
    ) -> FitStream:
        """Fits a profile to feedback (`pair`, `thumb`); without any, to what is kept of it."""
        request = requests.fit_request(name, feedback, options)
        return FitStream(self._calls.stream(self._stub.Fit, request, timeout))


class Stream(Generic[Part]):
    """The messages of a running call. Whoever leaves its `with` before the end cancels it."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def cancel(self) -> None:
        """Ends the call, from any thread; whoever reads gets `Cancelled`."""
        self._call.cancel()

    def __iter__(self) -> Iterator[Part]:
        try:
            for part in self._call:
                self._take(part)
                yield part
        except grpc.RpcError as failed:
            raise error_of(failed, self._received()) from None

    def _take(self, part: Part) -> None:
        raise NotImplementedError

    def _received(self) -> Sequence[int]:
        return ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()


class TextStream(Stream[generator.GenerateResponse]):
    """A text on its way."""

    answer: Answer
    """What has been read of it, also after an error."""

    def __init__(self, call: Any, resumed: Sequence[int]) -> None:
        super().__init__(call)
        self._resumed = list(resumed)
        self.answer = Answer()

    def collect(self) -> Answer:
        """Reads on to the end."""
        for _ in self:
            pass
        if self.answer.finish is None:
            raise cut_off()
        return self.answer

    def _take(self, part: generator.GenerateResponse) -> None:
        self.answer.take(part)

    def _received(self) -> Sequence[int]:
        return self._resumed + self.answer.token_ids


class FitStream(Stream[profile.FitResponse]):
    """A fit on its way: each message says how far it is."""

    _fitted: profile.Profile | None = None

    def fitted(self) -> profile.Profile:
        """Reads on to the end, and gives the fitted profile with its `fit`."""
        for _ in self:
            pass
        if self._fitted is None:
            raise cut_off()
        return self._fitted

    def _take(self, part: profile.FitResponse) -> None:
        if part.HasField("profile"):
            self._fitted = part.profile


class _Calls:
    """Makes calls with the caller's token and time."""

    def __init__(self, connection: Connection, timeout: float | None) -> None:
        self._connection = connection
        self._timeout = timeout

    def unary(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        try:
            return self.stream(method, request, timeout)
        except grpc.RpcError as failed:
            raise error_of(failed) from None

    def stream(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        return method(request, timeout=seconds, metadata=self._connection.metadata())
