"""Weights: stored tensors under canonical names, checked against the spec, cast exactly.

Views of the memory map wherever the layout allows; a transposed or misaligned tensor is copied.
"""

import hashlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from seriatim.errors import ModelError, RequestError, did_you_mean
from seriatim.files.regular import forget, listed
from seriatim.kernels.formats import Array, Blocks, expand
from seriatim.models.config import Say, silent
from seriatim.models.families import Family, Source
from seriatim.models.spec import Spec, weights

Weights = dict[str, Array]

DTYPES = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_EXPONENTS = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}  # all set: infinite or not a number
_CHUNK = 1 << 20  # values looked at together


def load(stored: Mapping[str, Array], spec: Spec, family: Family, say: Say = silent) -> Weights:
    """The weights of a model from the tensors of its files.

    Args:
        stored: tensors by the names on disk.
        spec: what the config describes.
        family: where each weight is stored.
        say: told of tensors that are ignored.

    Returns:
        One array for each of `spec.weights(spec)`, float32, float16, bfloat16 or blocks as stored.
        Blocks are always [out, in], whatever the family's layout.

    Raises:
        ModelError: a tensor is missing, unexpected, of another shape or type, or an unequal copy.
    """
    sources = family.sources(spec, stored.keys())
    duplicates = family.duplicates(spec, stored.keys())
    _check_names(stored, sources, duplicates, family, say)
    for name, shape in _stored_shapes(stored, spec, sources).items():
        _check_tensor(name, stored[name], shape)
    for name, original in duplicates.items():
        if not _equal(stored[name], stored[original]):
            raise ModelError(
                f"the tensor {name} differs from {original}",
                expected="equal tensors, for config.json has tie_word_embeddings",
            )
    return {name: _take(stored[source.name], source) for name, source in sources.items()}


def convert(weights: Weights, precision: str = "stored") -> Weights:
    """All weights in one type, rounded to nearest even; those that have it already are not copied.

    Blocks are expanded: exactly, in float32.

    Args:
        weights: by name.
        precision: "f32", "f16", "bf16", or "stored" to leave each as it is.

    Raises:
        RequestError: an unknown precision, or one in which a finite weight would be infinite.
    """
    if precision == "stored":
        return weights
    if precision not in DTYPES:
        hint = did_you_mean(precision, [*DTYPES, "stored"])
        raise RequestError(f"precision is {precision!r}", fix=hint)
    return {name: _cast(name, array, precision) for name, array in weights.items()}


def first_nonfinite(weights: Mapping[str, Array]) -> str | None:
    """The name of the first tensor that holds an infinity or a NaN; it reads every weight once."""
    return next((name for name, array in weights.items() if not _finite(array)), None)


def counts(weights: Mapping[str, Array]) -> dict[str, int]:
    """How many weights there are of each type, most first, such as {"bf16": 134515008}."""
    totals = dict.fromkeys((dtype_name(array) for array in weights.values()), 0)
    for array in weights.values():
        totals[dtype_name(array)] += array.size
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and every byte: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        total.update(f"{name} {dtype_name(array)} {array.shape}\n".encode())
        data = array.data if isinstance(array, Blocks) else array
        total.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def dtype_name(weight: Array) -> str:
    """ "f32", "f16", "bf16", "int8", "int6" or "int4"."""
    return weight.kind if isinstance(weight, Blocks) else _NAMES[weight.dtype]


def _check_names(
    stored: Mapping[str, Array],
    sources: Mapping[str, Source],
    duplicates: Mapping[str, str],
    family: Family,
    say: Say,
) -> None:
    needed = {source.name for source in sources.values()}
    if missing := sorted(needed - stored.keys()):
        raise ModelError(
            f"the checkpoint lacks {listed(missing)}",
            expected=f"the {len(needed)} tensors that config.json describes",
        )
    rest = sorted(stored.keys() - needed - duplicates.keys())
    unknown = [name for name in rest if not family.ignored(name)]
    if unknown:
        raise ModelError(
            f"the checkpoint holds {listed(unknown)}, which no part of the model reads",
            expected="only the tensors that config.json describes",
        )
    if rest:
        say(f"tensors that are computed anew were ignored: {listed(rest)}")


def _stored_shapes(
    stored: Mapping[str, Array], spec: Spec, sources: Mapping[str, Source]
) -> dict[str, tuple[int, ...]]:
    """Shape on disk of each stored tensor; a fused one ends where its last part does."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in weights(spec).items():
        source = sources[name]
        turned = source.transpose and not isinstance(stored[source.name], Blocks)
        if source.rows is not None:
            before = shapes.get(source.name, (0,))
            length = before[-1] if turned else before[0]
            shape = (max(length, source.rows.stop), *shape[1:])
        elif source.dealt is not None:
            shape = (source.dealt[1] * shape[0], *shape[1:])
        shapes[source.name] = shape[::-1] if turned else shape
    return shapes


def _check_tensor(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ModelError(f"the tensor {name} has the shape {array.shape}", expected=str(shape))
    if not isinstance(array, Blocks) and array.dtype not in _NAMES:
        expected = "float32, float16 or bfloat16"
        raise ModelError(f"the tensor {name} has the type {array.dtype}", expected=expected)


def _take(array: Array, source: Source) -> Array:
    if isinstance(array, Blocks):
        return array if source.rows is source.dealt is None else _panels(array, source)
    part = array.T if source.transpose else array
    part = part if source.rows is None else part[source.rows]
    if source.dealt is not None:
        groups, parts, index = source.dealt
        width = part.shape[1:]
        part = part.reshape(groups, parts, -1, *width)[:, index].reshape(-1, *width)
    taken = np.require(part, requirements=["C", "A"])  # copies only if it must
    if not np.may_share_memory(taken, array):
        forget(array)
    return taken


def _panels(blocks: Blocks, source: Source) -> Blocks:
    """A part of a fused tensor in blocks, which must be whole panels."""
    try:
        if source.rows is None:
            raise ValueError("their rows are dealt to groups")
        return blocks.rows(source.rows)
    except ValueError as error:
        raise ModelError(
            f"the tensor {source.name} is fused of parts that blocks cannot hold: {error}",
            fix="load the model that it was made from with precision=",
        ) from None


def _equal(a: Array, b: Array) -> bool:
    """Equality of bits, a chunk at a time."""
    if isinstance(a, Blocks) and isinstance(b, Blocks):
        return a.kind == b.kind and _equal(a.data, b.data)
    if isinstance(a, Blocks) or isinstance(b, Blocks):
        return False
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    pairs = zip(_chunks(a.view(np.uint8)), _chunks(b.view(np.uint8)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def _finite(weight: Array) -> bool:
    array = weight.scales if isinstance(weight, Blocks) else weight
    mask = _EXPONENTS[dtype_name(array)]
    bits = array.view(np.uint32 if array.dtype.itemsize == 4 else np.uint16)
    return not any(((chunk & mask) == mask).any() for chunk in _chunks(bits))


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _cast(name: str, weight: Array, precision: str) -> np.ndarray:
    array = expand(weight) if isinstance(weight, Blocks) else weight
    if dtype_name(array) == precision:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        wide = array.astype(np.float32, copy=False)  # exact from either half
        result = wide.astype(DTYPES[precision])  # nearest, ties to even
    if not _finite(result) and _finite(array):
        most = float(ml_dtypes.finfo(DTYPES[precision]).max)
        raise RequestError(
            f"precision={precision!r} would make a weight of {name} infinite: the largest is "
            f"{float(np.abs(wide).max()):g}",
            expected=f"weights of at most {most:g}",
            fix="use f32 or bf16" if precision == "f16" else "use f32",
        )
    forget(array)
    return result
