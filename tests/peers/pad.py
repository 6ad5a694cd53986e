#!/usr/bin/env python3
"""Decodes with the official PAD algorithm, the same with KV caches, or the base model alone.

    python tests/peers/pad.py --base DIR --rm DIR --mode cached --prompt-ids random:128:7

Prints one JSON object: tokens, gaps, and the time of each step in milliseconds.
"""

import argparse
import json
import os

import numpy


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--rm", help="folder of the PersRM, with value_head.safetensors")
    parser.add_argument("--mode", default="cached", choices=["official", "cached", "plain"])
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt-ids", help="1,2,3 | @file.json | random:N:SEED (N ids, bos first)")
    prompt.add_argument("--prompt", help="text, put through the tokenizer's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=10, help="k")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=1, help="prompts at once; not for official")
    parser.add_argument("--rm-head", default="full", choices=["full", "topk"])
    parser.add_argument("--linear", default="onednn", choices=["onednn", "mkl"])
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    if parsed.mode != "plain" and parsed.rm is None:
        parser.error(f"--mode {parsed.mode} needs --rm")
    if parsed.mode == "official" and parsed.batch != 1:
        parser.error("--mode official takes one prompt at a time")
    return parsed


def random_prompt(length, seed, vocab):
    """`length` ids: the first token of a text, then ids that are no special tokens."""
    ids = numpy.random.RandomState(seed).randint(6, min(vocab, 4096), length - 1)
    return [0, *ids.tolist()]


def prompts(args, vocab):
    if args.prompt is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.base)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": args.prompt}], tokenize=False, add_generation_prompt=True
        )
        return [tokenizer(text, add_special_tokens=False)["input_ids"]] * args.batch
    if args.prompt_ids.startswith("random:"):
        _, length, seed = args.prompt_ids.split(":")
        return [random_prompt(int(length), int(seed) + row, vocab) for row in range(args.batch)]
    if args.prompt_ids.startswith("@"):
        with open(args.prompt_ids[1:], encoding="utf-8") as file:
            ids = json.load(file)
    else:
        ids = [int(part) for part in args.prompt_ids.split(",")]
    return [ids] * args.batch


def main():
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    # Imported late: OpenMP reads its threads when torch loads.
    import torch
    import transformers

    from decoding import Pair

    torch.set_num_threads(args.threads)
    rm = None if args.mode == "plain" else args.rm
    pair = Pair(args.base, rm, onednn=args.linear == "onednn")
    run = pair.decode(
        args.mode,
        prompts(args, pair.base.config.vocab_size),
        args.max_new_tokens,
        args.candidates,
        args.strength,
        args.rm_head,
    )
    guided = args.mode != "plain"
    print(
        json.dumps(
            {
                "mode": args.mode,
                "batch": args.batch,
                "prompt_length": run.prompt_length,
                "candidates": args.candidates,
                "strength": args.strength,
                "tokens": run.tokens[0] if args.batch == 1 else run.tokens,
                "min_score_gap": round(run.score_gap, 6) if guided else None,
                "min_k_gap": round(run.k_gap, 6) if guided else None,
                "step_ms": [round(ms, 3) for ms in run.step_ms],
                "versions": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
