"""The llama2.c version 0 format: 28 bytes of header, then float32 blocks in a fixed order.

Source: https://github.com/karpathy/llama2.c (`legacy_export` in export.py, run.c).
Tensors get the names they have in that project's model.py; no meaning is given to them here.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seriatim.files.regular import mapped, open_regular, refuse

_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_LIMITS = (1 << 20, 1 << 24, 1 << 12, 1 << 16, 1 << 16, 1 << 26, 1 << 26)
_OTHERS = {
    b"ak42": "llama2.c of version 1 or later",
    b"PK\x03\x04": "a PyTorch zip of pickles, which can run code when opened",
    b"GGUF": "GGUF",
}


class File(NamedTuple):
    """The header's fields ("tied" is 1 when the head is the embedding), and tensors by name."""

    header: dict[str, int]
    tensors: dict[str, np.ndarray]


def read(path: Path) -> File:
    """Map one file.

    Raises:
        FileError: another format, a count out of range, or a size that is not exactly the header's.
    """
    with open_regular(path) as file:
        head = file.read(28)
        if kind := _OTHERS.get(head[:4]) or ("a pickle" if head[:1] == b"\x80" else ""):
            raise refuse(path, f"is {kind}", expected="llama2.c version 0, or a model folder")
        header = _header(head, path)
        blocks = _blocks(header)
        need, have = 28 + 4 * sum(map(math.prod, blocks.values())), os.fstat(file.fileno()).st_size
        if need != have:
            raise refuse(path, f"has {have} bytes", expected=f"{need} by its llama2.c header")
        data = mapped(file, path)[28:].view("<f4")
    return File(header, _split(data, blocks))


def _header(head: bytes, path: Path) -> dict[str, int]:
    if len(head) < 28:
        raise refuse(path, f"has only {len(head)} bytes", expected="a llama2.c file")
    header = {name: int(v) for name, v in zip(_FIELDS, np.frombuffer(head, "<i4"), strict=True)}
    header["tied"] = int(header["vocab_size"] > 0)  # a negative vocabulary marks a separate head
    header["vocab_size"] = abs(header["vocab_size"])
    for name, limit in zip(_FIELDS, _LIMITS, strict=True):
        if not 1 <= header[name] <= limit:
            raise refuse(path, f"says {name} = {header[name]}", expected=f"1 to {limit} (llama2.c)")
    return _consistent(header, path)


def _consistent(header: dict[str, int], path: Path) -> dict[str, int]:
    dim, heads, shared = (header[name] for name in ("dim", "n_heads", "n_kv_heads"))
    if dim % heads or (dim // heads) % 2:
        raise refuse(path, f"says {heads} heads share dim = {dim}", expected="an even share each")
    if heads % shared:
        raise refuse(path, f"says {shared} key heads for {heads} heads", expected="a divisor")
    return header


def _blocks(h: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Blocks in file order; "*" stands for the layer, the first axis of those blocks."""
    dim, hidden, layers, vocab = h["dim"], h["hidden_dim"], h["n_layers"], h["vocab_size"]
    channels = dim // h["n_heads"]
    shared, turns = h["n_kv_heads"] * channels, (h["seq_len"], channels // 2)
    blocks: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocab, dim),
        "layers.*.attention_norm.weight": (layers, dim),
        "layers.*.attention.wq.weight": (layers, dim, dim),
        "layers.*.attention.wk.weight": (layers, shared, dim),
        "layers.*.attention.wv.weight": (layers, shared, dim),
        "layers.*.attention.wo.weight": (layers, dim, dim),
        "layers.*.ffn_norm.weight": (layers, dim),
        "layers.*.feed_forward.w1.weight": (layers, hidden, dim),
        "layers.*.feed_forward.w2.weight": (layers, dim, hidden),
        "layers.*.feed_forward.w3.weight": (layers, hidden, dim),
        "norm.weight": (dim,),
        "freq_cis_real": turns,  # tables of an older run.c; nothing reads them now
        "freq_cis_imag": turns,
    }
    return blocks if h["tied"] else blocks | {"output.weight": (vocab, dim)}


def _split(data: np.ndarray, blocks: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, shape in blocks.items():
        size = math.prod(shape)
        block, data = data[:size].reshape(shape), data[size:]
        layers = enumerate(block) if "*" in name else [(0, block)]
        tensors |= {name.replace("*", str(index)): part for index, part in layers}
    return tensors
