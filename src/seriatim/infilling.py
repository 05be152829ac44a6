"""`generate(prefix=, suffix=)`: a gap as a request. Used by `api.py`."""

from pathlib import Path
from typing import Any

from seriatim.codecs import Codec, code
from seriatim.errors import RequestError
from seriatim.requesting import Asked, Extras, codec_of, is_empty


def infill(
    model: Asked, prompt: Any, prefix: Any, suffix: Any, order: str | None
) -> tuple[list[int], Extras] | None:
    """The prompt of a gap and the ids that end its middle, or None if none was asked for.

    Raises:
        RequestError: there is a prompt as well, or the model cannot fill a gap.
    """
    if prefix is None and suffix is None:
        if order is not None:
            raise RequestError("fim_order is given without prefix and suffix", fix="leave it out")
        return None
    if not is_empty(prompt):
        raise RequestError("a prompt is given with prefix and suffix", expected="one or the other")
    codec = codec_of(model, "to fill a gap")
    family = code.of(codec)
    before, after = _text(codec, "prefix", prefix), _text(codec, "suffix", suffix)
    ids = code.infill(codec, family, before, after, "psm" if order is None else order)
    return [*codec.start, *ids], Extras(ends=code.ends(codec, family))


def _text(codec: Codec, name: str, raw: Any) -> Any:
    """What stands on one side; nothing if it was not given."""
    raw = codec.read(raw) if isinstance(raw, Path) else raw
    if raw is not None and not isinstance(raw, str | bytes):
        raise RequestError(f"{name} is a {type(raw).__name__}", expected="text, or a Path to it")
    return raw or ""
