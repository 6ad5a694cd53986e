"""Profiles where a pair really keeps them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import attune
from attune import AsyncClient, Client, Preference, pair
from services import command, generator, worker

QUESTION = "How do I bake the bread?"


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A pair that keeps profiles."""
    store = tmp_path_factory.mktemp("profiles") / "profiles.db"
    with worker("--set", f"profiles.url=sqlite:{store}") as reward, generator(f"http://{reward}") as address:
        connected(f"http://{address}")
        yield f"http://{address}"


def connected(endpoint: str) -> None:
    """Waits for the generator's worker, without which no profile is reached."""
    with Client(endpoint, timeout=60) as client:
        while not any(found.connected for found in client.describe().reward_workers):
            pass


def test_a_profile_is_kept_used_changed_and_deleted(keeping: str) -> None:
    with Client(keeping, timeout=60) as client:
        kept = client.profiles.put("me", text="with a funny joke", expected_revision=0)
        assert (kept.name, kept.revision, kept.text) == ("me", 1, "with a funny joke")
        by_name = client.generate(QUESTION, prefer=[Preference(profile="me", strength=1.5)], max_tokens=60)
        in_words = client.generate(
            QUESTION, prefer=[Preference("with a funny joke", strength=1.5)], max_tokens=60
        )
        assert by_name.text == in_words.text
        with pytest.raises(attune.Aborted):
            client.profiles.put("me", text="in a polite tone", expected_revision=0)
        assert client.profiles.put("me", text="in a polite tone", expected_revision=1).revision == 2
        assert client.profiles.get("me").text == "in a polite tone"
        client.profiles.delete("me")
        for gone in (lambda: client.profiles.get("me"), lambda: client.profiles.delete("me")):
            with pytest.raises(attune.NotFound):
                gone()
        with pytest.raises(attune.NotFound):
            client.generate(QUESTION, prefer=[Preference(profile="me")])


def test_all_pages_are_listed(keeping: str) -> None:
    names = [f"person {i:03}" for i in range(130)]

    async def listed() -> list[str]:
        async with AsyncClient(keeping, timeout=60) as client:
            await asyncio.gather(*(client.profiles.put(name, text="brief, please") for name in names))
            return [found.name async for found in client.profiles.list()]

    assert asyncio.run(listed()) == names
    with Client(keeping, timeout=60) as client:
        assert [found.name for found in client.profiles.list()] == names
        for name in names:
            client.profiles.delete(name)
        assert not list(client.profiles.list())


def test_vectors_are_checked_and_travel(keeping: str, tmp_path: Path) -> None:
    with Client(keeping, timeout=60) as client:
        size = client.describe().reward_workers[0].hidden_size
        with pytest.raises(attune.InvalidArgument) as wrong:
            client.profiles.put("vector", weights=[1.0] * (size + 1))
        assert [v.field for v in wrong.value.violations] == ["profile.weights.values"]
        client.profiles.put("vector", weights=[0.5] * size, text="brief, please")
        exported = client.profiles.export("vector")
        client.profiles.delete("vector")
        other = f"profiles.url=sqlite:{tmp_path / 'other.db'}"
        with worker("--set", other) as reward, generator(f"http://{reward}") as address:
            connected(f"http://{address}")
            with Client(f"http://{address}", timeout=60) as elsewhere:
                taken = elsewhere.profiles.take_in(exported)
                assert list(taken.weights.values) == [0.5] * size
                assert elsewhere.generate(QUESTION, prefer=[Preference(profile="vector")], max_tokens=4).tokens


def test_a_person_is_learned_and_fitted_again(keeping: str, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    command("train", "data", "--person", "plain", "--pairs", "20", "--out", str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    said = [pair(line["prompt"], line["chosen"], line["rejected"]) for line in lines]
    with Client(keeping, timeout=60) as client:
        with client.profiles.fit("learned", said, keep_feedback=True, reference="generator") as fit:
            steps = list(fit)
            fitted = fit.fitted()
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert steps[-1].done == steps[-1].total
        assert (fitted.fit.feedback, fitted.kept_feedback) == (20, 20)
        assert fitted.fit.accuracy_after > fitted.fit.accuracy_before
        assert fitted.fit.loss_after < fitted.fit.loss_before
        assert len(fitted.weights.values) == client.describe().reward_workers[0].hidden_size
        plain, theirs = (
            client.generate(QUESTION, prefer=prefer, temperature=0.0, max_tokens=60)
            for prefer in ([], [Preference(profile="learned", strength=2.0)])
        )
        assert plain.text != theirs.text
        with pytest.raises(attune.InvalidArgument, match="3 pieces of feedback are too few"):
            with client.profiles.fit("few", said[:3]) as fit:
                fit.fitted()

    async def again() -> int:
        async with AsyncClient(keeping, timeout=60) as client:
            # From what is kept; and what is kept goes with its profile.
            async with client.profiles.fit("learned", [], keep_feedback=True, method="weights") as fit:
                revision = (await fit.fitted()).revision
            await client.profiles.delete("learned")
            return revision

    assert asyncio.run(again()) == 2
