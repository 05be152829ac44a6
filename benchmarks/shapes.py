"""Checkpoints of real shapes with random weights, in every form a side reads; made once in a cache.

Valid for speed only. `Files` makes a file when it is first asked for and keeps it.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from seriatim.models import checkpoint
from seriatim.models.families import llama
from seriatim.models.spec import Spec, weights

# dim, ffn, layers, heads, kv heads, vocabulary
SHAPES = {
    "15M": (288, 768, 6, 6, 6, 32000),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
}
CONTEXT = 16384  # room for every row; the weights do not depend on it
WORKERS = Path(__file__).parent / "workers"


class Failed(Exception):
    """A side cannot be measured; the text says why."""


def spec(shape: tuple[int, ...]) -> Spec:
    """A tied Llama of (dim, ffn, layers, heads, kv heads, vocabulary)."""
    dim, ffn, layers, heads, kv_heads, vocabulary = shape
    return llama.spec(
        {
            "model_type": "llama",
            "hidden_size": dim,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
        }
    )


@dataclass(frozen=True)
class Files:
    """The forms of one shape in one folder of the cache.

    Names: "bf16" (a Hugging Face folder), "int8" and "int4" (ours, quantised), "bf16.gguf",
    "q8_0.gguf" and "q4_0.gguf" (llama.cpp's own quantisation), "openvino-int8", "openvino-int4".
    `pythons` says which interpreter holds llama.cpp and which OpenVINO.
    """

    cache: Path
    shape: tuple[int, ...]
    pythons: Mapping[str, str]

    def path(self, name: str) -> Path:
        """Where a form lies; it is made if it is not there.

        Raises:
            Failed: it cannot be made.
        """
        folder = self.cache / "-".join(map(str, self.shape))
        path = folder / name
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"making {path}", file=sys.stderr, flush=True)
            partial = folder / f"partial-{name}"
            _remove(partial)
            self._make(name, partial)
            partial.rename(path)
        return path

    def _make(self, name: str, path: Path) -> None:
        if name == "bf16":
            _write(path, spec(self.shape))
        elif name == "bf16.gguf":
            self._worker("llama.cpp", "make_gguf.py", self.path("bf16"), path)
        elif name.endswith(".gguf"):
            kind = name.removesuffix(".gguf")
            self._worker("llama.cpp", "make_gguf.py", self.path("bf16.gguf"), path, kind)
        elif name.startswith("openvino-int"):
            bits = name.removeprefix("openvino-int")
            self._worker("OpenVINO", "make_openvino.py", self.path("bf16"), path, bits)
        else:
            words = [self.path("bf16"), "--to", name, "--out", path, "--method", "round"]
            quantize = [sys.executable, "-m", "seriatim", "quantize", "--no-report"]
            _call([*quantize, *map(str, words)])

    def _worker(self, peer: str, script: str, *words: object) -> None:
        _call([self.pythons[peer], str(WORKERS / script), *map(str, words)])


def _write(folder: Path, model: Spec) -> None:
    """A bf16 checkpoint, drawn from seed 0."""
    draw = np.random.default_rng(0)
    tensors = {
        name: (
            np.ones(size, np.float32)
            if len(size) == 1
            else draw.standard_normal(size, np.float32) / np.float32(np.sqrt(size[1]))
        ).astype(ml_dtypes.bfloat16)
        for name, size in weights(model).items()
    }
    checkpoint.write(folder, model, tensors)


def _call(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(
            f"{Path(words[1]).name if words[1] != '-m' else words[3]}: {last(done.stderr)}"
        )


def last(text: str) -> str:
    """The last line that says something: of a program that failed, why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
