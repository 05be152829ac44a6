"""LoRA (arXiv:2106.09685): which matrices may have a product of low rank beside them, and the sum.

Beside a matrix W lie two of rank r, and the model is that of W + scale * B A. How adapters are kept
in files is `peft.py`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from seriatim.errors import ModelError, NumericError, shown
from seriatim.kernels.formats import Array
from seriatim.models import families
from seriatim.models.checkpoint import Checkpoint
from seriatim.models.spec import weights as shapes
from seriatim.models.weights import Weights, first_nonfinite

ROWS = 1024  # of a matrix that are summed at once in float64


@dataclass(frozen=True)
class Module:
    """A stored matrix that can have an adapter: weights are rows of it, or it is one of them."""

    name: str  # as PEFT calls it, such as model.layers.0.self_attn.q_proj
    parts: Mapping[str, slice]  # rows of each weight, by the name in `spec.weights(spec)`
    shape: tuple[int, int]  # [out, in], however it is stored
    turned: bool = False  # it is stored as [in, out]

    @property
    def key(self) -> str:
        """Its name from the number of its layer on: layers.0.self_attn.q_proj."""
        found = re.search(r"\.(\d+\..*)", self.name)
        return f"layers.{found[1]}" if found else self.name


@dataclass(frozen=True, eq=False)
class Pair:
    """The two factors beside a matrix."""

    module: Module
    down: np.ndarray  # A: float32 [rank, in]
    up: np.ndarray  # B: float32 [out, rank]
    scale: float


def modules(base: Checkpoint) -> dict[str, Module]:
    """The matrices of a model that may have an adapter, by PEFT's names: not the embeddings."""
    sources = families.by_name(base.family)[1].sources(base.spec, ())
    found: dict[str, Module] = {}
    for name, shape in shapes(base.spec).items():
        if len(shape) == 2 and name.startswith(("layers.", "head.")):
            source, stem = sources[name], sources[name].name.removesuffix(".weight")
            if source.dealt is not None:
                continue  # no run of rows of what is stored
            rows = source.rows or slice(0, shape[0])
            before = found[stem].parts if stem in found else {}
            outer = max(part.stop for part in (*before.values(), rows))
            shape = (outer, shape[1])
            found[stem] = Module(stem, {**before, name: rows}, shape, source.transpose)
    return found


def matching(targets: Iterable[str], known: Collection[str]) -> set[str]:
    """Names that end with one of `targets`, as PEFT matches a list of them.

    Raises:
        ModelError: one of them matches nothing.
    """
    found: set[str] = set()
    for target in targets:
        mine = {name for name in known if ends(name, target)}
        if not mine:
            leaves = sorted({name.rpartition(".")[2] for name in known})
            raise ModelError(
                f"no matrix of the model is called {shown(target)}",
                expected=f"one of {', '.join(leaves)}",
            )
        found |= mine
    return found


def summed(weights: Mapping[str, Array], pairs: Iterable[Pair]) -> Weights:
    """W + scale * B A for each pair, rounded once to float32; other weights as they are.

    Summed in float64, so that no machine's order of additions shows.
    """
    found = dict(weights)
    for pair in pairs:
        for name, rows in pair.module.parts.items():
            found[name] = _sum(name, np.asarray(found[name]), pair, rows)
    return found


def ends(name: str, target: str) -> bool:
    """Whether a name of several parts ends with those of `target`."""
    return name == target or name.endswith(f".{target}")


def _sum(name: str, weight: np.ndarray, pair: Pair, rows: slice) -> np.ndarray:
    """One weight and its part of a product: float32 [out, in]."""
    whole, up = np.empty(weight.shape, np.float32), pair.up[rows]
    down = pair.down.astype(np.float64)
    for start in range(0, len(whole), ROWS):
        some = slice(start, start + ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            product = (up[some].astype(np.float64) @ down) * pair.scale
            whole[some] = weight[some].astype(np.float64) + product
    if first_nonfinite({name: whole}):
        raise NumericError(
            f"{name} and its adapter add up to numbers that are not finite",
            expected="an adapter of this model",
        )
    return whole
