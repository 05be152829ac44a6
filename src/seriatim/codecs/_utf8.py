"""Bytes as people see them: text without half characters, and GPT-2's alphabet of bytes."""

from codecs import getincrementaldecoder
from collections.abc import Callable

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

# GPT-2's printable stand-in for each byte: itself, or the next free letter from U+0100 on
# (Radford et al. 2019, `bytes_to_unicode` in encoder.py).
ALPHABET: dict[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + n) for n, byte in enumerate(_OTHERS)
}
BYTE: dict[str, int] = {letter: byte for byte, letter in ALPHABET.items()}


class Utf8Stream:
    """Text from the bytes of ids, one id at a time; an unfinished character waits for its rest.

    Bytes that can belong to no character show as U+FFFD as soon as that is certain. `lead` is
    dropped once if the text begins with it (the space that Llama's tokenizers put in front).
    """

    def __init__(self, piece: Callable[[int], bytes], lead: bytes = b"") -> None:
        self._piece, self._lead = piece, lead
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, id: int, /) -> str:
        """The text that `id` completes."""
        data = self._piece(id)
        if data and self._lead:
            data, self._lead = data.removeprefix(self._lead), b""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """One U+FFFD if the ids ended inside a character, else ""."""
        return self._decoder.decode(b"", final=True)
