#!/usr/bin/env python3
"""Vectors of the guidance maths in double precision, from Python's own arithmetic.

    python tests/peers/guidance_vectors.py > crates/guidance/tests/vectors.json

Independent of the Rust code: it needs no package and shares nothing with it but the formulas.
"""
import json
import math
import random


def log_softmax(values):
    top = max(values)
    total = math.fsum(math.exp(v - top) for v in values)
    return [v - top - math.log(total) for v in values]


def case(draw):
    k = draw.randint(1, 64)
    exact = lambda low, high: draw.randint(low * 64, high * 64) / 64  # exact in single precision
    logits = sorted((exact(-15, 15) for _ in range(k)), reverse=True)
    lse = exact(16, 24)
    min_p = draw.choice([0.0, 0.0, 1 / 128, 1 / 8])
    terms, scores = [], [l - lse for l in logits]
    for _ in range(draw.randint(0, 4)):
        policy = [exact(-8, 8) for _ in range(k)]
        reference = [exact(-8, 8) for _ in range(k)]
        rewards = [p - r for p, r in zip(log_softmax(policy), log_softmax(reference))]
        strength = exact(-10, 10)
        clip = draw.choice([None, None, 0.5, 2.0])
        used = rewards
        if clip is not None:
            mean = math.fsum(rewards) / k
            used = [max(-clip, min(clip, r - mean)) for r in rewards]
        scores = [s + strength * r for s, r in zip(scores, used)]
        terms.append(dict(policy=policy, reference=reference, rewards=rewards, strength=strength, clip=clip))
    out = [min_p > 0 and math.exp(l - logits[0]) < min_p for l in logits]
    kept = [s for s, gone in zip(scores, out) if not gone]
    norm = max(kept) + math.log(math.fsum(math.exp(s - max(kept)) for s in kept))
    return dict(logits=logits, log_sum_exp=lse, min_p=min_p, terms=terms,
                scores=[None if gone else s for s, gone in zip(scores, out)],
                log_probs=[None if gone else s - norm for s, gone in zip(scores, out)])


draw = random.Random(20260101)
print(json.dumps(dict(command="python tests/peers/guidance_vectors.py", cases=[case(draw) for _ in range(40)])))
