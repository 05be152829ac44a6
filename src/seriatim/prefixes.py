"""A prompt's keys and values as a file: saved once, loaded by whoever runs the same model.

The file is a safetensors of `ids` and `blocks`, with all that decides their bits in its header.
Everything is compared before anything is used, and what differs is a refusal that names it. The
digest finds damage, not malice: a prefix is to be trusted like the weights it was made with.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import get_ident
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from seriatim import __version__
from seriatim.codecs import Codec
from seriatim.engine.cache import Block, BlockPool
from seriatim.engine.engine import Engine, Servable
from seriatim.engine.options import token_ids
from seriatim.errors import FileError, RequestError, ResourceError, shown
from seriatim.files import safetensors
from seriatim.files.jsonfile import parse
from seriatim.files.regular import listed, refuse
from seriatim.kernels.ops import BLOCK
from seriatim.models.checkpoint import Checkpoint

FORMAT = "seriatim_prefix"  # in the metadata: a JSON object of what follows, all strings
VERSION, VERSIONED, CONTENT = "1", "version", "sha256"
# What a file was made with, by its name there.
WORDS = {
    "seriatim": "another version of seriatim",
    "weights": "other weights",
    "precision": "another precision",
    "model": "another model description",
    "codec": "another codec",
    "backend": "another backend or instruction set",
    "kv": "another type of keys and values",
    "block": "another size of block",
}


class Keyed(Servable, Protocol):
    """What decides the bits of a model's keys and values."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def codec(self) -> Codec | None: ...
    @property
    def precision(self) -> str: ...


def key(model: Keyed) -> dict[str, str]:
    """All that keys and values depend on beside the ids; reads every weight once."""
    spec = replace(model.checkpoint.spec, context=0)  # how far it goes changes nothing before
    return {
        "seriatim": __version__,
        "weights": model.checkpoint.digest,
        "precision": model.precision,
        "model": sha256(repr(spec).encode()).hexdigest(),
        "codec": "none" if model.codec is None else _codec_digest(model.codec),
        "backend": model.runtime.arithmetic,
        "kv": model.runtime.kv,
        "block": str(BLOCK),
    }


def save(model: Keyed, key: Mapping[str, str], ids: list[int], path: str | Path) -> int:
    """Compute a prompt, or find it in the cache, and write its blocks: `Model.save_prefix`."""
    path = _path(path)
    if path.exists() and not path.is_file():  # a device would be replaced as well
        raise refuse(path, "is there and not a file", expected="a file's name")
    tensors = {"ids": np.array(ids, np.int32), "blocks": _computed(model, ids)}
    header = {VERSIONED: VERSION, **key}
    header[CONTENT] = _digest(header, tensors)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.partial")
    try:
        safetensors.write(partial, tensors, {FORMAT: json.dumps(header)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return len(ids)


def load(model: Keyed, key: Mapping[str, str], path: str | Path, tenant: str) -> int:
    """Check a file and keep its blocks for requests to find: `Model.load_prefix`."""
    if not isinstance(tenant, str):
        raise RequestError(f"tenant is {shown(tenant)}", expected="a string")
    path = _path(path)
    file = safetensors.read(path)
    header = _header(file, path)
    _check_content(header, file.tensors, path)
    _check_key(header, key, path)
    ids = _checked_ids(file.tensors, path, model)
    with model.pool.lock:
        _keep(model, ids, file.tensors["blocks"], tenant)
    return len(ids)


def _path(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise RequestError(f"the path is {shown(path)}", expected="a name or a path")
    return Path(path)


# ---- what is saved -----------------------------------------------------------------------------


def _computed(model: Keyed, ids: list[int]) -> np.ndarray:
    """The keys and values of `ids`: uint8 [blocks, block_bytes], zeros behind the last position."""
    with model.pool.lock:  # nothing is evicted between computing and reading
        engine = Engine(model)
        request = engine.add(ids, generate=False)
        try:
            while not request.done:
                engine.step()
        finally:
            engine.abort(request)  # one that is done stays as it is
        if request.error is not None:
            raise request.error
        return _read(model, ids)


def _read(model: Keyed, ids: list[int]) -> np.ndarray:
    """The blocks that the cache holds of `ids`, all of which are known to it."""
    pool, full = model.pool, len(ids) // BLOCK
    chain = pool.match(ids, "", full)
    try:
        tail, _ = pool.nearest(chain[-1] if chain else None, "", ids[BLOCK * full :])
        parts = [*chain, tail] if tail else chain
        counts = (min(BLOCK, len(ids) - start) for start in range(0, len(ids), BLOCK))
        read = model.runtime.read
        return np.stack([read(b.index, n) for b, n in zip(parts, counts, strict=True)])
    finally:
        pool.release(chain)


def _codec_digest(codec: Codec) -> str:
    """SHA-256 of the files that make the codec again."""
    total = sha256()
    with TemporaryDirectory() as folder:
        codec.save(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            data = file.read_bytes()
            total.update(f"{file.name} {len(data)}\n".encode() + data)
    return total.hexdigest()


def _digest(header: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all that a file says but this."""
    said = {name: value for name, value in sorted(header.items()) if name != CONTENT}
    total = sha256(json.dumps(said).encode())
    for name in ("ids", "blocks"):
        array = tensors[name]
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


# ---- what is loaded ----------------------------------------------------------------------------


def _header(file: safetensors.File, path: Path) -> dict[str, str]:
    """What it was made with, if it is a saved prefix at all."""
    known = {VERSIONED, CONTENT, *WORDS}
    text = file.metadata.get(FORMAT, "")
    header = parse(text.encode(), path) if text else None
    if not isinstance(header, dict) or file.tensors.keys() != {"ids", "blocks"}:
        raise refuse(path, f"is not a saved prefix: it holds {listed(file.tensors)}")
    if header.get(VERSIONED) != VERSION:
        seen = f"is a saved prefix of version {shown(header.get(VERSIONED))}"
        raise refuse(path, seen, expected=f"version {VERSION!r}")
    if header.keys() != known or not all(isinstance(value, str) for value in header.values()):
        raise refuse(path, "has a bad header", expected=f"strings named {listed(known, 16)}")
    return header


def _check_content(
    header: Mapping[str, str], tensors: Mapping[str, np.ndarray], path: Path
) -> None:
    """Every bit is what was written."""
    seen = _digest(header, tensors)
    if seen != header[CONTENT]:
        raise refuse(
            path,
            f"is damaged: its content has the SHA-256 {seen}",
            expected=shown(header[CONTENT]),
            fix="save the prefix again",
        )


def _check_key(seen: Mapping[str, str], own: Mapping[str, str], path: Path) -> None:
    for name, word in WORDS.items():
        if seen[name] != own[name]:
            raise refuse(
                path,
                f"was made with {word}: {shown(seen[name])}",
                expected=shown(own[name]),
                fix="save the prefix again with this model",
            )


def _checked_ids(tensors: Mapping[str, np.ndarray], path: Path, model: Keyed) -> list[int]:
    """The ids, which are of the vocabulary, fit the context and are as many as the blocks say."""
    ids, blocks = tensors["ids"], tensors["blocks"]
    if ids.dtype != np.int32 or ids.ndim != 1 or not 0 < len(ids) <= model.context:
        seen = f"holds ids of type {ids.dtype} and shape {ids.shape}"
        raise refuse(path, seen, expected=f"int32, 1 to {model.context} of them")
    expected = (-(-len(ids) // BLOCK), model.runtime.block_bytes)
    if blocks.dtype != np.uint8 or blocks.shape != expected:
        seen = f"holds blocks of type {blocks.dtype} and shape {blocks.shape}"
        raise refuse(path, seen, expected=f"uint8 {expected} for {len(ids)} ids")
    try:
        return list(token_ids("ids", ids.tolist(), model.vocab_size))
    except RequestError as error:
        raise refuse(path, f"holds ids that the model has not: {error.seen}") from None


def _keep(model: Keyed, ids: list[int], blocks: np.ndarray, tenant: str) -> None:
    """Put what is not yet known into the cache; the least recently used make room."""
    pool = model.pool
    chain = pool.match(ids, tenant, len(ids) // BLOCK)
    try:
        start = BLOCK * len(chain)
        parent, rest = chain[-1] if chain else None, ids[start:]
        if pool.nearest(parent, tenant, rest)[1] == len(rest):
            return
        need = len(blocks) - len(chain)
        if need > pool.available:
            raise ResourceError(
                f"the prefix needs {need} more cache blocks of {BLOCK} positions and "
                f"{pool.available} can be had",
                fix="raise cache_bytes, or end what runs",
            )
        for data in blocks[len(chain) :]:
            _add(model, pool, chain, ids, data, tenant)
    finally:
        pool.release(chain)


def _add(
    model: Keyed, pool: BlockPool, chain: list[Block], ids: list[int], data: Any, tenant: str
) -> None:
    block = pool.take()
    if block is None:  # the pool could not grow
        raise ResourceError("there is no memory for the prefix's blocks", fix="lower cache_bytes")
    start, parent = BLOCK * len(chain), chain[-1] if chain else None
    chain.append(block)
    model.runtime.write(block.index, data)
    chain[-1] = pool.publish(block, parent, tenant, ids[start : start + BLOCK])
