"""`quantize`: a model in, a quantised folder out (contracts.md, 28), whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from seriatim.codecs import Codec
from seriatim.errors import FileError, RequestError, ResourceError, did_you_mean
from seriatim.kernels.formats import MADE
from seriatim.loading import HUB_FILES, codec_of, find
from seriatim.models import checkpoint
from seriatim.models.checkpoint import CONFIG, Checkpoint
from seriatim.models.config import Say, silent
from seriatim.models.standard import standard
from seriatim.quant import report
from seriatim.quant.model import METHODS, quantise
from seriatim.scoring import cut

WINDOW = 512  # ids of an importance text that run together
MOST_IDS, MOST_VALUES = 1 << 15, 1 << 27  # more gains little; results of a layer must fit memory
KEPT = (*(p for p in HUB_FILES if p != "*.safetensors"), "README*", "LICENSE*")  # copied along


class Quantised(NamedTuple):
    """What was written: each tensor's error, and bytes of all weights before and after."""

    folder: Path
    tensors: list[report.TensorError]
    bytes_before: int
    bytes_after: int


def quantize(
    name: str | Path,
    *,
    to: str,
    out: str | Path,
    method: str | None = None,
    importance: str | Path | None = None,
    say: Say = silent,
) -> Quantised:
    """Write a model with its weights in blocks: a folder that `load` takes and maps at once.

    Args:
        name: what `load` takes.
        to: "int8" or "int4".
        out: the folder to make; one that holds something is refused.
        method: "round", "search" (scales, by the weights alone) or "feedback" (keeps the outputs
            of each product, on ids the model draws itself or on `importance`); default: feedback
            for int4, search for int8.
        importance: a file of the codec's kind; it turns "search" into "feedback".
        say: told of each weight as it is done.

    Raises:
        RequestError: an option that cannot be honoured.
        FileError: `out` holds something, or the text cannot be read.
        ModelError: a model that blocks or a folder cannot hold.
        ResourceError: the disk refused; nothing is left behind.
    """
    _check(to, method)
    folder = _free(Path(out))
    path = find(name)
    source = checkpoint.read(path)
    codec = codec_of(path, source)
    method = method or ("feedback" if to == "int4" or importance is not None else "search")
    windows = None if importance is None else _windows(Path(importance), source, codec)
    whole = standard(source)
    options: dict[str, Any] = {"method": method, "importance": windows, "start": source.start}
    weights = quantise(whole.weights, whole.spec, to, say=say, **options)
    _write(folder, whole, weights, codec)
    sizes = report.size(source.weights), report.size(weights)
    return Quantised(folder, report.errors(whole.weights, weights), *sizes)


def _windows(path: Path, source: Checkpoint, codec: Codec | None) -> list[list[int]]:
    """Windows of a text, spread evenly over it where there are too many."""
    if codec is None:
        raise RequestError("importance needs a codec, and the model has none", fix="leave it out")
    ids, length = codec.encode(codec.read(path)), min(WINDOW, source.spec.context)
    windows = cut(ids, length, tuple(codec.start))
    if not windows:
        raise RequestError(f"{path} holds no text", expected="some, like what the model will see")
    widest = max(max(layer.mlp.width for layer in source.spec.layers), source.spec.width)
    most = max(min(MOST_IDS, MOST_VALUES // widest) // length, 1)
    if len(windows) <= most:
        return windows
    return [windows[i * len(windows) // most] for i in range(most)]


def _check(to: str, method: str | None) -> None:
    if to not in MADE:
        raise RequestError(f"to is {to!r:.80}", fix=did_you_mean(str(to), MADE))
    if method is not None and method not in METHODS:
        raise RequestError(f"method is {method!r:.80}", fix=did_you_mean(str(method), METHODS))


def _free(folder: Path) -> Path:
    taken = os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir()))
    if taken:
        raise FileError(f"{folder} is there already", expected="a new folder, or an empty one")
    if not folder.absolute().parent.is_dir():
        raise FileError(f"there is no folder {folder.absolute().parent} to write in")
    return folder


def _write(folder: Path, source: Checkpoint, weights: Any, codec: Codec | None) -> None:
    """Written beside its place and renamed into it."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        checkpoint.write_quantised(partial, source, weights)
        _along(source.path, partial, codec)
        partial.replace(folder)
    except OSError as error:
        raise ResourceError(
            f"{folder} was not written: {error.strerror}", fix="make room, or choose another place"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _along(path: Path, folder: Path, codec: Codec | None) -> None:
    """Everything beside the weights: tokenizer, codec.json, generation_config.json, the card."""
    if not path.is_dir():
        if codec is not None:
            codec.save(folder)
        return
    for file in sorted({file for pattern in KEPT for file in path.glob(pattern)}):
        if file.is_file() and file.name != CONFIG and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
