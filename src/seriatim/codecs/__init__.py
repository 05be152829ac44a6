"""Raw objects (text, bytes, later notes, residues, pixels) to and from ids.

A codec is one file here, registered by its name; files that begin with an underscore are parts of
them. Nothing here knows a model: the engine sees ids and never a codec.

    codec = codecs.load(Path("some/model"))
    codec.decode(codec.encode("Hello"))
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from seriatim import registry
from seriatim.codecs._base import Base, refused, words
from seriatim.codecs._laws import laws
from seriatim.codecs._options import parse as parse_options
from seriatim.codecs._watch import Watch
from seriatim.errors import FileError, RequestError, SeriatimError
from seriatim.files.jsonfile import read_object

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Base",
    "Codec",
    "Divisible",
    "Fillable",
    "Fitted",
    "Joint",
    "Lawful",
    "Records",
    "Spelt",
    "Stream",
    "Watch",
    "laws",
    "learner",
    "load",
    "made",
    "parse_options",
    "refused",
    "words",
]

PACKAGE = "seriatim.codecs"
VERSION = 1  # of codec.json


class Stream(Protocol):
    """Decodes ids one at a time; what it has returned is never taken back."""

    def feed(self, id: int, /) -> str:
        """The text that `id` completes: "" while a character is still unfinished."""
        ...

    def finish(self) -> str:
        """What is left: one U+FFFD if the ids ended inside a character, else ""."""
        ...


class Codec(Protocol):
    """What a codec is: `decode(encode(x)) == canonical(x)`, and streaming equals decoding at once.

    Attributes:
        name: its name in the registry and in codec.json.
        size: one more than the largest id.
        unit: what one symbol of the raw object is ("byte", "note", "residue", "pixel").
        ends: the ids that end a sequence, as far as the tokenizer's own files say.
        start: the ids that the model's own post-processor puts in front of a prompt.
        specials: special ids by their text, which `encode` reads as plain text.
        added: `specials`, and ids whose text is cut out of every other before all else.

    `after` is the ids that came before (a prompt): a continuation keeps its leading space where a
    tokenizer drops that of a whole text.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def ends(self) -> tuple[int, ...]: ...
    @property
    def start(self) -> tuple[int, ...]: ...
    @property
    def specials(self) -> Mapping[str, int]: ...
    @property
    def added(self) -> Mapping[str, int]: ...

    def encode(self, raw: Any, /) -> list[int]:
        """The ids of `raw` alone: nothing is added, special-looking text is plain text."""
        ...

    def weave(self, parts: Sequence[Any], *, quoted: Collection[str] = ()) -> list[int]:
        """The ids of raw parts with ids of `added` between, as if their texts stood there.

        `quoted` are added texts that are not special, and yet plain where they stand in a part.
        """
        ...

    def prompt(self, raw: Any, /) -> list[int]:
        """`start` and the ids of `raw`."""
        ...

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Any:
        """The raw object of `ids`; special ids and ids without a piece render as nothing."""
        ...

    def stream(self, *, after: Sequence[int] = ()) -> Stream:
        """Incremental decoding: its pieces, joined, are the text of `decode` on the same ids."""
        ...

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many units `ids` stand for; special ids are none."""
        ...

    def canonical(self, raw: Any, /) -> Any:
        """What `decode(encode(raw))` must give: `raw`, or the form this codec reduces it to."""
        ...

    def differs(self, ids: Sequence[int]) -> bool:
        """Whether encoding the decoded object gives other ids."""
        ...

    def examples(self) -> list[Any]:
        """Objects that the law tests encode."""
        ...

    def render(self, raw: Any, /) -> Mapping[str, Any]:
        """A MIME bundle: content by type, always with text/plain."""
        ...

    def read(self, path: Path, /) -> Any:
        """The raw object in a file."""
        ...

    def write(self, raw: Any, path: Path, /) -> None:
        """Writes the raw object to a file."""
        ...

    def save(self, folder: Path, /) -> None:
        """Writes codec.json and what else `load` and other programs need."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """What a codec of text or bytes may add, so that data of any length can be encoded."""

    def cut(self, data: bytes, /) -> int:
        """The last index where `data` may be cut: the parts' ids, joined, are those of the whole.

        0 if there is none; nothing that follows `data` may change it.
        """
        ...

    def encode_many(self, pieces: Sequence[bytes], /) -> list["np.ndarray"]:
        """`encode` of each piece (of UTF-8, where the codec is one of text) as an array."""
        ...


@runtime_checkable
class Records(Protocol):
    """What a codec adds whose files hold several objects."""

    def records(self, path: Path, /) -> Iterator[tuple[str, Any | SeriatimError]]:
        """Each object with its place in the file ("line 12"), or why there is none."""
        ...


@runtime_checkable
class Spelt(Codec, Protocol):
    """A codec of text: each id stands for bytes, so that what they spell can be constrained."""

    def pieces(self) -> list[bytes]:
        """The bytes of every id, in order; b"" for special ids and ids without a piece."""
        ...

    def lead(self, after: Sequence[int], /) -> bytes:
        """What a text that follows the ids `after` loses once, if it begins with it."""
        ...


@runtime_checkable
class Lawful(Codec, Protocol):
    """A codec that knows which ids may come next: every request of its models keeps to it.

    Where a constraint is asked for as well, both hold.
    """

    def legal(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> "np.ndarray":
        """uint32 words: bit i % 32 of word i // 32 says whether id i may follow `after` and `ids`.

        A pure function of both. An end id is allowed where an object is whole, and whatever the
        codec itself would encode is allowed. Ids beyond the words are not.
        """
        ...


@runtime_checkable
class Fillable(Codec, Protocol):
    """A codec whose object may be given in part, the rest generated around it (`given=`)."""

    def agreeing(
        self, given: Any, /, *, after: Sequence[int] = ()
    ) -> Callable[[Sequence[int]], "np.ndarray"]:
        """From ids that followed `after` to uint32 words, as of `legal`: which agree with `given`.

        Where `given` says nothing, every id does; an end id does where nothing given is left.

        Args:
            given: an object with places that are open, as the codec says; or its literal form.
            after: the prompt's ids.

        Raises:
            RequestError: it is no such object, or what was generated or prompted contradicts it.
        """
        ...


@runtime_checkable
class Fitted(Codec, Protocol):
    """A codec that may adapt to the files a model is trained on (a palette of their colours)."""

    def fitted(self, files: Sequence[Path], /) -> Codec:
        """This codec, or the one that was made of the files: a pure function of their content."""
        ...


@runtime_checkable
class Joint(Codec, Protocol):
    """A codec that can write several objects into one file (images side by side)."""

    def write_all(self, raws: Sequence[Any], path: Path, /) -> None:
        """Writes them, in order."""
        ...


def made(name: str) -> Codec | None:
    """The codec that a name and options make, such as "image:size=16,mode=grey".

    None of one that must learn its ids from text.

    Raises:
        RequestError: no such codec, or an option that it does not have.
    """
    name, _, options = name.partition(":")
    module = registry.get(PACKAGE, name)
    if hasattr(module, "make"):
        return module.make(_pairs(name, options))
    if not hasattr(module, "train"):
        raise RequestError(f"codec {name} is made of a model's folder", fix="name that folder")
    return None


def learner(name: str) -> Callable[[Iterable[str], int], Codec]:
    """What learns the ids of a codec that `made` gives None for, from texts and how many to learn.

    Raises:
        RequestError: options that it does not have.
    """
    name, _, options = name.partition(":")
    train = registry.get(PACKAGE, name).train
    if not options:
        return train
    if "options" not in signature(train).parameters:
        raise RequestError(f"codec {name} has no options; {options!r} is given", fix="leave it out")
    return partial(train, options=_pairs(name, options))


def _pairs(name: str, text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    found = {key.strip(): value.strip() for key, _, value in pairs}
    if len(found) < len(pairs) or not all(key and sign for key, sign, _ in pairs):
        raise RequestError(
            f"codec {name} has the options {text!r}", expected=f"{name}:option=value,option=value"
        )
    return found


def load(folder: Path) -> Codec | None:
    """The codec of a model folder, or None if nothing in it says what its ids mean.

    codec.json decides; without one, tokenizer files (tokenizer.json, a SentencePiece .model,
    GPT-2's vocabulary and merges) mean the codec `text`.

    Raises:
        FileError: a file that is damaged, or of a kind that cannot be honoured whole.
        RequestError: codec.json names a codec that is not registered.
    """
    if not (path := folder / "codec.json").exists():
        return registry.get(PACKAGE, "text").load(folder, {})
    name, options = _declared(path)
    codec = registry.get(PACKAGE, name).load(folder, options)
    if codec is None:
        raise FileError(f"{path} names the codec {name}, but {folder} has no files for it")
    return codec


def _declared(path: Path) -> tuple[str, dict[str, Any]]:
    match read_object(path):
        case {"codec": str(name), "version": int(version), "options": dict(options), **rest}:
            if rest:
                raise FileError(f"{path} has the unknown key {min(rest)!r}", fix="remove it")
            if version != VERSION:
                raise FileError(f"{path} has version {version}", expected=f"version {VERSION}")
            return name, options
    raise FileError(
        f"{path} is incomplete", expected='{"codec": "...", "version": 1, "options": {}}'
    )
