"""From what people write to the messages of the protos. Ranges are the server's to check: its answer names
the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from attune.generator.v1 import generator_pb2 as generator
from attune.profile.v1 import profile_pb2 as profile
from attune.reward.v1 import guidance_pb2 as guidance


@dataclass(frozen=True)
class Raw:
    """A prompt of raw text, without the chat template."""

    text: str


@dataclass(frozen=True)
class TokenIds:
    """A prompt of token ids, as they are."""

    ids: Sequence[int]


Prompt = str | Sequence[tuple[str, str]] | Raw | TokenIds
"""What a text continues: what the user says; or a conversation of (role, content), oldest first; or raw text,
or token ids."""


@dataclass(frozen=True)
class Preference:
    """One preference that acts on a text. Of `text`, `profile`, `weights` and `latent` give what there is.
    Attributes that are left out have the server's defaults (`attune/reward/v1/guidance.proto`)."""

    text: str | None = None
    """In words: "brief and a little funny, please"."""
    strength: float | None = None
    """How strongly it acts, in [-10, 10]; negative steers away. Absent: 1."""
    profile: str | None = None
    """The name of one of the caller's profiles."""
    weights: Sequence[float] | None = None
    """The weight vector itself, a number for each of the reward model's features."""
    latent: Sequence[float] | None = None
    """The latent itself."""
    clip: float | None = None
    """Limits each reward, less its mean over the candidates, to [-clip, clip]."""
    reward_model: str | None = None
    """A reward model's id."""
    method: str | None = None
    """How rewards are made: "pad", "genarm", ..."""
    reference: Literal["model", "generator", "none"] | None = None
    """What a token's reward is measured against."""
    normalization: Literal["candidates", "vocabulary"] | None = None
    """Over what the reward model's values are normalised."""
    context: Literal["template", "as_is"] | None = None
    """What the reward model reads before the text."""

    def term(self) -> generator.GuidanceTerm:
        """The message."""
        return generator.GuidanceTerm(
            guidance=guidance.Guidance(
                text=self.text,
                profile=self.profile,
                weights=_weights(self.weights),
                latent=_latent(self.latent),
                reward_model=self.reward_model,
                method=self.method,
                reference=_choice(guidance.Reference, "REFERENCE", self.reference),
                normalization=_choice(guidance.Normalization, "NORMALIZATION", self.normalization),
                context=_choice(guidance.Context, "CONTEXT", self.context),
            ),
            strength=self.strength,
            clip=self.clip,
        )


@dataclass(frozen=True)
class Resume:
    """Goes on with an interrupted text."""

    token_ids: Sequence[int]
    """The tokens received so far."""
    seed: int | None = None
    """The interrupted text's seed. Absent: the option `seed`."""


class Options(TypedDict, total=False):
    """What can be asked for beside the prompt; `attune/generator/v1/generator.proto` has ranges and defaults."""

    prefer: Sequence[Preference | str]
    """The preferences that act, all at once; one in words may be a plain string."""
    temperature: float | None
    candidates: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    max_tokens: int | None
    min_tokens: int | None
    stop: Sequence[str]
    ignore_eos: bool
    repetition_penalty: float | None
    logit_bias: Mapping[int, float]
    base_context: Literal["plain", "with_preference"] | None
    on_reward_loss: Literal["fail", "continue_unguided"] | None
    resume: Resume | None
    token_rewards: bool
    """Each token carries its reward under every preference, and what that added to its score."""
    candidate_tables: bool
    """Each token carries the table of its step's candidates."""


def generate_request(prompt: Prompt, options: Options) -> generator.GenerateRequest:
    """The request of a text.

    Raises:
        TypeError: an option is none of `Options`.
    """
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"{', '.join(sorted(unknown))}: there is no such option")
    prefer = options.get("prefer") or ()
    if isinstance(prefer, (str, Preference)):
        raise TypeError("prefer is a list of preferences: write prefer=[...]")
    resume = options.get("resume")
    fields = generator.Sampling.DESCRIPTOR.fields_by_name
    return generator.GenerateRequest(
        prompt=_prompt(prompt),
        guidances=[(Preference(p) if isinstance(p, str) else p).term() for p in prefer],
        base_context=_choice(generator.BaseContext, "BASE_CONTEXT", options.get("base_context")),
        sampling=generator.Sampling(**{k: v for k, v in options.items() if k in fields}),  # type: ignore[arg-type]
        on_reward_loss=_choice(generator.OnRewardLoss, "ON_REWARD_LOSS", options.get("on_reward_loss")),
        resume=generator.Resume(token_ids=resume.token_ids, seed=resume.seed) if resume else None,
        output=generator.OutputOptions(
            token_rewards=options.get("token_rewards"), candidate_tables=options.get("candidate_tables")
        ),
    )


def pair(prompt: Prompt, chosen: str, rejected: str) -> profile.Feedback:
    """Feedback: of two answers, one was preferred."""
    return profile.Feedback(prompt=_prompt(prompt), pair=profile.Pair(chosen=chosen, rejected=rejected))


def thumb(prompt: Prompt, answer: str, up: bool) -> profile.Feedback:
    """Feedback: one answer was liked (`up`) or not."""
    return profile.Feedback(prompt=_prompt(prompt), thumb=profile.Thumb(answer=answer, up=up))


def put_request(
    name: str,
    text: str | None,
    weights: Sequence[float] | None,
    latent: Sequence[float] | None,
    reference: str | None,
    reward_model: str | None,
    expected_revision: int | None,
) -> profile.PutRequest:
    """The request that keeps a profile."""
    return profile.PutRequest(
        profile=profile.Profile(
            name=name,
            text=text,
            weights=_weights(weights),
            latent=_latent(latent),
            reference=_choice(guidance.Reference, "REFERENCE", reference),
            model_id=reward_model,
        ),
        expected_revision=expected_revision,
    )


def import_request(
    exported: profile.GetResponse, expected_revision: int | None
) -> profile.PutRequest:
    """The request that takes in an exported profile."""
    return profile.PutRequest(
        profile=exported.profile,
        expected_revision=expected_revision,
        imported=True,
        feedback=exported.feedback,
    )


class FitOptions(TypedDict, total=False):
    """What can be asked of a fit; `attune/profile/v1/profile.proto` says what absent means."""

    keep_feedback: bool
    """The owner's consent that the feedback is kept, to fit again for another model."""
    reward_model: str | None
    method: Literal["weights", "latent"] | None
    reference: Literal["model", "generator", "none"] | None
    text: str | None
    """The preference in words that the fit adds to."""
    expected_revision: int | None


def fit_request(name: str, feedback: Sequence[profile.Feedback], options: FitOptions) -> profile.FitRequest:
    """The request of a fit.

    Raises:
        TypeError: an option is none of `FitOptions`.
    """
    if unknown := options.keys() - FitOptions.__annotations__.keys():
        raise TypeError(f"{', '.join(sorted(unknown))}: there is no such option")
    return profile.FitRequest(
        name=name,
        feedback=feedback,
        keep_feedback=options.get("keep_feedback"),
        reward_model=options.get("reward_model"),
        method=_choice(profile.FitMethod, "FIT_METHOD", options.get("method")),
        reference=_choice(guidance.Reference, "REFERENCE", options.get("reference")),
        text=options.get("text"),
        expected_revision=options.get("expected_revision"),
    )


def _prompt(prompt: Prompt) -> guidance.Prompt:
    if isinstance(prompt, Raw):
        return guidance.Prompt(text=prompt.text)
    if isinstance(prompt, TokenIds):
        return guidance.Prompt(token_ids=guidance.TokenIds(ids=prompt.ids))
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    messages = [guidance.ChatMessage(role=role, content=content) for role, content in turns]
    return guidance.Prompt(messages=guidance.ChatMessages(messages=messages))


def _weights(values: Sequence[float] | None) -> guidance.Weights | None:
    return None if values is None else guidance.Weights(values=values)


def _latent(values: Sequence[float] | None) -> guidance.Latent | None:
    return None if values is None else guidance.Latent(values=values)


def _choice(enum: Any, prefix: str, name: str | None) -> Any:
    """The value of an enum by its short name, in lower case."""
    return None if name is None else enum.Value(f"{prefix}_{name.upper()}")
