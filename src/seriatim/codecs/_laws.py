"""What every codec keeps to, tried on its own examples: `seriatim codecs NAME` shows it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from seriatim.codecs import Codec

Law = Callable[["Codec", Any, list[int]], bool]


def laws(codec: "Codec") -> Iterator[tuple[str, str]]:
    """Each law with the first example that breaks it, "" if none does.

    Args:
        codec: any; a law about what it cannot do is left out.
    """
    examples = codec.examples()
    if not examples:
        yield "there are examples", "examples() gives none"
    for law, holds in _which(codec):
        yield law, next(_broken(codec, holds, examples), "")


def _broken(codec: "Codec", holds: Law, examples: Sequence[Any]) -> Iterator[str]:
    for number, raw in enumerate(examples):
        try:
            kept = holds(codec, raw, codec.encode(raw))
        except Exception as error:
            yield f"examples()[{number}]: {type(error).__name__}: {error}"
        else:
            if not kept:
                yield f"examples()[{number}] is {raw!r:.60}"


def _which(codec: "Codec") -> list[tuple[str, Law]]:
    found = list(_ALWAYS)
    if hasattr(codec, "legal"):
        found.append(("the mask of legal ids allows what the codec encodes", _masked))
    if hasattr(codec, "agreeing"):
        found.append(("what is given whole agrees with itself", _given))
    return found


def _identity(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    once = codec.canonical(raw)
    return bool(codec.decode(ids) == once and codec.canonical(once) == once)


def _repeated(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    return codec.encode(codec.decode(ids)) == ids and not codec.differs(ids)


def _ids(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    special = {*codec.specials.values(), *codec.start, *codec.ends}
    return not special & set(ids) and all(type(id) is int and 0 <= id < codec.size for id in ids)


def _framed(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    prompt = codec.prompt(raw)
    return prompt == [*codec.start, *ids] and bool(codec.decode(prompt) == codec.decode(ids))


def _streamed(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    """All at once, and what follows the first half of the ids."""
    half = len(ids) // 2
    parts = [((), ids), (ids[:half], ids[half:])]
    return all(_text(codec, part, after) == _shown(codec, part, after) for after, part in parts)


def _text(codec: "Codec", ids: Sequence[int], after: Sequence[int]) -> str:
    stream = codec.stream(after=after)
    return "".join([*map(stream.feed, ids), stream.finish()])


def _shown(codec: "Codec", ids: Sequence[int], after: Sequence[int]) -> str:
    return codec.render(codec.decode(ids, after=after))["text/plain"]


def _counted(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    half = len(ids) // 2
    parts = codec.units(ids[:half]) + codec.units(ids[half:], after=ids[:half])
    return codec.units(ids) == parts and codec.units([*codec.start, *codec.ends]) == 0


def _kept(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    from tempfile import TemporaryDirectory

    from seriatim.codecs import load

    with TemporaryDirectory() as folder:
        codec.save(Path(folder))
        again = load(Path(folder))
    return again is not None and again.encode(raw) == ids and again.size == codec.size


def _written(codec: "Codec", raw: Any, ids: list[int]) -> bool:
    from tempfile import TemporaryDirectory

    suffix = getattr(codec, "suffixes", ("",))[0]
    with TemporaryDirectory() as folder:
        codec.write(raw, path := Path(folder) / f"file{suffix}")
        return codec.encode(codec.read(path)) == ids


def _masked(codec: Any, raw: Any, ids: list[int]) -> bool:
    start = tuple(codec.start)
    inside = all(_allows(codec.legal(ids[:at], after=start), id) for at, id in enumerate(ids))
    return inside and _may_end(codec, codec.legal(ids, after=start))


def _given(codec: Any, raw: Any, ids: list[int]) -> bool:
    rule = codec.agreeing(raw, after=codec.start)
    inside = all(_allows(rule(ids[:at]), id) for at, id in enumerate(ids))
    return inside and _may_end(codec, rule(ids))


def _may_end(codec: "Codec", words: "np.ndarray") -> bool:
    return any(_allows(words, id) for id in codec.ends)


def _allows(words: "np.ndarray", id: int) -> bool:
    return id // 32 < len(words) and bool(int(words[id // 32]) >> id % 32 & 1)


_ALWAYS: list[tuple[str, Law]] = [
    ("decode(encode(x)) is canonical(x), which is its own canonical form", _identity),
    ("encode(decode(ids)) is ids", _repeated),
    ("ids are whole numbers below size, and none is special", _ids),
    ("a prompt is the start ids and the object's", _framed),
    ("what is streamed is the text of what is decoded", _streamed),
    ("units add up, and special ids are none", _counted),
    ("saved and loaded it gives the same ids", _kept),
    ("what is written is read back", _written),
]
