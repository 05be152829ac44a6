"""What codecs of music share: ids by a grammar, files, what is seen and heard."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from seriatim.codecs import _abc, _abc_out, _midi, _roll, _synth
from seriatim.codecs._base import Base, words
from seriatim.codecs._chorale import END, Singer
from seriatim.codecs._files import named, read_bytes, read_text
from seriatim.codecs._player import Player
from seriatim.codecs._rendering import Rendering
from seriatim.codecs._score import Score
from seriatim.errors import FileError, RequestError, SeriatimError

_REMEMBERED = 256  # states
_KINDS = {".mid": "audio/midi", ".midi": "audio/midi", ".png": "image/png", ".wav": "audio/wav"}


class Remembered:
    """The state after ids, by a function of the state before each; that of one less is known.

    Args:
        begun: the state before all.
        followed: the state after an id.
    """

    def __init__(self, begun: Any, followed: Callable[[Any, int], Any]) -> None:
        self._begun, self._followed = begun, followed
        self._states: dict[tuple[int, ...], Any] = {}

    def __call__(self, ids: tuple[int, ...]) -> Any:
        """What `followed` makes of all of them."""
        if (state := self._states.get(ids)) is not None:
            return state
        before = self._states.get(ids[:-1])
        known, rest = (self._begun, ids) if before is None else (before, ids[-1:])
        state = reduce(self._followed, rest, known)
        if len(self._states) >= _REMEMBERED:
            self._states.clear()
        self._states[ids] = state
        return state


class MusicCodec(Base, ABC):
    """What both forms share; 0 starts and ends a sequence."""

    name = "music"
    start = ends = (END,)
    specials = MappingProxyType({"<|end|>": END})

    def __init__(self, size: int, **options: str | int) -> None:
        self.size, self.options = size, options
        self._state = Remembered(self._begun(), self._followed)

    # ---- what a form is --------------------------------------------------------------------------

    @abstractmethod
    def encode(self, raw: Any, /) -> list[int]:
        """The ids of a score or chorale, or of its literal form."""

    @abstractmethod
    def canonical(self, raw: Any, /) -> Any:
        """What `decode(encode(raw))` gives."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Any:
        """What `ids` say; ids that may not stand where they do are passed over."""

    @abstractmethod
    def stream(self, *, after: Sequence[int] = ()) -> Player | Singer:
        """A line for each note or frame, once it is whole."""

    @abstractmethod
    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many units `ids` complete."""

    @abstractmethod
    def examples(self) -> list[Any]:
        """Objects that the law tests encode."""

    @abstractmethod
    def played(self, raw: Any, /) -> Score:
        """What is seen and heard of an object."""

    @abstractmethod
    def _lines(self, raw: Any) -> str: ...

    @abstractmethod
    def _literal(self, text: str) -> Any: ...

    @abstractmethod
    def _of(self, score: Score) -> Any: ...

    @abstractmethod
    def _begun(self) -> Any: ...

    @abstractmethod
    def _followed(self, state: Any, id: int) -> Any: ...

    @abstractmethod
    def _mask(self, state: Any) -> np.ndarray: ...

    # ---- ids -------------------------------------------------------------------------------------

    def legal(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> np.ndarray:
        """uint32 words of the ids that may follow: what a canonical object has there."""
        return words(self._mask(self._state((*after, *ids))))

    # ---- objects and files -----------------------------------------------------------------------

    def render(self, raw: Any, /) -> Rendering:
        """Lines of text, a piano roll, MIDI and sound; each is made when it is looked at."""
        return Rendering(
            {
                "text/plain": lambda: self._lines(raw),
                "image/png": lambda: _roll.content(self.played(raw)),
                "audio/midi": lambda: _midi.content(self.played(raw)),
                "audio/wav": lambda: _synth.content(self.played(raw)),
            }
        )

    def records(self, path: Path, /) -> Iterator[tuple[str, Any | SeriatimError]]:
        """Each tune of an .abc file with its place, or the one piece of another."""
        match path.suffix.lower():
            case ".abc":
                for place, tune in _abc.tunes(_text(path)):
                    yield place, tune if isinstance(tune, SeriatimError) else self._tried(tune)
            case ".mid" | ".midi":
                yield "", self._of(_midi.read(path))
            case ".txt":
                yield "", self._literal(read_text(path))
            case other:
                readable = [suffix for suffix in self.suffixes if suffix not in (".png", ".wav")]
                seen = f"{path} has the suffix {other!r}"
                raise FileError(seen, expected=" ".join(readable))

    def _tried(self, score: Score) -> Any:
        try:
            return self._of(score)
        except RequestError as error:
            return error

    def read(self, path: Path, /) -> Any:
        """The object in a file that holds one.

        Raises:
            FileError: it holds none, or several.
        """
        with named(path):
            found = list(self.records(path))
            if len(found) != 1:
                fix = "train on it as it is, or write each to a file of its own"
                raise FileError(f"{path} holds {len(found)} pieces", expected="one", fix=fix)
            if isinstance(found[0][1], SeriatimError):
                raise found[0][1]
            return found[0][1]

    def write(self, raw: Any, path: Path, /) -> None:
        """Writes a file as its suffix says: MIDI, PNG, WAV, ABC or lines.

        Raises:
            RequestError: another suffix, or an object that a file of that kind cannot hold.
        """
        match path.suffix.lower():
            case ".abc":
                path.write_text(_abc_out.content(self.played(raw)), encoding="utf-8")
            case ".txt":
                path.write_text(self._lines(raw), encoding="utf-8")
            case suffix if suffix in _KINDS:
                path.write_bytes(self.render(raw)[_KINDS[suffix]])
            case suffix:
                seen = f"{path} has the suffix {suffix!r}"
                raise RequestError(seen, expected=" ".join(self.suffixes))


def one_tune(text: str) -> Score:
    """The score of a text that is a tune in ABC."""
    found = list(_abc.tunes(text))
    if len(found) != 1:
        raise RequestError(f"the text holds {len(found)} tunes", expected="one")
    if isinstance(found[0][1], SeriatimError):
        raise found[0][1]
    return found[0][1]


def _text(path: Path) -> str:
    """Of an .abc file: UTF-8, or else Latin-1, which old ones are in."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
