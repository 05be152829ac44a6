"""`generate(prefix=, suffix=)`: a gap as a request. Used by `api.py`."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from seriatim.codecs import Codec, code
from seriatim.codecs._repository import Repository
from seriatim.engine.options import whole
from seriatim.errors import RequestError, shown
from seriatim.requesting import Asked, Extras, codec_of, is_empty


def infill(
    model: Asked,
    prompt: Any,
    prefix: Any,
    suffix: Any,
    order: str | None = None,
    *,
    files: Any = None,
    file: Any = None,
    repository: Any = None,
    context_budget: Any = None,
) -> tuple[list[int], Extras] | None:
    """The prompt of a gap and the ids that end its middle, or None if none was asked for.

    Raises:
        RequestError: there is a prompt as well, the model cannot fill a gap, or what is around it
            cannot be shown.
    """
    asked = {
        "files": files,
        "file": file,
        "repository": repository,
        "context_budget": context_budget,
    }
    if prefix is None and suffix is None:
        if idle := [n for n, v in {"fim_order": order, **asked}.items() if v is not None]:
            seen = f"{idle[0]} is given without prefix and suffix"
            raise RequestError(seen, fix="leave it out")
        return None
    if not is_empty(prompt):
        raise RequestError("a prompt is given with prefix and suffix", expected="one or the other")
    codec = codec_of(model, "to fill a gap")
    family = code.of(codec)
    before, after = _text(codec, "prefix", prefix), _text(codec, "suffix", suffix)
    order = code.order_of(codec) if order is None else order
    if all(value is None for value in asked.values()):
        ids, account = code.infill(codec, family, before, after, order), None
    else:
        around = _repository(codec, files, file, repository, context_budget)
        ids, account = code.surrounded(codec, family, before, after, around, order)
    extras = Extras(ends=code.ends(codec, family), before=before, files=account)
    return [*codec.start, *ids], extras


def _repository(codec: Codec, files: Any, file: Any, name: Any, budget: Any) -> Repository:
    """What is around the gap, checked."""
    if not isinstance(files, Mapping | None):
        seen = f"files is {shown(files)}"
        raise RequestError(seen, expected="a dict from paths to texts, or Paths to them")
    if budget is not None and not files:
        raise RequestError("context_budget is given without files", fix="leave it out")
    texts: dict[str, str] = {}
    for path, raw in (files or {}).items():
        known = _line("a path in files", path)
        if known in texts:
            raise RequestError(f"files has {shown(known)} twice", fix="leave one out")
        texts[known] = _text(codec, f"files[{shown(known)}]", raw)
    own = "" if file is None else _line("file", file)
    if own in texts:
        seen = f"files has {shown(own)}, which is the file with the gap"
        raise RequestError(seen, fix="leave it out")
    return Repository(
        texts,
        own,
        "" if name is None else _line("repository", name),
        None if budget is None else whole("context_budget", budget, 0),
    )


def _line(what: str, name: Any) -> str:
    """A name that stands on one line."""
    name = name.as_posix() if isinstance(name, PurePath) else name
    if not isinstance(name, str) or not name or name.splitlines() != [name]:
        raise RequestError(f"{what} is {shown(name)}", expected="a name on one line")
    return name


def _text(codec: Codec, name: str, raw: Any) -> str:
    """A text, to the letter; nothing if it was not given."""
    raw = codec.read(raw) if isinstance(raw, Path) else raw
    if raw is not None and not isinstance(raw, str):
        raise RequestError(f"{name} is a {type(raw).__name__}", expected="text, or a Path to it")
    return raw or ""
