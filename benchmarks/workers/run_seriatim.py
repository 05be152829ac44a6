"""One measurement of seriatim: FOLDER THREADS TOKENS -> JSON on stdout."""

import json
import sys
from time import perf_counter

import seriatim

folder, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = seriatim.load(folder, threads=threads, context=1024)
prompt = list(range(1, 17))
model.generate(prompt, max_tokens=8, temperature=0, ignore_end=True)
begin = perf_counter()
result = model.generate(prompt, max_tokens=tokens, temperature=0, ignore_end=True)
decode = result.usage.decode_ms / 1000
print(json.dumps({"tokens_per_s": (tokens - 1) / decode, "whole_s": perf_counter() - begin}))
