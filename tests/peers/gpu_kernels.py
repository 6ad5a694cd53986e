"""The work of `attune gpu bench`'s kernels in PyTorch, on the same card and with the same clock.

select and select_f32: torch.topk and torch.logsumexp, in bfloat16 and in single precision; score: the
candidates' rows by index and einsum, log_softmax; fuse_sample: softmax and multinomial;
attention and prompt: scaled_dot_product_attention, whose cache lies in one piece. CUDA events, the card's
cache written over before every run, medians.
With --beside FILE it shows each beside Attune's own time from that file, and adds its times to it.
--dry-run shows what would be run, without torch.
"""

import argparse
import json

K = 10
ROUNDS, WARMUP = 30, 3
SIZES = [1, 8, 64, 256]
VOCABULARIES = [32_000, 128_256, 151_936]
WIDTH = 4096


def works():
    """Every kernel, rows and columns that is measured."""
    for rows in SIZES:
        for vocab in VOCABULARIES:
            yield "select", rows, vocab
            yield "select_f32", rows, vocab
        yield "score", rows, WIDTH
        yield "fuse_sample", rows, K
        yield "attention", rows, 1024
    yield "prompt", 4096, 4096


def timed(torch, work, flush):
    """The median time of `work` in microseconds."""
    times = []
    for i in range(WARMUP + ROUNDS):
        flush.zero_()
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        if i >= WARMUP:
            times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def prepared(torch, kernel, rows, columns):
    """The work of one kernel, its inputs on the card."""
    if kernel in ("select", "select_f32"):
        element = torch.bfloat16 if kernel == "select" else torch.float32
        logits = torch.randn(rows, columns, device="cuda", dtype=element)
        return lambda: (torch.topk(logits, K), torch.logsumexp(logits, -1))
    if kernel == "score":
        head = torch.randn(32_000, columns, device="cuda", dtype=torch.bfloat16)
        hidden = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
        weights = torch.randn(columns, device="cuda", dtype=torch.bfloat16)
        ids = torch.randint(0, 32_000, (rows, K), device="cuda")
        return lambda: torch.log_softmax(torch.einsum("bkd,bd->bk", head[ids], hidden * weights), -1)
    if kernel in ("attention", "prompt"):
        texts, queries = (rows, 1) if kernel == "attention" else (1, rows)
        shapes = [(texts, 32, queries, 128), (texts, 8, columns, 128), (texts, 8, columns, 128)]
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
        attend = torch.nn.functional.scaled_dot_product_attention
        return lambda: attend(q, k, v, is_causal=kernel == "prompt", enable_gqa=True)
    base = torch.randn(rows, K, device="cuda")
    rewards = torch.randn(rows, 2, K, device="cuda")
    strengths = torch.full((rows, 2, 1), 0.8, device="cuda")
    return lambda: torch.multinomial(torch.softmax((base + (strengths * rewards).sum(1)) / 0.7, -1), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.dry_run:
        for work in works():
            print("dry run:", *work)
        return
    import torch

    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    own, report = {}, None
    if args.beside:
        with open(args.beside, encoding="utf-8") as file:
            report = json.load(file)
        own = {(k["kernel"], k["rows"], k["columns"]): k["microseconds"] for k in report["kernels"]}
    print(f"{'PyTorch ' + torch.__version__:<20} {'rows':>5} {'columns':>8} {'us':>10} {'Attune us':>10} {'ratio':>7}")
    times = []
    for kernel, rows, columns in works():
        theirs = timed(torch, prepared(torch, kernel, rows, columns), flush)
        times.append({"kernel": kernel, "rows": rows, "columns": columns, "microseconds": theirs})
        ours = own.get((kernel, rows, columns))
        beside = f"{ours:>10.1f} {theirs / ours:>6.1f}x" if ours else ""
        print(f"{kernel:<20} {rows:>5} {columns:>8} {theirs:>10.1f} {beside}", flush=True)
    if report is not None:
        report["pytorch"] = {"version": torch.__version__, "kernels": times}
        with open(args.beside, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
