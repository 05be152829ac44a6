"""Tiny checkpoints of every variant, made by `transformers` with every kind of weight random.

A plain module for tests: `make("qwen3", folder)` writes a Hugging Face folder whose attention is
far from uniform; `reference_logits` runs our forward pass on it, `expected_logits` transformers'.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

VOCAB = 101
LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2 = dict(
    vocab_size=VOCAB,
    n_embd=48,
    n_layer=3,
    n_head=4,
    n_positions=256,
    bos_token_id=0,
    eos_token_id=0,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN_ROPE = dict(
    rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=64
)


def _write(
    config: str,
    model: str,
    values: dict[str, Any],
    folder: Path,
    *,
    dtype: str = "float32",
    shards: int = 1,
) -> None:
    built = getattr(transformers, model)(getattr(transformers, config)(**values))
    randomise(built)
    built = built.to(getattr(torch, dtype)).eval()
    size = sum(p.numel() * p.element_size() for p in built.parameters())
    built.save_pretrained(folder, max_shard_size=size // shards + 1 if shards > 1 else "5GB")


def _progen(folder: Path, *, dtype: str = "float32", shards: int = 1) -> None:
    """GPT-J's weights as ProGen2 has them: query, value and key dealt to eight groups of heads."""
    gptj = transformers.GPTJForCausalLM(transformers.GPTJConfig(**PROGEN))
    randomise(gptj)
    tensors = {k: v.to(getattr(torch, dtype)) for k, v in gptj.state_dict().items()}
    for layer in range(PROGEN["n_layer"]):
        stem = f"transformer.h.{layer}.attn."
        dealt = [tensors.pop(f"{stem}{part}_proj.weight").chunk(8) for part in "qvk"]
        whole = [part for group in zip(*dealt, strict=True) for part in group]
        tensors[f"{stem}qkv_proj.weight"] = torch.cat(whole)
        tensors[f"{stem}masked_bias"] = torch.tensor(-1e9)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {**PROGEN, "model_type": "progen", "architectures": ["ProGenForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


def _transformers(folder: Path, **options: Any) -> Any:
    """The folder as transformers runs it; ProGen2, which it has not, as the GPT-J that it is."""
    if json.loads((folder / "config.json").read_text())["model_type"] != "progen":
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, **options
        )
    model = transformers.GPTJForCausalLM(transformers.GPTJConfig(**PROGEN)).eval()
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    for name in [name for name in tensors if name.endswith("qkv_proj.weight")]:
        parts = tensors.pop(name).chunk(24)  # of eight groups: query, value, key
        for at, part in enumerate("qvk"):
            tensors[name.replace("qkv", part)] = torch.cat(parts[at::3])
    known = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in tensors.items() if k in known})
    return model


def _llama(kind: str = "Llama", **config: Any) -> Callable[..., None]:
    return partial(_write, kind + "Config", kind + "ForCausalLM", LLAMA | config)


def _gpt2(**config: Any) -> Callable[..., None]:
    return partial(_write, "GPT2Config", "GPT2LMHeadModel", GPT2 | config)


PROGEN = dict(
    vocab_size=VOCAB,
    n_embd=128,
    n_layer=2,
    n_head=16,
    n_positions=256,
    rotary_dim=4,
    activation_function="gelu_new",
    layer_norm_epsilon=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)

VARIANTS: dict[str, Callable[..., None]] = {
    "llama2": _llama(num_key_value_heads=4),
    "llama3": _llama(rope_parameters=LLAMA3_ROPE, num_hidden_layers=3),
    "llama-yarn": _llama(rope_parameters=YARN_ROPE),
    "llama-yarn-mscale": _llama(
        rope_parameters=YARN_ROPE
        | dict(mscale=0.8, mscale_all_dim=0.4, truncate=False, beta_fast=16, beta_slow=2)
    ),
    "llama-linear": _llama(
        rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=4.0)
    ),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True, head_dim=20, hidden_act="gelu"),
    "smollm": _llama(
        num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-5
    ),
    "mistral": _llama("Mistral", sliding_window=13),
    "mistral-full": _llama("Mistral", sliding_window=None, head_dim=32),
    "qwen2": _llama("Qwen2", tie_word_embeddings=True),
    "qwen2-windows": _llama(
        "Qwen2",
        use_sliding_window=True,
        sliding_window=40,
        max_window_layers=1,
        num_hidden_layers=3,
    ),
    "qwen3": _llama(
        "Qwen3", head_dim=32, rope_parameters=dict(rope_type="default", rope_theta=1e6)
    ),
    "gpt2": _gpt2(),
    "gpt2-inverse-scale": _gpt2(scale_attn_by_inverse_layer_idx=True, n_inner=72),
    "gpt2-plain": _gpt2(
        scale_attn_weights=False, n_head=12, activation_function="relu", tie_word_embeddings=False
    ),
    "progen": _progen,
}

# Standard deviations of products: attention is sharp, and outweighs the last id's own embedding.
WIDTHS = {"q_proj": 1.6, "k_proj": 1.6, "c_attn": 1.8, "o_proj": 4.0, "attn.c_proj": 4.0}


def make(name: str, folder: Path, *, dtype: str = "float32", shards: int = 1) -> Path:
    """Write the variant `name` into `folder`, in about `shards` files, and return the folder."""
    VARIANTS[name](folder, dtype=dtype, shards=shards)
    return folder


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter: norms around 1, biases around 0, products wide enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.dim() == 1:
            is_norm = name.endswith("weight")
            parameter.data = 1 + 0.3 * noise if is_norm else 0.3 * noise
        elif any(part in name for part in ("embed", "wte", "wpe")):
            parameter.data = 0.3 * noise
        else:
            fan_in = parameter.shape[0 if "c_" in name else 1]
            parameter.data = noise * _width(name) / fan_in**0.5


def _width(name: str) -> float:
    return next((width for part, width in WIDTHS.items() if part in name), 1.0)


def prompt(length: int = 90, seed: int = 7) -> list[int]:
    """Random ids."""
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def expected_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """What `transformers` computes in float32: [id, vocab]."""
    model = _transformers(folder, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def expected_ids(folder: Path, ids: list[int], count: int) -> list[int]:
    """The greedy continuation by `transformers`, `count` ids, end ids ignored."""
    model = _transformers(folder)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    given = torch.tensor([ids])
    seen = torch.ones_like(given)  # else id 0 is taken for padding and hidden
    with torch.no_grad():
        whole = model.generate(given, attention_mask=seen, max_new_tokens=count, do_sample=False)
    return whole[0, len(ids) :].tolist()


def reference_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """What the reference ops compute in float32 from our reading of the folder: [id, vocab]."""
    from seriatim.kernels.ops import Batch
    from seriatim.kernels.reference import ReferenceOps
    from seriatim.models import checkpoint
    from seriatim.models.forward import forward
    from seriatim.models.weights import convert

    read = checkpoint.read(folder)
    index = np.arange(len(ids), dtype=np.int32)
    blocks = np.full((1, 1), -1, np.int32)
    batch = Batch(np.array(ids, np.int32), index, np.zeros_like(index), blocks, index)
    tensors = {k: torch.tensor(v) for k, v in convert(read.weights, "f32").items()}
    with torch.no_grad():
        return forward(ReferenceOps(batch), read.spec, tensors).numpy()
