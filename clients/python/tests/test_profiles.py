"""Profiles, against a small service that keeps them in memory: what is sent, and what is made of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

import attune
from attune import AsyncClient, Client, pair, thumb
from attune.profile.v1 import profile_pb2 as wire
from attune.profile.v1.profile_pb2_grpc import ProfileServiceServicer, add_ProfileServiceServicer_to_server
from attune.reward.v1.guidance_pb2 import REFERENCE_NONE

PAGE = 3


class Keeper(ProfileServiceServicer):
    """Pages of three; a fit of as many steps as there is feedback."""

    def __init__(self) -> None:
        self.kept: dict[str, wire.GetResponse] = {}

    def Put(self, request: wire.PutRequest, context: grpc.ServicerContext) -> wire.PutResponse:
        name = request.profile.name
        revision = self.kept[name].profile.revision if name in self.kept else 0
        if request.HasField("expected_revision") and request.expected_revision != revision:
            context.abort(grpc.StatusCode.ABORTED, f"`{name}` has revision {revision}")
        profile = wire.Profile()
        profile.CopyFrom(request.profile)
        profile.revision = revision + 1
        if not request.imported:
            profile.model_revision = "here"
        self.kept[name] = wire.GetResponse(profile=profile, feedback=request.feedback)
        return wire.PutResponse(profile=profile)

    def Get(self, request: wire.GetRequest, context: grpc.ServicerContext) -> wire.GetResponse:
        if request.name not in self.kept:
            context.abort(grpc.StatusCode.NOT_FOUND, f"you have no profile `{request.name}`")
        found = self.kept[request.name]
        return found if request.with_feedback else wire.GetResponse(profile=found.profile)

    def List(self, request: wire.ListRequest, context: grpc.ServicerContext) -> wire.ListResponse:
        names = [name for name in sorted(self.kept) if name > request.page_token]
        page = [self.kept[name].profile for name in names[:PAGE]]
        return wire.ListResponse(profiles=page, next_page_token=names[PAGE - 1] if names[PAGE:] else "")

    def Delete(self, request: wire.DeleteRequest, context: grpc.ServicerContext) -> wire.DeleteResponse:
        if self.kept.pop(request.name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"you have no profile `{request.name}`")
        return wire.DeleteResponse()

    def Fit(self, request: wire.FitRequest, context: grpc.ServicerContext) -> Iterator[wire.FitResponse]:
        total = len(request.feedback)
        for done in range(total):
            yield wire.FitResponse(done=done + 1, total=total)
        profile = wire.Profile(name=request.name, reference=request.reference, kept_feedback=total)
        self.kept[request.name] = wire.GetResponse(profile=profile, feedback=request.feedback)
        if request.keep_feedback:
            yield wire.FitResponse(done=total, total=total, profile=profile)


@pytest.fixture
def keeper() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_ProfileServiceServicer_to_server(Keeper(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_profiles_are_put_changed_and_deleted(keeper: str) -> None:
    with Client(keeper, timeout=20) as client:
        kept = client.profiles.put("me", weights=[0.5, 2.0], reference="none", reward_model="persrm")
        assert (kept.revision, list(kept.weights.values), kept.model_id) == (1, [0.5, 2.0], "persrm")
        assert kept.reference == REFERENCE_NONE and not kept.HasField("text") and not kept.HasField("latent")
        with pytest.raises(attune.Aborted, match="revision 1"):
            client.profiles.put("me", text="brief", expected_revision=0)
        changed = client.profiles.put("me", text="brief", expected_revision=1)
        assert (changed.revision, changed.text) == (2, "brief") and not changed.HasField("weights")
        assert client.profiles.get("me") == changed
        client.profiles.delete("me")
        with pytest.raises(attune.NotFound):
            client.profiles.get("me")


def test_all_pages_are_listed(keeper: str) -> None:
    names = [f"person {i}" for i in range(8)]

    async def listed() -> list[str]:
        async with AsyncClient(keeper, timeout=20) as client:
            await asyncio.gather(*(client.profiles.put(name, latent=[1.0]) for name in names))
            assert list((await client.profiles.get(names[0])).latent.values) == [1.0]
            found = [profile.name async for profile in client.profiles.list()]
            await client.profiles.delete(names[0])
            return found

    assert asyncio.run(listed()) == names
    with Client(keeper, timeout=20) as client:
        assert [found.name for found in client.profiles.list()] == names[1:]


def test_a_fit_tells_how_far_it_is(keeper: str) -> None:
    said = [pair("How?", "This way.", "That way."), thumb([("user", "Why?")], "Because.", up=False)]
    with Client(keeper, timeout=20) as client:
        with client.profiles.fit("me", said, keep_feedback=True, reference="none") as fit:
            assert [(step.done, step.total) for step in fit] == [(1, 2), (2, 2), (2, 2)]
            fitted = fit.fitted()
        assert fitted.name == "me" and fitted.reference == REFERENCE_NONE
        exported = client.profiles.export("me")
        assert list(exported.feedback) == said
        assert exported.feedback[1].thumb == wire.Thumb(answer="Because.", up=False)
        client.profiles.delete("me")
        assert client.profiles.take_in(exported, expected_revision=0).kept_feedback == 2
        assert client.profiles.export("me").feedback == exported.feedback
        # A stream without its end is no profile.
        with client.profiles.fit("other", said) as fit, pytest.raises(attune.AttuneError, match="without its end"):
            fit.fitted()
        with pytest.raises(TypeError, match="metod"):
            client.profiles.fit("me", said, metod="weights")  # type: ignore[call-arg]

    async def the_same() -> int:
        async with AsyncClient(keeper, timeout=20) as client:
            async with client.profiles.fit("me", said, keep_feedback=True) as fit:
                steps = [step async for step in fit]
                assert (await fit.fitted()).name == "me"
            exported = await client.profiles.export("me")
            return len(steps) + (await client.profiles.take_in(exported)).kept_feedback

    assert asyncio.run(the_same()) == 5
