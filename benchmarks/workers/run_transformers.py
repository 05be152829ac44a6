"""transformers in bf16. A job is described in lines.py."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from lines import PROMPT, serve, steps
from transformers import AutoModelForCausalLM


def prepare(job: dict[str, Any]) -> tuple[int, Callable[[], dict[str, float]]]:
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["path"], dtype=torch.bfloat16).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    measure = prefill if job["kind"] == "prefill" else generate
    return size, lambda: {"value": measure(model, job)}


@torch.inference_mode()
def prefill(model: Any, job: dict[str, Any]) -> float:
    begin = perf_counter()
    for count in steps(job["seconds"], least=1):
        ids = torch.randint(model.config.vocab_size, (1, job["tokens"]))
        model(ids, use_cache=True, logits_to_keep=1)
        done = count + 1
    return done * job["tokens"] / (perf_counter() - begin)


@torch.inference_mode()
def generate(model: Any, job: dict[str, Any]) -> float:
    """Greedy steps with the cache, after a prompt."""
    shape = (job["batch"], job["context"] or PROMPT)
    out = model(torch.randint(model.config.vocab_size, shape), use_cache=True, logits_to_keep=1)
    begin = perf_counter()
    for step in steps(job["seconds"], least=2):
        last = out.logits[:, -1:].argmax(-1)
        out = model(last, past_key_values=out.past_key_values, use_cache=True)
        done = step + 1
    return done * job["batch"] / (perf_counter() - begin)


if __name__ == "__main__":
    serve(prepare)
