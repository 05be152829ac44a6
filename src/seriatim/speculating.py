"""From a request's options to what guesses for it: draft models by name, texts to draft from.

Both are kept, so that requests share them. How guesses are made and used is the engine's matter.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from seriatim.codecs import Codec
from seriatim.engine.lookup import Text
from seriatim.errors import RequestError, shown

MOST_TEXTS = 4  # the latest are kept
MOST_MODELS = 2  # of those loaded by name, likewise
COMPARED = 1000  # ids of two codecs

Load = Callable[..., Any]  # a model by its name, as another was loaded


class Speaks(Protocol):
    """Whose requests are guessed for, and what guesses."""

    @property
    def codec(self) -> Codec | None: ...
    @property
    def vocab_size(self) -> int: ...


class Drafting:
    """The draft models and texts that a model's requests have named.

    Args:
        load: gives a model by its name.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._compared: WeakSet[Any] = WeakSet()  # those whose codec is the same
        self._texts: OrderedDict[Any, Text] = OrderedDict()

    def resolved(
        self, model: Speaks, options: Mapping[str, Any], ids_of: Callable[[Any], list[int]]
    ) -> dict[str, Any]:
        """The same options, with a loaded draft model and an indexed text.

        Args:
            model: whose request it is.
            options: `draft` may be a name, path or model; `draft_text` what a prompt may be.
            ids_of: encodes a text.

        Raises:
            RequestError: a draft model of another vocabulary, or a text that cannot be used.
        """
        found = dict(options)
        if found.get("draft") is not None:
            found["draft"] = self._model(model, found["draft"])
        if found.get("draft_text") is not None:
            found["draft_text"] = self._text(found["draft_text"], ids_of)
        return found

    def _model(self, model: Speaks, draft: Any) -> Any:
        if isinstance(draft, str | Path):
            draft = _kept(self._models, str(draft), MOST_MODELS, lambda: self._loaded(draft))
        if getattr(draft, "vocab_size", None) == model.vocab_size and draft not in self._compared:
            check_codecs(model.codec, getattr(draft, "codec", None))
            self._compared.add(draft)
        return draft  # the engine refuses what is no model, or of another size

    def _loaded(self, name: str | Path) -> Any:
        return self._load(name, context=None)

    def _text(self, raw: Any, ids_of: Callable[[Any], list[int]]) -> Text:
        if isinstance(raw, Text):
            return raw
        return _kept(self._texts, _key(raw), MOST_TEXTS, lambda: Text(ids_of(raw)))


def check_codecs(one: Codec | None, other: Codec | None) -> None:
    """Refuse two codecs whose ids mean different things; without a codec nobody knows.

    Raises:
        RequestError: they differ.
    """
    if one is None or other is None or one is other:
        return
    step = max(1, one.size // COMPARED)
    ids = [[id] for id in range(0, min(one.size, other.size), step)]
    alike = one.name == other.name and one.size == other.size
    if not alike or [*map(one.decode, ids)] != [*map(other.decode, ids)]:
        raise RequestError(
            f"the draft model's codec is {other.name} of {other.size} ids and the model's "
            f"{one.name} of {one.size}",
            expected="the same tokenizer" + " (their ids mean different things)" * alike,
        )


def _kept(cache: OrderedDict[Any, Any], key: Any, most: int, make: Callable[[], Any]) -> Any:
    """What `make` gave for this key, among the `most` asked for latest."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > most:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def _key(raw: Any) -> Any:
    """What says that a text is the same: of a file, its place, size and time."""
    if isinstance(raw, Path) and raw.exists():
        facts = raw.stat()
        return raw.resolve(), facts.st_size, facts.st_mtime_ns
    try:
        key = raw if isinstance(raw, str | bytes | Path) else tuple(raw)
        hash(key)
    except TypeError:
        raise RequestError(
            f"draft_text is {shown(raw)}", expected="a text, a Path to a file, or a list of ids"
        ) from None
    return key
