#!/usr/bin/env python3
"""Remakes the kept vectors that the Rust tests compare with.

    python tests/peers/make_vectors.py [--only pad|logits]

Writes tests/vectors/pad_official.json (tokens of the official PAD algorithm) and
crates/engine/tests/vectors/logits_*.json (transformers' logits). The checkpoints come from the
Rust maker (`cargo run -p attune-engine --example make_checkpoint`) in a temporary folder: a vector
file holds shape and seed, not weights.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy
import torch
import transformers

from decoding import Pair
from logits import logits

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python tests/peers/make_vectors.py"

K = 10
NEW_TOKENS = 64
STRENGTHS = (0.0, 0.8, 1.5)
# A decision closer than this may fall otherwise by rounding alone: such a prompt is replaced.
CLOSE = 5e-4
PROMPT_LENGTHS = (3, 8, 15, 24, 37, 48, 60)


def shape(family, **changes):
    common = {
        "family": family,
        "hidden": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "intermediate": 160,
        "vocab": 512,
        "tied": False,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "max_position": 512,
        "std": 0.2,
    }
    assert changes.keys() <= common.keys()
    return common | changes


LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Standard deviations: wide logits, so that few prompts have close decisions.
PAD_SHAPES = {
    "llama": shape("llama", std=0.3),
    "llama-tied": shape(
        "llama", hidden=96, layers=3, heads=6, kv_heads=6, intermediate=208, vocab=600, tied=True,
        rope_theta=500000.0, rope_scaling=LLAMA3_ROPE, std=0.25,
    ),
    "qwen2-tied": shape(
        "qwen2", hidden=128, heads=8, kv_heads=2, intermediate=320, vocab=640, tied=True,
        rope_theta=1000000.0, std=0.25,
    ),
}

LOGIT_SHAPES = {
    "llama2": shape("llama", kv_heads=4),
    "llama3": shape(
        "llama", tied=True, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE, max_position=1024
    ),
    "mistral": shape("mistral", layers=3, sliding_window=9),
    "qwen2": shape("qwen2", heads=8, kv_heads=2, head_dim=8, rope_theta=1000000.0),
    # A head wider than hidden / heads, as Qwen 3 has it.
    "qwen3": shape("qwen3", head_dim=32, tied=True, rope_theta=1000000.0),
}


def write_checkpoint(folder, model_shape, seed, kind):
    maker = ["cargo", "run", "--quiet", "-p", "attune-engine", "--example", "make_checkpoint", "--"]
    arguments = [str(folder), json.dumps(model_shape), str(seed), kind]
    subprocess.run(maker + arguments, cwd=ROOT, check=True)


def prompt(length, seed, vocab):
    ids = numpy.random.RandomState(seed).randint(6, vocab, length - 1)
    return [0, *ids.tolist()]


def header(about):
    return {
        "about": about,
        "command": COMMAND,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def pad_cases(name, model_shape, base_seed, folder):
    """For each prompt length the first seeded prompt without a close decision, at each strength."""
    base, rm = folder / "base", folder / "rm"
    write_checkpoint(base, model_shape, base_seed, "base")
    write_checkpoint(rm, model_shape, base_seed + 1, "rm-value-head")
    pair = Pair(base, rm)
    for length in PROMPT_LENGTHS:
        for seed in range(1000):
            ids = prompt(length, 1000 * length + seed, model_shape["vocab"])
            runs = []
            for strength in STRENGTHS:
                run = pair.decode("official", [ids], NEW_TOKENS, K, strength)
                if min(run.score_gap, run.k_gap) < CLOSE:
                    break
                runs.append(run)
            if len(runs) == len(STRENGTHS):
                break
        else:
            raise SystemExit(f"{name}: no prompt of {length} ids without a close decision")
        print(f"{name}: {length} ids, {seed} prompts replaced", flush=True)
        for strength, run in zip(STRENGTHS, runs, strict=True):
            yield {
                "shape": name,
                "base_seed": base_seed,
                "rm_seed": base_seed + 1,
                "prompt_ids": ids,
                "strength": strength,
                "tokens": run.tokens[0],
                "min_score_gap": round(run.score_gap, 6),
                "min_k_gap": round(run.k_gap, 6),
            }


def make_pad():
    cases = []
    for index, (name, model_shape) in enumerate(PAD_SHAPES.items()):
        with tempfile.TemporaryDirectory() as folder:
            cases += pad_cases(name, model_shape, 100 * (index + 1), Path(folder))
    about = (
        "Tokens of the official PAD algorithm, greedy: both models re-run on the whole sequence at "
        "every step; the PersRM's output head over its value head's features; no stop at the end "
        "of the text."
    )
    vectors = header(about) | {
        "candidates": K,
        "new_tokens": NEW_TOKENS,
        "shapes": PAD_SHAPES,
        "cases": cases,
    }
    write_json(ROOT / "tests/vectors/pad_official.json", vectors)


def make_logits():
    for index, (name, model_shape) in enumerate(LOGIT_SHAPES.items()):
        seed = 11 * (index + 1)
        ids = prompt(40, seed, model_shape["vocab"])
        # The first row, one inside and one past the sliding window, the last.
        positions = [0, 7, 21, 39]
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(folder, model_shape, seed, "base")
            rows = logits(folder, ids, positions)
        vectors = header("transformers' logits at some positions of one prompt, eager, float32.") | {
            "shape": model_shape,
            "seed": seed,
            "prompt_ids": ids,
            "positions": positions,
            "logits": rows,
        }
        write_json(ROOT / f"crates/engine/tests/vectors/logits_{name}.json", vectors)


def write_json(path, value):
    """One line for each key of the outermost object, and for each case: small, and fit for diffs."""
    lines = []
    for key, part in value.items():
        if key in ("cases", "logits"):
            rows = ",\n  ".join(json.dumps(row) for row in part)
            lines.append(f"{json.dumps(key)}: [\n  {rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(part)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["pad", "logits"])
    only = parser.parse_args().only
    # One thread: the same sums on every machine with the same libraries.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if only != "pad":
        make_logits()
    if only != "logits":
        make_pad()


if __name__ == "__main__":
    main()
