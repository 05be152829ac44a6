"""Small models that the law tests run on: made once in a process, loaded as a test needs them.

A plain module for tests: `load("mistral", threads=2)`. `KINDS` is the registry of the laws.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import pytest

import seriatim
from seriatim.codecs import byte, text

STORIES = (
    Path(__file__).parents[2] / "shared" / "data" / "weights" / "stories260K" / "stories260K.bin"
)

# Grouped heads and scaled rotary; a window of 13 positions; learned positions, tied, biased; 16 bit
# weights (and therefore keys and values) with QK-norm; and a model that was really trained.
KINDS = {
    "llama3": ("llama3", "float32"),
    "mistral": ("mistral", "float32"),
    "gpt2": ("gpt2", "float32"),
    "qwen3-bf16": ("qwen3", "bfloat16"),
    "stories260K": None,
}


def load(kind: str, **options) -> seriatim.Model:
    """A model of its own: nothing is shared with what other tests load."""
    return seriatim.load(folder(kind), **{"threads": 1} | options)


@cache
def shared(kind: str) -> seriatim.Model:
    """One model for all tests that only use its public calls."""
    return load(kind)


@cache
def folder(kind: str) -> Path:
    """Where a model lies: one of `KINDS`, or "bytes" or "text", which have a codec."""
    if kind == "stories260K":
        if not STORIES.is_file():
            pytest.skip("needs ../shared/data, which is not here")
        return STORIES
    place = Path(_scratch().name) / kind
    if kind in KINDS:
        variant, dtype = KINDS[kind]
        return checkpoints.make(variant, place, dtype=dtype)
    codec = byte.ByteCodec() if kind == "bytes" else text.specimens()[0]
    ends = dict(eos_token_id=codec.ends[0], bos_token_id=codec.start[0])
    checkpoints._llama(vocab_size=codec.size, num_hidden_layers=1, **ends)(place)
    codec.save(place)
    return place


@cache
def _scratch() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="seriatim-test-")  # removed when the process ends
