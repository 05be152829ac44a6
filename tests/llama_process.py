"""llama.cpp itself, as an oracle: it runs under an interpreter of its own, named by SERIATIM_LLAMA.

A plain module for tests: `ids(path, texts)`, `greedy(path, prompt, count)`, `logits(path, ids)`.
"""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
import llama_cpp
import numpy as np

what, path, given = sys.argv[1], sys.argv[2], json.load(sys.stdin)
F32 = 0  # of keys and values

def open_(**options):
    return llama_cpp.Llama(path, n_threads=1, verbose=False, **options)

def ids(texts):
    model = open_(vocab_only=True)
    return [model.tokenize(t.encode(), add_bos=False, special=False) for t in texts]

def prompts(texts):
    model = open_(vocab_only=True)
    return [model.tokenize(t.encode(), add_bos=True, special=False) for t in texts]

def logits(ids):
    model = open_(n_ctx=256, logits_all=True, type_k=F32, type_v=F32)
    model.eval(ids)
    return model.scores[: len(ids)].tolist()

def greedy(given):
    prompt, count = given
    model = open_(n_ctx=256, type_k=F32, type_v=F32)
    model.eval(model.tokenize(prompt.encode(), add_bos=True, special=False))
    made = []
    for _ in range(count):
        row = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        made.append(int(np.ctypeslib.as_array(row, (model.n_vocab(),)).argmax()))
        model.eval(made[-1:])
    return made, model.detokenize(made).decode(errors="replace")

print(json.dumps(globals()[what](given)))
"""


@cache
def python() -> str:
    """The interpreter; the test is skipped where there is none that has llama-cpp-python."""
    found = os.environ.get("SERIATIM_LLAMA", "")
    program = [found, "-c", "import llama_cpp"]
    if not found or subprocess.run(program, capture_output=True, check=False).returncode:
        pytest.skip("needs SERIATIM_LLAMA, a Python with llama-cpp-python")
    return found


def ask(what: str, path: Path, given: Any) -> Any:
    """One of the functions of `PROGRAM`, in a process of its own."""
    done = subprocess.run(
        [python(), "-c", PROGRAM, what, str(path)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
