"""One measurement of transformers in bf16: FOLDER THREADS TOKENS -> JSON on stdout."""

import json
import sys
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM

folder, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
ids = torch.arange(1, 17)[None]


@torch.inference_mode()
def decode(count: int) -> float:
    """Seconds of `count` greedy steps after the prompt, with the cache."""
    out = model(ids, use_cache=True)
    begin = perf_counter()
    for _ in range(count):
        last = out.logits[:, -1:].argmax(-1)
        out = model(last, past_key_values=out.past_key_values, use_cache=True)
    return perf_counter() - begin


decode(4)
print(json.dumps({"tokens_per_s": (tokens - 1) / decode(tokens - 1)}))
