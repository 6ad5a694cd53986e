"""The client for asyncio: as `attune.client`, with `await` and `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import grpc
import grpc.aio
from typing_extensions import Self, Unpack

from attune import _requests as requests
from attune._answers import Answer, cut_off
from attune._connection import DEFAULT_ENDPOINT, Connection, FilePath
from attune._errors import Cancelled, error_of
from attune.generator.v1 import generator_pb2 as generator
from attune.generator.v1.generator_pb2_grpc import GeneratorServiceStub
from attune.profile.v1 import profile_pb2 as profile
from attune.profile.v1.profile_pb2_grpc import ProfileServiceStub

Part = TypeVar("Part")


class AsyncClient:
    """A connection to a generator, for one event loop; closed by `close` or `async with`.

    Arguments and errors are those of `attune.client.Client`. A task that is cancelled cancels its call.
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
            grpc.aio.insecure_channel(connection.target, options)
            if credentials is None
            else grpc.aio.secure_channel(connection.target, credentials, options)
        )
        self._calls = _Calls(connection, timeout)
        self._generator = GeneratorServiceStub(self._channel)
        self.profiles = AsyncProfiles(self._calls, ProfileServiceStub(self._channel))

    async def describe(self, *, timeout: float | None = None) -> generator.DescribeResponse:
        """What the generator serves, its workers, and how busy it is."""
        return await self._calls.unary(self._generator.Describe, generator.DescribeRequest(), timeout)

    def stream(
        self, prompt: requests.Prompt, *, timeout: float | None = None, **options: Unpack[requests.Options]
    ) -> AsyncTextStream:
        """Generates a text, part by part."""
        request = requests.generate_request(prompt, options)
        call = self._calls.start(self._generator.Generate, request, timeout)
        return AsyncTextStream(call, request.resume.token_ids)

    async def generate(
        self, prompt: requests.Prompt, *, timeout: float | None = None, **options: Unpack[requests.Options]
    ) -> Answer:
        """Generates a text and gathers it."""
        async with self.stream(prompt, timeout=timeout, **options) as stream:
            return await stream.collect()

    async def close(self) -> None:
        """Ends the connection, and every call on it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncProfiles:
    """The caller's profiles: what was learned of people."""

    def __init__(self, calls: _Calls, stub: ProfileServiceStub) -> None:
        self._calls = calls
        self._stub = stub

    async def put(
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
        """As `attune.client.Profiles.put`."""
        request = requests.put_request(
            name, text, weights, latent, reference, reward_model, expected_revision
        )
        return (await self._calls.unary(self._stub.Put, request, timeout)).profile

    async def get(self, name: str, *, timeout: float | None = None) -> profile.Profile:
        """Reads a profile."""
        return (await self._calls.unary(self._stub.Get, profile.GetRequest(name=name), timeout)).profile

    async def export(self, name: str, *, timeout: float | None = None) -> profile.GetResponse:
        """Reads a profile with the feedback that is kept of it, to take it in elsewhere."""
        request = profile.GetRequest(name=name, with_feedback=True)
        return await self._calls.unary(self._stub.Get, request, timeout)

    async def take_in(
        self,
        exported: profile.GetResponse,
        *,
        expected_revision: int | None = None,
        timeout: float | None = None,
    ) -> profile.Profile:
        """Takes in an exported profile, with its feedback: only with its owner's consent."""
        request = requests.import_request(exported, expected_revision)
        return (await self._calls.unary(self._stub.Put, request, timeout)).profile

    async def list(self, *, timeout: float | None = None) -> AsyncIterator[profile.Profile]:
        """The profiles in the order of their names, without their weights; asks for page after page."""
        request = profile.ListRequest()
        while True:
            page = await self._calls.unary(self._stub.List, request, timeout)
            for found in page.profiles:
                yield found
            if not page.next_page_token:
                return
            request = profile.ListRequest(page_token=page.next_page_token)

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Deletes a profile and the feedback behind it."""
        await self._calls.unary(self._stub.Delete, profile.DeleteRequest(name=name), timeout)

    def fit(
        self,
        name: str,
        feedback: Sequence[profile.Feedback] = (),
        *,
        timeout: float | None = None,
        **options: Unpack[requests.FitOptions],
    ) -> AsyncFitStream:
        """As `attune.client.Profiles.fit`."""
        request = requests.fit_request(name, feedback, options)
        return AsyncFitStream(self._calls.start(self._stub.Fit, request, timeout))


class AsyncStream(Generic[Part]):
    """The messages of a running call. Whoever leaves its `async with` before the end cancels it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the call; whoever reads gets `Cancelled`."""
        self._cancelled = True
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Part]:
        try:
            async for part in self._call:
                self._take(part)
                yield part
        except grpc.RpcError as failed:
            raise error_of(failed, self._received()) from None
        except asyncio.CancelledError:
            # grpc tells the reader of a call that was cancelled as if the reading task had been.
            if self._cancelled:
                raise Cancelled(grpc.StatusCode.CANCELLED, "the call was cancelled") from None
            raise

    def _take(self, part: Part) -> None:
        raise NotImplementedError

    def _received(self) -> Sequence[int]:
        return ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()


class AsyncTextStream(AsyncStream[generator.GenerateResponse]):
    """A text on its way."""

    answer: Answer
    """What has been read of it, also after an error."""

    def __init__(self, call: Any, resumed: Sequence[int]) -> None:
        super().__init__(call)
        self._resumed = list(resumed)
        self.answer = Answer()

    async def collect(self) -> Answer:
        """Reads on to the end."""
        async for _ in self:
            pass
        if self.answer.finish is None:
            raise cut_off()
        return self.answer

    def _take(self, part: generator.GenerateResponse) -> None:
        self.answer.take(part)

    def _received(self) -> Sequence[int]:
        return self._resumed + self.answer.token_ids


class AsyncFitStream(AsyncStream[profile.FitResponse]):
    """A fit on its way: each message says how far it is."""

    _fitted: profile.Profile | None = None

    async def fitted(self) -> profile.Profile:
        """Reads on to the end, and gives the fitted profile with its `fit`."""
        async for _ in self:
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

    async def unary(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        try:
            return await self.start(method, request, timeout)
        except grpc.RpcError as failed:
            raise error_of(failed) from None

    def start(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        return method(request, timeout=seconds, metadata=self._connection.metadata())
