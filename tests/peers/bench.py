#!/usr/bin/env python3
"""Decodes on demand, to be timed in turn with Attune: the Python side of `make bench`.

    python tests/peers/bench.py --base DIR --rm DIR [--threads 2] [--linear onednn]

Loads both models once and prints {"ready": true, ...}. Then, for each line of JSON on stdin,

    {"mode": "official", "prompt": [0, 17, ...], "steps": 64, "candidates": 10, "strength": 0.8}

decodes one text and prints {"step_ms": [...], "tokens": [...]}. Modes: official, cached, plain
(`decoding.py` says what each is); the first step of cached and plain is the prefill. Ends with stdin.
"""

import argparse
import json
import os
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--rm", required=True, help="folder of the PersRM, with value_head.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--linear", default="onednn", choices=["onednn", "mkl"])
    return parser.parse_args()


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    args = arguments()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Imported late: OpenMP reads its threads when torch loads.
    import torch
    import transformers

    from decoding import MODES, Pair

    torch.set_num_threads(args.threads)
    pair = Pair(args.base, args.rm, onednn=args.linear == "onednn")
    say({"ready": True, "torch": torch.__version__, "transformers": transformers.__version__})
    for line in sys.stdin:
        task = json.loads(line)
        if task["mode"] not in MODES:
            raise SystemExit(f"mode {task['mode']!r} is none of {', '.join(MODES)}")
        run = pair.decode(
            task["mode"],
            [task["prompt"]],
            task["steps"],
            task.get("candidates", 10),
            task.get("strength", 1.0),
        )
        say({"step_ms": [round(ms, 3) for ms in run.step_ms], "tokens": run.tokens[0]})


if __name__ == "__main__":
    main()
