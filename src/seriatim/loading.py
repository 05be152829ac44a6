"""`load`: from a name to a `Model`. Downloads only what is named as a hub id."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from seriatim import codecs, zoo
from seriatim.api import Model
from seriatim.codecs import Codec
from seriatim.codecs._files import named
from seriatim.codecs._gguf import from_gguf
from seriatim.engine.options import whole
from seriatim.errors import (
    FileError,
    ModelError,
    RequestError,
    ResourceError,
    did_you_mean,
    shown,
)
from seriatim.kernels.formats import FORMATS, MADE
from seriatim.kernels.ops import BLOCK, Runtime
from seriatim.models import checkpoint, memory, peft, runtime
from seriatim.models.checkpoint import Checkpoint
from seriatim.models.weights import DTYPES, Weights, convert, counts, dtype_name

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # "./x" is a path that is not there
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.bpe")
PATIENCE = 10.0  # seconds for the hub's first answer


def load(
    name: str | Path,
    *,
    backend: str = "native",
    device: str | None = None,
    precision: str = "stored",
    kv: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    cache_bytes: int | None = None,
    adapter: str | Path | None = None,
    isa: str | None = None,
    **unknown: Any,
) -> Model:
    """Load a model: a shipped name, a Hugging Face folder, a GGUF or llama2.c file, or a hub id.

    Args:
        name: a shipped model ("tales") if it has no separator; else a path if it exists; else a
            hub id ("owner/model"), which is downloaded. A folder that holds only an adapter stands
            for its base with it, where that is a folder here or a shipped model.
        backend: "native" (the CPU) or "torch" (the reference, on any torch device).
        device: for the torch backend: "cpu" (default), "cuda", ...
        precision: of the weights: "stored" (exactly as they are), "f32", "f16", "bf16", or "int8"
            or "int4": each rounded to the nearest here (`seriatim quantize` does better).
        kv: how keys and values are stored: "f32", "bf16" or "int8"; default "f32" for f32 weights.
        threads: workers; default: one for each processor granted.
        context: the most ids of a sequence; default: the model's own, or what fits `cache_bytes`.
        cache_bytes: the most memory for keys and values; default: half of what is available now.
        adapter: a folder (or hub id) of a LoRA adapter in PEFT's format, merged into the weights.
        isa: of the native backend: "avx512", "avx2" or "plain"; default: the best here.

    Raises:
        RequestError: an option or name that cannot be honoured.
        FileError: a file that is missing, damaged or of an unknown kind.
        ModelError: a checkpoint that seriatim cannot run exactly, or an adapter of another one.
        NumericError: an adapter with numbers that are not finite.
        ResourceError: not one block of keys and values fits `cache_bytes`, or the blocks of a GGUF
            file do not fit into memory.

    Example:
        >>> load("tales", threads=1).vocab_size > 0
        True
    """
    if unknown:
        known = load.__kwdefaults__ or ()
        raise RequestError(
            f"unknown option {min(unknown)!r}", fix=did_you_mean(min(unknown), known)
        )
    asked = dict(backend=backend, device=device, precision=precision, kv=kv, threads=threads,
                 context=context, cache_bytes=cache_bytes, adapter=adapter, isa=isa)  # fmt: skip
    _check(backend, device, isa, threads)
    _check_types(precision, kv)
    path, beside = located(name, adapter)
    source = checkpoint.read(path, context=context)
    codec = codec_of(path, source)
    if beside is not None:
        source = peft.merged(source, beside, precision)
    values = _converted(source, precision)
    kv = kv or ("f32" if dtype_name(values["embed.weight"]) == "f32" else "bf16")
    run: Runtime
    given: dict[str, Any] = {"names": source.names, "kv": kv}
    if backend == "native":
        run = runtime.native(source.spec, values, threads=threads, isa=isa, **given)
    else:
        device = "cpu" if device is None else device
        run = runtime.torch(source.spec, values, device=device, **given)
    blocks = _blocks(source, run, cache_bytes, asked=context)
    label = label_of(path if adapter is None and beside else name, path)
    facts = _facts(label, source, values, kv, blocks)
    if beside is not None:
        facts += f", adapter {label_of(beside, beside)}"
    if precision in MADE and precision not in source.dtypes:
        facts += ", rounded to nearest"
    size = sum(weight.nbytes for weight in values.values())
    facts = f"{facts}, {run.facts}"
    return Model(
        source,
        codec,
        run,
        blocks=blocks,
        weight_bytes=size,
        precision=", ".join(counts(values)),
        facts=facts,
        load=partial(_again, name, asked),
    )


def _again(
    name: str | Path, asked: dict[str, Any], other: str | Path = "", **changed: Any
) -> Model:
    kept = asked | ({"adapter": None} if other else {})  # it is of this model alone
    return load(other or name, **{**kept, **changed})


def find(name: str | Path) -> Path:
    """The folder or file that a name stands for; a hub id is downloaded.

    Raises:
        RequestError: no shipped model, no path and no hub id.
    """
    if isinstance(name, str) and name in zoo.names():
        return zoo.folder(name)
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise RequestError(f"the model name is {name!r}", expected="a name, a path or a hub id")
    if os.path.lexists(name):
        return Path(name)
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return _download(name)
    known = zoo.names()
    raise RequestError(
        f"there is no model {str(name)!r:.200}",
        expected="a path that exists, a hub id, or the name of a model that ships",
        fix=did_you_mean(str(name), known) if known else "",
    )


def located(name: str | Path, adapter: str | Path | None = None) -> tuple[Path, Path | None]:
    """Where a model lies, and the adapter beside it: asked for, or what the name itself is.

    Raises:
        RequestError: as `find`, or an adapter without its base.
    """
    path = find(name)
    if adapter is not None:
        return path, find(adapter)
    return (base_of(path), path) if peft.is_adapter(path) else (path, None)


def base_of(adapter: Path) -> Path:
    """The base that an adapter names, if it is a folder here or a shipped model.

    Raises:
        RequestError: it is neither: nothing is downloaded for a name in a file.
    """
    named = peft.base_name(adapter)
    if named in zoo.names():
        return zoo.folder(named)
    if named is None or not (Path(named) / checkpoint.CONFIG).is_file():
        raise RequestError(
            f"{adapter} holds an adapter of {shown(named)}, which is not here",
            expected="a folder that is here, or a shipped model",
            fix="name the base: load(base, adapter=...), or --model BASE --adapter FOLDER",
        )
    return Path(named)


def _download(name: str) -> Path:
    """A hub model's folder: fetched, or kept from before where the hub is out of reach."""
    from huggingface_hub import HfApi, snapshot_download

    unreached = None
    try:
        HfApi().model_info(name, timeout=PATIENCE)  # snapshot_download itself would wait for ever
    except Exception as error:  # the network's, the hub's, those of libraries below
        unreached = error
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(HUB_FILES), local_files_only=unreached is not None
            )
        )
    except Exception as error:
        raise FileError(
            f"no path {name!r}, and as a hub id it cannot be fetched "
            f"({type(unreached or error).__name__})",
            fix="check the name and the network, or give the path of a folder",
        ) from error


def _check(backend: str, device: str | None, isa: str | None, threads: int | None) -> None:
    if backend not in ("native", "torch"):
        raise RequestError(f"backend is {backend!r}", expected="'native' or 'torch'")
    if device is not None and not isinstance(device, str):
        raise RequestError(f"device is {device!r:.80}", expected="a name such as 'cpu' or 'cuda'")
    if backend == "native" and device not in (None, "cpu"):
        raise RequestError(f"device is {device!r}", fix="use backend='torch' for it")
    if backend == "torch" and (isa is not None or threads is not None):
        name, value = ("isa", isa) if isa is not None else ("threads", threads)
        raise RequestError(f"{name} is {value!r}", fix="it is for backend='native': leave it out")


def _check_types(precision: Any, kv: Any) -> None:
    known = ("stored", *DTYPES, *MADE)
    if precision not in known:
        hint = did_you_mean(str(precision), known)
        raise RequestError(f"precision is {precision!r:.80}", fix=hint)
    if kv not in (None, "f32", "bf16", "int8"):
        raise RequestError(f"kv is {kv!r:.80}", expected="'f32', 'bf16' or 'int8'")


def _converted(source: Checkpoint, precision: str) -> Weights:
    """The weights in the precision asked for; whether they fit into memory is known before."""
    need, have = _bytes_to_make(source.weights, precision), memory.available()
    if need > have:
        raise ResourceError(
            f"precision={precision!r} makes {need:,} bytes of weights and {have:,} are available",
            fix="choose fewer bits, precision='stored', or a folder made by `seriatim quantize`",
        )
    if precision not in MADE:
        return convert(source.weights, precision)
    from seriatim.quant.model import quantise

    return quantise(source.weights, source.spec, precision)


def _bytes_to_make(weights: Weights, precision: str) -> int:
    """What is not mapped as it is stored; in blocks, matrices without their few padded rows."""
    if precision == "stored":
        return 0
    bits = 8 * DTYPES[precision].itemsize if precision in DTYPES else FORMATS[precision].bits + 0.5
    made = (w.size for w in weights.values() if dtype_name(w) != precision and len(w.shape) == 2)
    return int(sum(made) * bits / 8)


def codec_of(path: Path, source: Checkpoint) -> Codec | None:
    """The codec beside the weights, if its vocabulary is the model's."""
    codec = _beside(path, source)
    if codec is None:
        return None
    size, known = source.spec.vocab_size, codec.size
    padded = size % 64 == 0 and size - known <= max(64, size // 32)  # rows added for alignment
    if known > size or (known < size and not padded):
        raise ModelError(
            f"the codec of {path} has {known} ids and the model {size}",
            expected="the same number (or padding of the model's to a multiple of 64)",
            fix="put the tokenizer that the model was trained with beside it",
        )
    return codec


def _beside(path: Path, source: Checkpoint) -> Codec | None:
    if path.is_dir():
        return codecs.load(path)
    if source.metadata:
        with named(path):
            return from_gguf(source.metadata)
    found = sorted(path.parent.glob("tok*.bin"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise FileError(f"{path.parent} holds several vocabularies: {names}", expected="one")
    from seriatim.codecs import text

    return text.from_llama2c(found[0]) if found else None


def _blocks(source: Checkpoint, run: Runtime, cache_bytes: int | None, asked: int | None) -> int:
    """How many cache blocks there may be: a full request's at least, where `context` was asked."""
    if cache_bytes is None:
        cache_bytes = memory.available() // 2
    else:
        cache_bytes = whole("cache_bytes", cache_bytes, 1)
    blocks = cache_bytes // run.block_bytes
    need = -(-source.spec.context // BLOCK)
    if blocks == 0 or (asked is not None and blocks < need):
        raise ResourceError(
            f"cache_bytes is {cache_bytes:,}",
            expected=f"at least {run.block_bytes * (need if asked else 1):,} for "
            f"{source.spec.context if asked else BLOCK} positions",
            fix="raise cache_bytes, or lower context",
        )
    return blocks


def label_of(name: str | Path, path: Path) -> str:
    """What the model is called: the last part of a path, or the name that stood for one."""
    label = path.resolve().name if os.path.lexists(name) else str(name)
    return label if label.isprintable() else ascii(label)


def _facts(label: str, source: Checkpoint, values: Weights, kv: str, blocks: int) -> str:
    spec, fits = source.spec, blocks * BLOCK
    context = str(spec.context)
    if fits < spec.context:
        context = f"{fits} of {context} (what cache_bytes holds)"
    return (
        f"{label}: {source.model_type}, {source.parameters:,} weights "
        f"({', '.join(counts(values))}), {len(spec.layers)} layer{'s' * (len(spec.layers) > 1)} "
        f"of {spec.width}, vocabulary {spec.vocab_size}, context {context}, kv {kv}"
    )
