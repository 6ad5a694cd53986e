from __future__ import annotations

import asyncio

import pytest

import attune
from attune import AsyncClient, Client

QUESTION = "How do I bake the bread?"


def test_texts_side_by_side_are_those_of_the_other_client(endpoint: str, client: Client) -> None:
    wishes = ["with a funny joke", "in a polite tone", "in one short sentence"]

    async def all_at_once() -> list[attune.Answer]:
        async with AsyncClient(endpoint, timeout=60) as client:
            texts = (client.generate(QUESTION, prefer=[wish], max_tokens=40) for wish in wishes)
            return await asyncio.gather(*texts)

    for wish, answer in zip(wishes, asyncio.run(all_at_once()), strict=True):
        assert answer.text == client.generate(QUESTION, prefer=[wish], max_tokens=40).text


def test_parts_deadlines_and_cancels(endpoint: str) -> None:
    async def talk() -> None:
        async with AsyncClient(endpoint, timeout=60) as client:
            assert (await client.describe()).model_id == "base"
            async with client.stream(QUESTION, max_tokens=12, ignore_eos=True) as stream:
                parts = [part.text async for part in stream]
            assert "".join(parts) == stream.answer.text and stream.answer.reason == "length"

            long: attune.Options = {"max_tokens": 400, "ignore_eos": True}
            with pytest.raises(attune.DeadlineExceeded):
                await client.generate(QUESTION, timeout=0.05, **long)
            async with client.stream(QUESTION, **long) as stream:
                with pytest.raises(attune.Cancelled):
                    async for _ in stream:
                        stream.cancel()
            # A task's own cancellation stays one, and ends its call.
            task = asyncio.create_task(client.generate(QUESTION, **long))
            while not (await client.describe()).load.running:
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (await client.describe()).load.running:
                pass
            with pytest.raises(attune.InvalidArgument) as failed:
                await client.generate(QUESTION, candidates=65)
            assert [v.field for v in failed.value.violations] == ["sampling.candidates"]

    asyncio.run(talk())
