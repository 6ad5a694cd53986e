from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

import attune
from attune import Client, Preference
from services import generator, worker

QUESTION = "How do I bake the bread?"


def test_a_preference_changes_the_text(client: Client) -> None:
    plain = client.generate(QUESTION, max_tokens=120)
    funny = client.generate(QUESTION, prefer=["with a funny joke"], max_tokens=120)
    assert plain.text and funny.text and plain.text != funny.text
    assert (plain.reason, funny.reason) == ("eos", "eos")
    assert all(token.guided for token in funny.tokens) and not any(token.guided for token in plain.tokens)
    assert plain.finish is not None and plain.finish.usage.generated_tokens == len(plain.token_ids)


def test_preferences_have_their_own_strengths(client: Client) -> None:
    prefer = [Preference("in a polite tone", strength=1.5), Preference("with a funny joke", strength=-0.5)]
    answer = client.generate(QUESTION, prefer=prefer, max_tokens=8, token_rewards=True)
    for token in answer.tokens:
        assert len(token.rewards) == 2
        for strength, reward, added in zip((1.5, -0.5), token.rewards, token.contributions, strict=True):
            assert added == pytest.approx(strength * reward, abs=1e-4)
    assert answer.finish is not None
    assert [acted.text for acted in answer.finish.guidances] == ["in a polite tone", "with a funny joke"]


def test_every_kind_of_prompt(client: Client) -> None:
    talk = [("system", "Answer."), ("user", QUESTION)]
    for prompt in (talk, attune.Raw("The bread"), attune.TokenIds([1, 2, 3])):
        assert len(client.generate(prompt, max_tokens=4, ignore_eos=True).token_ids) == 4
    as_said = client.generate([("user", QUESTION)], max_tokens=8)
    assert as_said.token_ids == client.generate(QUESTION, max_tokens=8).token_ids


def test_parts_come_one_by_one_and_make_up_the_whole(client: Client) -> None:
    with client.stream(QUESTION, max_tokens=20, ignore_eos=True) as stream:
        parts = [part.text for part in stream]
    assert len(parts) > 5 and "".join(parts) == stream.answer.text
    assert stream.answer.reason == "length"
    assert stream.answer.text == client.generate(QUESTION, max_tokens=20, ignore_eos=True).text


def test_sampling_is_passed_on(client: Client) -> None:
    def ids(seed: int) -> list[int]:
        sampled = client.generate(
            QUESTION,
            temperature=1.0,
            top_p=0.9,
            candidates=20,
            seed=seed,
            max_tokens=24,
            min_tokens=24,
            logit_bias={5: -100.0},
            repetition_penalty=1.1,
        )
        assert sampled.finish is not None and sampled.finish.seed == seed
        return sampled.token_ids

    assert ids(7) == ids(7) and ids(7) != ids(8)
    stopped = client.generate(QUESTION, stop=[" "], max_tokens=50)
    assert stopped.reason == "stop" and " " not in stopped.text
    table = client.generate(QUESTION, max_tokens=1, candidates=5, candidate_tables=True).tokens[0].candidates
    assert len(table) == 5


def test_describe_tells_models_and_workers(client: Client) -> None:
    described = client.describe()
    assert described.model_id == "base"
    assert [worker.model_id for worker in described.reward_workers] == ["persrm"]


def test_errors_name_the_field(client: Client) -> None:
    with pytest.raises(attune.InvalidArgument) as failed:
        client.generate(QUESTION, top_p=2.0, prefer=[Preference("x", strength=11)])
    assert {v.field for v in failed.value.violations} == {"sampling.top_p", "guidances[0].strength"}
    assert "INVALID_ARGUMENT" in str(failed.value)
    with pytest.raises(attune.NotFound):
        client.generate(QUESTION, prefer=[Preference("x", method="no such method")])
    with pytest.raises(TypeError, match="temprature"):
        client.generate(QUESTION, temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="list of preferences"):
        client.generate(QUESTION, prefer="brief")
    with pytest.raises(ValueError, match="REFERENCE_X"):
        client.generate(QUESTION, prefer=[Preference("x", reference="x")])  # type: ignore[arg-type]


def test_a_deadline_holds_to_the_end_of_the_stream(client: Client) -> None:
    with client.stream(QUESTION, max_tokens=400, ignore_eos=True, timeout=0.05) as stream:
        with pytest.raises(attune.DeadlineExceeded):
            stream.collect()


def test_who_leaves_cancels(client: Client) -> None:
    with client.stream(QUESTION, max_tokens=400, ignore_eos=True) as stream:
        next(iter(stream))
    with pytest.raises(attune.Cancelled):
        stream.collect()
    # From another thread, while this one waits.
    with client.stream(QUESTION, max_tokens=400, ignore_eos=True) as stream:
        parts = iter(stream)
        next(parts)
        canceller = threading.Thread(target=stream.cancel)
        canceller.start()
        with pytest.raises(attune.Cancelled):
            for _ in parts:
                pass
        canceller.join()
    # And nothing of theirs is left on the server.
    while client.describe().load.running:
        pass


def test_a_full_server_says_when_to_come_again() -> None:
    with worker() as reward, generator(f"http://{reward}", "--slots", "1", "--queue", "0") as address:
        with Client(f"http://{address}", timeout=60) as client:
            with client.stream(QUESTION, max_tokens=400, ignore_eos=True) as held:
                next(iter(held))
                with pytest.raises(attune.ResourceExhausted) as full:
                    client.generate(QUESTION)
    assert full.value.retry_after is not None and full.value.retry_after > 0


def test_an_interrupted_text_goes_on_elsewhere() -> None:
    asked: attune.Options = {
        "prefer": ["with a funny joke"],
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 60,
        "ignore_eos": True,
    }
    with ExitStack() as first:
        reward = first.enter_context(worker())
        patience = ("--set", "reward_loss_seconds=0.1")
        with generator(f"http://{reward}", *patience) as address, Client(f"http://{address}") as client:
            whole = client.generate(QUESTION, **asked)
            with pytest.raises(attune.Unavailable) as lost, client.stream(QUESTION, **asked) as stream:
                for part in stream:
                    if len(stream.answer.tokens) == 10:
                        first.close()
    resume = lost.value.resume
    assert resume is not None and resume.seed == 3
    assert list(resume.token_ids) == stream.answer.token_ids == whole.token_ids[: len(resume.token_ids)]
    going_on: attune.Options = {**asked, "seed": None, "resume": resume}
    with worker() as reward, generator(f"http://{reward}") as address, Client(f"http://{address}") as client:
        rest = client.generate(QUESTION, **going_on)
    assert [*resume.token_ids, *rest.token_ids] == whole.token_ids
