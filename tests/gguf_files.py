"""GGUF files for tests: of any bytes, and as llama.cpp's converter makes them of a folder.

A plain module for tests. `raw` writes what a stranger might; `convert` needs the package `gguf`,
which is llama.cpp's own writer, and does what `convert_hf_to_gguf.py` does.
"""

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from seriatim.files import safetensors
from seriatim.files.gguf import KINDS

STRING, ARRAY, UINT32 = 8, 9, 4


def text(value: str | bytes) -> bytes:
    """A string as GGUF stores it."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def strings(values: Iterable[str | bytes]) -> bytes:
    """An array of strings, its type and length in front."""
    parts = [text(value) for value in values]
    return struct.pack("<IQ", STRING, len(parts)) + b"".join(parts)


def tensor(name: str | bytes, shape: Iterable[int], kind: int = 0, offset: int = 0) -> bytes:
    """A record; `shape` is ggml's, columns first."""
    shape = list(shape)
    form = f"<I{len(shape)}QIQ"
    return text(name) + struct.pack(form, len(shape), *shape, kind, offset)


def raw(
    path: Path,
    keys: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> Path:
    """A file of any records, which may lie about how many there are."""
    head = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    head += b"".join(keys) + b"".join(tensors)
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def key_of(name: str, value: Any) -> bytes:
    """A key with a plain value, in the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        return key(name, 7, bytes([value]))
    if isinstance(value, str):
        return key(name, STRING, text(value))
    if isinstance(value, list):
        return key(name, ARRAY, strings(value))
    if isinstance(value, float):
        return key(name, 6, struct.pack("<f", value))
    return key(name, UINT32, struct.pack("<I", value))


KEYS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
SHAPES = {
    "token_embd.weight": (40, 64),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
    "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_norm.weight": (64,),
    "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
    "output_norm.weight": (64,),
}


def tiny(
    path: Path,
    *,
    keys: dict[str, Any] = {},  # noqa: B006
    shapes: dict[str, Any] = {},  # noqa: B006
    given: dict[str, bytes] = {},  # noqa: B006
    kind: str = "F32",
) -> Path:
    """A whole Llama of one layer, without the package; None removes a key or a tensor."""
    chosen = {name: v for name, v in (KEYS | keys).items() if v is not None}
    tensors, data = [], b""
    for name, shape in {n: s for n, s in (SHAPES | shapes).items() if s is not None}.items():
        own = kind if len(shape) == 2 else "F32"
        number = next(n for n, (word, *_) in KINDS.items() if word == own)
        tensors.append(tensor(name, shape[::-1], number, len(data)))
        stored = given.get(name) or random_bytes(own, shape)
        data += stored + bytes(-len(stored) % 32)
    return raw(path, [key_of(*pair) for pair in chosen.items()], tensors, data)


def random_bytes(kind: str, shape: tuple[int, ...], seed: int = 0) -> bytes:
    """Small weights, or blocks of them."""
    if kind == "F32":
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return (values * 0.3 + (len(shape) == 1)).tobytes()
    return blocks(kind, *shape, seed=seed).tobytes()


SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random blocks with scales of a usual size: uint8 [row, byte]."""
    values, size = next((values, size) for word, values, size in KINDS.values() if word == kind)
    draw = np.random.default_rng(seed)
    data = draw.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    for at in SCALES.get(kind, (0,)):
        scales = draw.normal(0, 0.16 / 2 ** int(kind.strip("IQ")[0]), data.shape[:2]).astype("<f2")
        data[..., at : at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def convert(folder: Path, path: Path, kind: str = "F32", **changed: Any) -> Path:
    """A Hugging Face folder as llama.cpp's converter writes it.

    Args:
        folder: of a Llama, Mistral, Qwen or GPT-2.
        path: the file to write.
        kind: the type of the matrices.
        changed: tensors to be quantised otherwise, by the end of their name: {"output": "Q6_K"},
            and `context_length`.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    (_gpt2_keys if arch == "gpt2" else _rotary_keys)(writer, config)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, arch.upper()),
        config.get("num_hidden_layers", config.get("n_layer")),
    )
    tensors = safetensors.read_folder(folder).tensors
    for stored, array in tensors.items():
        name = names.get_name(stored, try_suffixes=(".weight", ".bias"))
        array = _turned(stored, array, config, arch)
        own = next((k for end, k in changed.items() if end in name), kind)
        wide = array.ndim == 1 or "position" in name
        add(writer, name, array, "F32" if wide else own)
    if (config.get("rope_parameters") or {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _factors(config))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: Any, name: str, array: np.ndarray, kind: str) -> None:
    """One tensor, quantised by the package, or given random blocks of a type it cannot make."""
    from gguf import GGMLQuantizationType, quants

    number = GGMLQuantizationType[kind]
    wide = np.ascontiguousarray(array, np.float32)
    if kind == "BF16":
        data = wide.astype(ml_dtypes.bfloat16).view(np.uint8)
        writer.add_tensor(name, data.reshape(*array.shape[:-1], -1), raw_dtype=number)
        return
    try:
        writer.add_tensor(name, quants.quantize(wide, number), raw_dtype=number)
    except NotImplementedError:
        writer.add_tensor(name, blocks(kind, *array.shape), raw_dtype=number)


def _rotary_keys(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    channels = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(channels)
    writer.add_value_length(channels)
    writer.add_rope_dimension_count(channels)
    writer.add_vocab_size(config["vocab_size"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    if rope.get("rope_type") in ("linear", "yarn"):
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _gpt2_keys(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _turned(name: str, array: np.ndarray, config: dict[str, Any], arch: str) -> np.ndarray:
    """Rows of llama's queries and keys change places; gpt2's [in, out] matrices are transposed."""
    if arch == "gpt2":
        return array.T if "c_" in name and array.ndim == 2 else array
    parts = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    heads = next((config[k] for part, k in parts.items() if part in name), None)
    if arch != "llama" or heads is None:
        return array
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _factors(config: dict[str, Any]) -> np.ndarray:
    """How much slower llama 3 turns each pair, as the converter computes it."""
    rope, channels = config["rope_parameters"], config.get("head_dim")
    channels = channels or config["hidden_size"] // config["num_attention_heads"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factors = rope["original_max_position_embeddings"], []
    for pair in range(channels // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * pair / channels)
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)
