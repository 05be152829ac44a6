"""What codecs of objects have in common, so that a new one says only what is its own.

Each id stands for a text of its own; start, end and other special ids stand for nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from seriatim.codecs._files import write_json
from seriatim.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from seriatim.codecs import Stream


class Base(ABC):
    """A codec without `encode`, `decode`, `examples`, `read` and `write`, which are its own.

    Attributes:
        name, unit, size, start, ends: as of `Codec`.
        suffixes: of the files that it reads and writes, the usual one first; "" is any.
        specials: special ids by a name.
        options: what `load` is given to make it again, as JSON.
    """

    name: str
    unit: str
    size: int
    start: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    suffixes: tuple[str, ...] = ("",)
    specials: Mapping[str, int] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def encode(self, raw: Any, /) -> list[int]:
        """The ids of `raw`."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Any:
        """The object of `ids`, any of which may be there, in any order."""

    def shown(self, id: int) -> str:
        """The text of one id."""
        return f"{id} "

    @property
    def added(self) -> Mapping[str, int]:
        """The same as `specials`."""
        return self.specials

    def weave(self, parts: Sequence[Any], *, quoted: Collection[str] = ()) -> list[int]:
        """The ids of objects with special ids between."""
        return [id for p in parts for id in ([p] if isinstance(p, int) else self.encode(p))]

    def prompt(self, raw: Any, /) -> list[int]:
        """The start ids and those of `raw`."""
        return [*self.start, *self.encode(raw)]

    def canonical(self, raw: Any, /) -> Any:
        """What the ids of `raw` stand for."""
        return self.decode(self.encode(raw))

    def differs(self, ids: Sequence[int]) -> bool:
        """Whether the object of `ids` has others."""
        return self.encode(self.decode(ids)) != list(ids)

    def stream(self, *, after: Sequence[int] = ()) -> "Stream":
        """The text of each id as it comes."""
        return Base.Shown(self)

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many ids there are that are not special."""
        return sum(not self.silent(id) for id in ids)

    def render(self, raw: Any, /) -> Mapping[str, Any]:
        """The texts of its ids."""
        return {"text/plain": "".join(map(self.shown, self.encode(raw)))}

    def save(self, folder: Path, /) -> None:
        """Writes codec.json."""
        said = {"codec": self.name, "version": 1, "options": dict(self.options)}
        write_json(folder / "codec.json", said)

    def silent(self, id: int) -> bool:
        """Whether an id stands for nothing."""
        return id in self.start or id in self.ends or id in self.specials.values()

    class Shown:
        """Texts of ids, one at a time."""

        def __init__(self, codec: "Base") -> None:
            self._codec = codec

        def feed(self, id: int, /) -> str:
            """The text of `id`."""
            return "" if self._codec.silent(id) else self._codec.shown(id)

        def finish(self) -> str:
            """Nothing is held back."""
            return ""


def refused(codec: str, raw: Any, expected: str) -> RequestError:
    """The error that says what an object is, and what it should be."""
    return RequestError(f"{type(raw).__name__} given to codec {codec}", expected=expected)


def words(allowed: "np.ndarray") -> "np.ndarray":
    """A mask of ids [size] as `Lawful.legal` gives it: uint32 words, the lowest bit first."""
    import numpy as np

    padded = np.zeros(-(-len(allowed) // 32) * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)
