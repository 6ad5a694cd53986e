"""PAD decoding on the CPU, float32, over Hugging Face folders.

official  both models re-run on the whole sequence at every step, without a KV cache, logits of
          every position, and the PersRM's output head applied twice (to the plain hidden state,
          then to the value head's), as the published code does
cached    the same maths with a KV cache in both models, last position only
plain     the base model alone, KV cache, greedy

A candidate among the base model's best k scores
    base_logit + strength * (log_softmax_k(PersRM logits) - log_softmax_k(base logits)),
and the best one is taken. No mode stops at the end-of-text token.
"""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODES = ("official", "cached", "plain")


def load_model(folder, attention="sdpa"):
    """The causal language model of a folder, float32, ready to run."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def load_value_head(folder, hidden):
    """The official release's matrix between the last hidden state and the output head."""
    weights = load_file(Path(folder) / "value_head.safetensors")
    head = torch.nn.Linear(hidden, hidden)
    head.weight.data = weights["v_head.summary.weight"]
    head.bias.data = weights["v_head.summary.bias"]
    return head


def use_onednn(*modules):
    """Sends every linear layer through oneDNN: MKL's products of few rows are slow on some CPUs."""
    for module in modules:
        for linear in module.modules():
            if isinstance(linear, torch.nn.Linear):
                _patch(linear)


def _patch(linear):
    weight = linear.weight.to_mkldnn()
    bias = None if linear.bias is None else linear.bias.to_mkldnn()

    def forward(x):
        rows = x.reshape(-1, x.shape[-1]).to_mkldnn()
        product = torch._C._nn.mkldnn_linear(rows, weight, bias).to_dense()
        return product.reshape(*x.shape[:-1], linear.out_features)

    linear.forward = forward


class Pair:
    """A base model and, unless only plain decoding is wanted, a PersRM with a value head."""

    def __init__(self, base, rm=None, onednn=False):
        self.base = load_model(base)
        self.rm = self.value_head = None
        if rm is not None:
            self.rm = load_model(rm)
            self.value_head = load_value_head(rm, self.rm.config.hidden_size)
        if onednn:
            use_onednn(*(m for m in (self.base, self.rm, self.value_head) if m is not None))

    def decode(self, mode, prompts, steps, k=10, strength=1.0, rm_head="full"):
        """Decodes `steps` tokens after each of the equally long `prompts`.

        `rm_head` (cached only): "full" multiplies the PersRM's whole output head, "topk" only the
        candidates' rows. Returns a `Decoded`.
        """
        run = Decoded(len(prompts[0]))
        ids = torch.tensor(prompts)
        with torch.no_grad():
            step = getattr(self, f"_{mode}")(k, strength, rm_head, run)
            for _ in range(steps):
                start = time.perf_counter()
                ids = torch.cat([ids, step(ids)], 1)
                run.step_ms.append((time.perf_counter() - start) * 1e3)
        run.tokens = ids[:, run.prompt_length :].tolist()
        return run

    def _official(self, k, strength, _rm_head, run):
        def step(ids):
            mask = torch.ones_like(ids)
            logits = self.base(input_ids=ids, attention_mask=mask, use_cache=True).logits[:, -1]
            out = self.rm(
                input_ids=ids, attention_mask=mask, use_cache=True, output_hidden_states=True
            )
            # The last of the hidden states is the one after the final norm.
            rewards = self.rm.lm_head(self.value_head(out.hidden_states[-1]))[:, -1]
            top, candidates = run.best(logits, k)
            return run.choose(top, candidates, rewards.gather(1, candidates), strength)

        return step

    def _cached(self, k, strength, rm_head, run):
        base_step, rm_cache = self._base_step(), None

        def step(ids):
            nonlocal rm_cache
            top, candidates = run.best(base_step(ids), k)
            new = ids if rm_cache is None else ids[:, -1:]
            out = self.rm.model(input_ids=new, past_key_values=rm_cache, use_cache=True)
            rm_cache = out.past_key_values
            features = self.value_head(out.last_hidden_state[:, -1])
            if rm_head == "full":
                rewards = self.rm.lm_head(features).gather(1, candidates)
            else:
                rows = self.rm.lm_head.weight[candidates]
                rewards = torch.einsum("bkh,bh->bk", rows, features)
            return run.choose(top, candidates, rewards, strength)

        return step

    def _plain(self, _k, _strength, _rm_head, _run):
        base_step = self._base_step()
        return lambda ids: base_step(ids).argmax(-1, keepdim=True)

    def _base_step(self):
        cache = None

        def step(ids):
            nonlocal cache
            new = ids if cache is None else ids[:, -1:]
            out = self.base(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            return out.logits[:, -1]

        return step


class Decoded:
    """Tokens of one run, its times, and how close its decisions were."""

    def __init__(self, prompt_length):
        self.prompt_length = prompt_length
        self.tokens = []
        self.step_ms = []
        # The smallest distance of the best score from the second, and of the k-th base logit from
        # the next: under 5e-4 another implementation's rounding may decide otherwise.
        self.score_gap = float("inf")
        self.k_gap = float("inf")

    def best(self, logits, k):
        """The k best logits and their ids, [rows, k] each."""
        top = logits.topk(k + 1, -1)
        gap = (top.values[:, -2] - top.values[:, -1]).min().item()
        self.k_gap = min(self.k_gap, gap)
        return top.values[:, :-1], top.indices[:, :-1]

    def choose(self, top, candidates, rewards, strength):
        """The candidate with the best guided score, [rows, 1]."""
        score = top + strength * (rewards.log_softmax(-1) - top.log_softmax(-1))
        best = score.topk(2, -1)
        gap = (best.values[:, 0] - best.values[:, 1]).min().item()
        self.score_gap = min(self.score_gap, gap)
        return candidates.gather(1, best.indices[:, :1])
