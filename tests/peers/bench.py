#!/usr/bin/env python3
"""Interleaved timing of PAD decoding in Python: the comparators of docs/performance.md.

    python tests/peers/bench.py --set small [--rounds 3] [--models target/bench/models]

Each run is a process of its own (pad.py); every round runs each row once before the next round
starts. Prints one JSON object a run, then one a row with the median over the rounds. `other` is the
share of the machine's CPU time that foreign processes took meanwhile: contended runs show.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Seeds of the benchmarks' checkpoints.
BASE_SEED, RM_SEED = 20260101, 20260202

# Row: (mode, new tokens, further flags of pad.py).
SETS = {
    "small": {
        "plain": ("plain", 64, ()),
        "cached": ("cached", 64, ()),
        "cached-topk-head": ("cached", 64, ("--rm-head", "topk")),
        "plain-b8": ("plain", 64, ("--batch", "8")),
        "cached-b8": ("cached", 64, ("--batch", "8")),
        "official": ("official", 64, ()),
    },
    "medium": {
        "plain": ("plain", 48, ()),
        "cached": ("cached", 48, ()),
        "plain-b8": ("plain", 48, ("--batch", "8")),
        "cached-b8": ("cached", 48, ("--batch", "8")),
        "official": ("official", 10, ()),
    },
}


def make_models(folder, size):
    """Writes `size`-base and `size`-rm unless they are there; returns both paths."""
    paths = []
    for role, seed, kind in (("base", BASE_SEED, "base"), ("rm", RM_SEED, "rm-value-head")):
        path = folder / f"{size}-{role}"
        paths.append(path)
        if not (path / "model.safetensors").exists():
            maker = "cargo run --quiet --release -p attune-engine --example make_checkpoint --"
            arguments = [str(path), size, str(seed), kind]
            subprocess.run(maker.split() + arguments, cwd=ROOT, check=True)
    return paths


def machine_ticks():
    """(busy, total) ticks of the machine since boot."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(part) for part in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def children_ticks():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) * os.sysconf("SC_CLK_TCK")


def measure(command, environment):
    """The JSON that the command printed, and the share of CPU time that others took."""
    (busy, total), own = machine_ticks(), children_ticks()
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{out.stderr[-2000:]}")
    (busy_after, total_after), own_after = machine_ticks(), children_ticks()
    foreign = (busy_after - busy) - (own_after - own)
    other = max(0.0, foreign / max(1, total_after - total))
    return json.loads(out.stdout.strip().splitlines()[-1]), round(other, 3)


def steady(row, step_ms):
    """The steps that count: the first one of a cached mode is the prefill."""
    return step_ms if row == "official" else step_ms[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", required=True, choices=SETS)
    parser.add_argument("--rows", help="a,b: only these rows of the set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--linear", default="onednn", choices=["onednn", "mkl"])
    parser.add_argument("--models", type=Path, default=ROOT / "target/bench/models")
    args = parser.parse_args()

    base, rm = make_models(args.models, args.set)
    rows = {k: v for k, v in SETS[args.set].items() if not args.rows or k in args.rows.split(",")}
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(args.threads)

    medians, tokens = {}, {}
    for number in range(args.rounds):
        for row, (mode, new_tokens, flags) in rows.items():
            command = [sys.executable, str(Path(__file__).with_name("pad.py"))]
            command += ["--base", str(base), "--rm", str(rm), "--mode", mode]
            command += ["--prompt-ids", f"random:{args.prompt_length}:7"]
            command += ["--max-new-tokens", str(new_tokens), "--threads", str(args.threads)]
            command += ["--linear", args.linear, *flags]
            out, other = measure(command, environment)
            median = round(statistics.median(steady(row, out["step_ms"])), 3)
            medians.setdefault(row, []).append(median)
            tokens[row] = out["tokens"]
            print(json.dumps({"row": row, "round": number, "step_ms": median, "other": other}), flush=True)

    for row, values in medians.items():
        summary = {"set": args.set, "row": row, "step_ms": statistics.median(values)}
        print(json.dumps(summary | {"best": min(values), "worst": max(values)}))
    if "official" in tokens and "cached" in tokens:
        shared = min(len(tokens["official"]), len(tokens["cached"]))
        same = tokens["official"][:shared] == tokens["cached"][:shared]
        print(json.dumps({"set": args.set, "official_tokens_equal_cached": same}))


if __name__ == "__main__":
    main()
