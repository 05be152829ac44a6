"""transformers in bf16. A job is described in lines.py."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from lines import PROMPT, STEPS, serve, until
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
    for count in until(job["seconds"]):
        ids = torch.randint(model.config.vocab_size, (1, job["tokens"]))
        model(ids, use_cache=True, logits_to_keep=1)
        done = count + 1
    return done * job["tokens"] / (perf_counter() - begin)


@torch.inference_mode()
def generate(model: Any, job: dict[str, Any]) -> float:
    """Greedy steps with the cache, after a prompt; the prompt is not in the time."""
    times, out = [], None
    for step in until(job["seconds"], least=2):
        if step % STEPS == 0:
            ids = torch.randint(model.config.vocab_size, (job["batch"], job["context"] or PROMPT))
            out = model(ids, use_cache=True, logits_to_keep=1)
        begin = perf_counter()
        last = out.logits[:, -1:].argmax(-1)
        out = model(last, past_key_values=out.past_key_values, use_cache=True)
        times.append(perf_counter() - begin)
    return job["batch"] * len(times) / sum(times)


if __name__ == "__main__":
    serve(prepare)
