"""Which ids break a repetition (`dry_breakers`), where they are given as text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from seriatim.codecs import Codec
from seriatim.errors import RequestError, shown


def breaking_ids(given: Any, codec: Codec | None, vocab_size: int) -> Any:
    """Breakers with each string replaced by all ids whose own text contains it.

    Args:
        given: ids and strings.
        codec: of the strings.
        vocab_size: how many ids there are.

    Raises:
        RequestError: a string without a codec, or one that the text of no single id contains.
    """
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise RequestError(f"dry_breakers is {shown(given)}", expected="a list of ids and strings")
    ids: list[Any] = []
    for place, breaker in enumerate(given):
        if not isinstance(breaker, str):
            ids.append(breaker)  # checked with the other options
            continue
        if codec is None:
            raise RequestError(
                f"dry_breakers[{place}] is a string, and the model has no codec", fix="give ids"
            )
        found = _containing(codec, vocab_size, breaker) if breaker else ()
        if not found:
            raise RequestError(
                f"dry_breakers[{place}] is {shown(breaker)}, which no single id's text contains",
                fix="give a shorter string, or ids",
            )
        ids += found
    return ids


@lru_cache(maxsize=256)  # a vocabulary of 128 k takes a third of a second
def _containing(codec: Codec, vocab_size: int, text: str) -> tuple[int, ...]:
    sought = text.encode(errors="surrogatepass")
    size = min(codec.size, vocab_size)
    return tuple(id for id in range(size) if sought in _text(codec, id))


def _text(codec: Codec, id: int) -> bytes:
    raw = codec.decode([id], after=[id])  # not the first of a text: a leading space stays
    return raw if isinstance(raw, bytes) else str(raw).encode(errors="surrogatepass")
