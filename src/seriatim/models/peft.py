"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, read and written.

Read as strictly as a checkpoint: a key is honoured, known to change nothing, or refused by name. No
regular expression of a file is ever run.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.errors import ModelError, NumericError, RequestError, did_you_mean
from seriatim.files import safetensors
from seriatim.files.jsonfile import read_object
from seriatim.files.regular import is_file, listed, refuse
from seriatim.kernels.formats import Array, Blocks
from seriatim.models.checkpoint import ADAPTER, CONFIG, Checkpoint, write_json
from seriatim.models.config import MOST_WIDTH, Fields
from seriatim.models.lora import Module, Pair, ends, matching, modules, summed
from seriatim.models.standard import standard
from seriatim.models.weights import DTYPES, convert, dtype_name, first_nonfinite

STORED, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

# What PEFT may write, and what each key must say so that an adapter is LoRA and nothing else.
ONLY: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none",),
    "corda_config": (None,),
    "ensure_weight_tying": (False,),
    "eva_config": (None,),
    "exclude_modules": (None, []),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # others change the base too
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "layers_pattern": (None, []),
    "layers_to_transform": (None, []),
    "loftq_config": (None, {}),
    "lora_bias": (False,),
    "lora_ga_config": (None,),
    "megatron_config": (None,),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "task_type": ("CAUSAL_LM", None),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "use_dora": (False,),
    "use_qalora": (False,),
    "velora_config": (None,),
}
# No weight follows from these. How the base stores its matrices is known from the base itself;
# dropout acts while training only.
HARMLESS = frozenset(
    re.findall(
        r"\w+",
        "auto_mapping fan_in_fan_out inference_mode lora_dropout megatron_core peft_version"
        " qalora_group_size revision runtime_config",
    )
)


@dataclass(frozen=True)
class Scales:
    """Rank and scale of each matrix, as a config says: patterns name those that differ."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rooted: bool  # rank-stabilised (arXiv:2312.03732): alpha / sqrt(rank)

    def of(self, name: str) -> tuple[int, float]:
        """Rank and scale beside the matrix of that name."""
        rank, alpha = _at(self.ranks, name, self.rank), _at(self.alphas, name, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rooted else rank)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter: its pairs, and what adapter_config.json says of them."""

    pairs: tuple[Pair, ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers its factors hold."""
        return sum(pair.down.size + pair.up.size for pair in self.pairs)

    @property
    def facts(self) -> str:
        """Rank and number of matrices, such as "rank 8 beside 14 matrices"."""
        ranks = sorted({len(pair.down) for pair in self.pairs})
        return f"rank {' and '.join(map(str, ranks))} beside {len(self.pairs)} matrices"


def is_adapter(path: Path) -> bool:
    """Whether a path holds an adapter and no model."""
    return is_file(path / ADAPTER) and not is_file(path / CONFIG)


def base_name(folder: Path) -> str | None:
    """The base that an adapter's config names, or None where it names none."""
    name = read_object(folder / ADAPTER).get("base_model_name_or_path")
    return name if isinstance(name, str) and name and "\0" not in name else None


def read(folder: Path, base: Checkpoint) -> Adapter:
    """The adapter in a folder, for a model.

    Args:
        folder: of adapter_config.json and adapter_model.safetensors.
        base: the model, in the layout of a folder (`standard.py`).

    Raises:
        FileError: a file is missing or damaged.
        ModelError: it is no LoRA adapter of this model, or asks for what is not known here.
        NumericError: one of its numbers is not finite.
    """
    if not is_file(folder / ADAPTER):
        raise refuse(folder, f"holds no {ADAPTER}", expected="an adapter in PEFT's format")
    config, notes = read_object(folder / ADAPTER), list[str]()
    scales, targets = _config(Fields(config, str(folder / ADAPTER), notes.append))
    if config.get("lora_dropout"):
        notes.append("the adapter was trained with lora_dropout, which is not applied here")
    known = modules(base)
    tensors = _tensors(folder, known)
    try:
        wanted = matching(targets, known)
    except ModelError as error:
        seen = f"{folder / ADAPTER} has target_modules of another model: {error.seen}"
        raise ModelError(seen, expected=error.expected) from None
    _check_targets({name for name, _ in tensors}, wanted, folder)
    names = sorted({name for name, _ in tensors})
    pairs = tuple(_pair(known[name], tensors, scales.of(name), folder) for name in names)
    return Adapter(pairs, config, tuple(notes))


def merged(base: Checkpoint, adapter: Path, precision: str) -> Checkpoint:
    """A model with an adapter in its weights.

    Args:
        base: the model as read.
        adapter: a folder in PEFT's format.
        precision: that the weights are for: "stored" rounds each sum to the type that its weight
            has; for others those that changed are float32.

    Raises:
        FileError, ModelError, NumericError: as `read`, or a sum is not finite.
        RequestError: the weights are in blocks and stay there.
    """
    if any(isinstance(weight, Blocks) for weight in base.weights.values()):
        if precision == "stored":
            raise RequestError(
                f"an adapter cannot be merged into weights in blocks ({', '.join(base.dtypes)})",
                fix="give a precision: f32, f16 and bf16 keep the sum, int8 and int4 round it",
            )
        base = replace(base, weights=convert(base.weights, "f32"))
    base = standard(base)
    found = read(adapter, base)
    weights = summed(base.weights, found.pairs)
    if precision == "stored":
        weights = {n: convert({n: w}, dtype_name(base.weights[n]))[n] for n, w in weights.items()}
    said = (*found.notes, f"the adapter {adapter.name} is merged: {found.facts}")
    return replace(base, weights=weights, notes=(*base.notes, *said))


def config(
    base_name: str, targets: Collection[str], rank: int, alpha: float, *, turned: bool
) -> dict[str, Any]:
    """What PEFT writes for a new adapter: the keys of its version 0.17, which later ones know.

    Args:
        base_name: a folder or name.
        targets: ends of the names of matrices.
        rank, alpha: of all of them.
        turned: the base stores its matrices as [in, out].
    """
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted(targets),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }


def write(folder: Path, adapter: Adapter, type: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT would.

    Args:
        folder: made if it is not there.
        adapter: what to write.
        type: of the tensors: "f32", "f16" or "bf16".
    """
    tensors: dict[str, Array] = {}
    for pair in adapter.pairs:
        tensors[f"{PREFIX}{pair.module.name}{DOWN}"] = pair.down
        tensors[f"{PREFIX}{pair.module.name}{UP}"] = pair.up
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ADAPTER, adapter.config)
    plain = {name: np.asarray(array) for name, array in convert(tensors, type).items()}
    safetensors.write(folder / STORED, plain, {"format": "pt"})


def _config(fields: Fields) -> tuple[Scales, list[str]]:
    """What a config says of ranks and targets; all else must change nothing."""
    if fields.get("peft_type") != "LORA":
        raise fields.refuse("peft_type", "'LORA'")
    fields.only(ONLY)
    scales = Scales(
        fields.integer("r", most=MOST_WIDTH, default=8),
        fields.number("lora_alpha", low=-math.inf, default=8),
        _pattern(fields, "rank_pattern", int),
        _pattern(fields, "alpha_pattern", int | float),
        fields.flag("use_rslora", default=False),
    )
    targets = fields.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise fields.refuse("target_modules", "a list of names: a regular expression is not run")
    fields.get("base_model_name_or_path")
    fields.close(HARMLESS)
    return scales, targets


def _pattern(fields: Fields, key: str, kind: Any) -> dict[str, Any]:
    """Numbers by the end of a name, or by the whole name after ^."""
    found = fields.get(key) or {}
    plain = isinstance(found, dict) and all(re.fullmatch(r"\^?[\w.]+", name) for name in found)
    if not plain or not all(_number(value, kind) for value in found.values()):
        raise fields.refuse(key, "numbers by plain names: a regular expression is not run")
    return found


def _number(value: Any, kind: Any) -> bool:
    return (
        isinstance(value, kind) and not isinstance(value, bool) and (kind is not int or value > 0)
    )


def _at(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first entry for a name."""
    hits = (v for k, v in pattern.items() if (name == k[1:] if k[0] == "^" else ends(name, k)))
    return next(hits, default)


def _tensors(folder: Path, known: Mapping[str, Module]) -> dict[tuple[str, str], np.ndarray]:
    """Each factor by matrix and side, in float32."""
    if is_file(folder / PICKLED) and not is_file(folder / STORED):
        raise refuse(folder, f"holds {PICKLED}, which can run code when opened", expected=STORED)
    found: dict[tuple[str, str], np.ndarray] = {}
    for key, array in safetensors.read(folder / STORED).tensors.items():
        side = next((side for side in (DOWN, UP) if key.endswith(side)), "")
        name = key.removeprefix(PREFIX).removesuffix(side)
        if not side or not key.startswith(PREFIX) or name not in known:
            raise ModelError(
                f"the adapter {folder} holds {listed([key])}, beside no matrix of the model",
                expected=f"names such as {PREFIX}{next(iter(known))}{DOWN}",
                fix=did_you_mean(name, known) if side else "",
            )
        found[name, side] = array
    if not found:
        raise refuse(folder / STORED, "holds no tensors", expected="an adapter")
    return found


def _check_targets(names: set[str], wanted: set[str], folder: Path) -> None:
    if missing := sorted(wanted - names):
        seen = f"the adapter {folder} lacks {listed(missing)}"
        raise ModelError(seen, expected="what its target_modules name")
    if extra := sorted(names - wanted):
        seen = f"the adapter {folder} holds {listed(extra)}"
        raise ModelError(seen, expected="only what its target_modules name")


def _pair(
    module: Module,
    tensors: Mapping[tuple[str, str], np.ndarray],
    scale: tuple[int, float],
    folder: Path,
) -> Pair:
    rank, factor = scale
    outer, inner = module.shape
    sides = dict(_factors(module.name, tensors, {DOWN: (rank, inner), UP: (outer, rank)}, folder))
    return Pair(module, sides[DOWN], sides[UP], factor)


def _factors(
    name: str,
    tensors: Mapping[tuple[str, str], np.ndarray],
    expected: Mapping[str, tuple[int, int]],
    folder: Path,
) -> Iterator[tuple[str, np.ndarray]]:
    """Both factors of a matrix, each of the shape that config and model give it, and finite."""
    for side, shape in expected.items():
        array, where = tensors.get((name, side)), f"{PREFIX}{name}{side} of {folder}"
        if array is None:
            raise ModelError(f"the adapter lacks {where}", expected="both of its factors")
        if array.shape != shape:
            raise ModelError(f"{where} has the shape {array.shape}", expected=f"{shape}")
        if array.dtype not in DTYPES.values():
            seen = f"{where} has the type {array.dtype}"
            raise ModelError(seen, expected="float32, float16 or bfloat16")
        if first_nonfinite({side: array}):
            raise NumericError(f"{where} holds numbers that are not finite")
        yield side, np.ascontiguousarray(array, np.float32)
