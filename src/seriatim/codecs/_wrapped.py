"""A codec over another: what it does not say itself, the other says."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from seriatim.codecs import Codec, Stream
from seriatim.codecs._files import rename


class Wrapped:
    """The parts of the contract that two codecs share.

    Args:
        base: gives and takes the ids.
    """

    name: str

    def __init__(self, base: Codec) -> None:
        self.base = base
        self.size, self.unit = base.size, base.unit
        self.ends, self.start = base.ends, base.start

    @property
    def specials(self) -> Mapping[str, int]:
        """Special ids by their text."""
        return self.base.specials

    def encode(self, raw: Any, /) -> list[int]:
        """The ids of plain text."""
        return self.base.encode(raw)

    @property
    def added(self) -> Mapping[str, int]:
        """Ids by texts that stand beside all other text."""
        return self.base.added

    def weave(self, parts: Sequence[Any], *, quoted: Collection[str] = ()) -> list[int]:
        """The ids of text with added ids between."""
        return self.base.weave(parts, quoted=quoted)

    def prompt(self, raw: Any, /) -> list[int]:
        """`start` and the ids of `raw`."""
        return [*self.start, *self.encode(raw)]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Any:
        """The text of `ids`."""
        return self.base.decode(ids, after=after)

    def stream(self, *, after: Sequence[int] = ()) -> Stream:
        """Incremental decoding."""
        return self.base.stream(after=after)

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many units of text."""
        return self.base.units(ids, after=after)

    def canonical(self, raw: Any, /) -> Any:
        """What the codec below reduces text to."""
        return self.base.canonical(raw)

    def differs(self, ids: Sequence[int]) -> bool:
        """Whether encoding the decoded text gives other ids."""
        return self.base.differs(ids)

    def examples(self) -> list[Any]:
        """Those of the codec below."""
        return self.base.examples()

    def render(self, raw: Any, /) -> Mapping[str, Any]:
        """As the codec below."""
        return self.base.render(raw)

    def read(self, path: Path, /) -> Any:
        """As the codec below."""
        return self.base.read(path)

    def write(self, raw: Any, path: Path, /) -> None:
        """As the codec below."""
        self.base.write(raw, path)

    def save(self, folder: Path, /) -> None:
        """Writes the files of the codec below; codec.json names this one."""
        self.base.save(folder)
        rename(folder, self.name)
