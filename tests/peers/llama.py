#!/usr/bin/env python3
"""Decodes on demand with llama.cpp, to be timed in turn with Attune: a side of `make bench`.

    python tests/peers/llama.py --base DIR [--threads 2]

Writes the checkpoint as a GGUF file of the same numbers (f32), loads it, and prints {"ready": true, ...}.
Then, for each line of JSON on stdin,

    {"prompt": [0, 17, ...], "steps": 64}

decodes one text greedily with the base model alone, and prints {"step_ms": [...], "tokens": [...]}; the first
step is the prefill. Ends with stdin.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True, help="folder of the base model, of Llama's architecture")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def say(answer):
    print(json.dumps(answer), flush=True)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name):
    """A tensor's name as GGUF files have it."""
    if name in ENDS:
        return ENDS[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part.removesuffix('.weight')]}.weight"


def in_pairs(tensor, heads):
    """Rotated heads keep their halves apart in a checkpoint, and their pairs together in a GGUF file."""
    rows = tensor.shape[0] // heads
    split = tensor.reshape(heads, 2, rows // 2, tensor.shape[1])
    return split.swapaxes(1, 2).reshape(tensor.shape).copy()


def write(base, path):
    """Writes the checkpoint of a folder as one GGUF file, without a tokenizer: tokens come as ids."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or config.get("rope_scaling"):
        raise SystemExit("only Llama's architecture without scaled positions is converted here")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in load_file(base / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            tensor = in_pairs(tensor, heads if "q_proj" in name else groups)
        writer.add_tensor(gguf_name(name), tensor.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config["vocab_size"]


def main():
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import llama_cpp
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "base.gguf"
        vocab = write(pathlib.Path(args.base), path)
        model = llama_cpp.Llama(
            str(path),
            n_ctx=2048,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            # Keys and values in f32 as well, so that both sides compute the same.
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            use_mmap=False,
            verbose=False,
        )
    say({"ready": True, "llama_cpp": llama_cpp.__version__})

    def best():
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(numpy.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    for line in sys.stdin:
        task = json.loads(line)
        model.reset()
        tokens, step_ms, read = [], [], task["prompt"]
        for _ in range(task["steps"]):
            start = time.perf_counter()
            model.eval(read)
            read = [best()]
            step_ms.append(round((time.perf_counter() - start) * 1e3, 3))
            tokens += read
        say({"step_ms": step_ms, "tokens": tokens})


if __name__ == "__main__":
    main()
