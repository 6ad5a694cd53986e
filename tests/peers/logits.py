#!/usr/bin/env python3
"""transformers' logits over a Hugging Face folder, as JSON.

    python tests/peers/logits.py --model DIR --prompt-ids 0,17,42 [--positions 0,2]
"""

import argparse
import json

import torch

from decoding import load_model


def logits(folder, prompt_ids, positions, attention="eager"):
    """Rows of logits, one for each of `positions`, to 6 decimals.

    Eager attention: the plainest form, with the sliding window as an explicit mask.
    """
    model = load_model(folder, attention)
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([prompt_ids])).logits[0]
    return [[round(value, 6) for value in rows[position].tolist()] for position in positions]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt-ids", required=True, help="1,2,3")
    parser.add_argument("--positions", help="0,2; default: the last one")
    args = parser.parse_args()
    ids = [int(part) for part in args.prompt_ids.split(",")]
    positions = [len(ids) - 1]
    if args.positions is not None:
        positions = [int(part) for part in args.positions.split(",")]
    print(json.dumps({"positions": positions, "logits": logits(args.model, ids, positions)}))


if __name__ == "__main__":
    main()
