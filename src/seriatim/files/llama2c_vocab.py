"""The tok*.bin format of llama2.c (Karpathy 2023): pieces and their scores, and nothing else.

A file is an int32, the length of the longest piece, and then for each id a float32 score, an int32
length and that many bytes of UTF-8; little-endian. How many ids there are is where it ends.
"""

import math
import struct
from pathlib import Path

from seriatim.errors import FileError

LIMIT = 1 << 26  # bytes; the format's own 32,000 pieces take 0.4 MB
_HEAD, _ENTRY = struct.Struct("<i"), struct.Struct("<fi")


def read_vocab(path: Path) -> tuple[list[str], list[float]]:
    """The piece and the score of each id.

    Raises:
        FileError: the file is cut, too large, or holds a length, text or score that cannot be.
    """
    if not path.is_file():
        raise FileError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if (size := path.stat().st_size) > LIMIT:
        raise FileError(f"{path} has {size} bytes", expected=f"a tok*.bin of at most {LIMIT}")
    data = path.read_bytes()
    if size < _HEAD.size or (longest := _HEAD.unpack_from(data)[0]) < 1:
        raise FileError(f"{path} does not begin with a length", expected="llama2.c's tok*.bin")
    pieces, scores, at = [], [], _HEAD.size
    while at < len(data):
        piece, score, at = _entry(data, at, longest, f"{path}, id {len(pieces)}")
        pieces.append(piece)
        scores.append(score)
    return pieces, scores


def _entry(data: bytes, at: int, longest: int, where: str) -> tuple[str, float, int]:
    if at + _ENTRY.size > len(data):
        raise FileError(f"{where}: the file is cut at byte {len(data)}", fix="fetch it again")
    score, length = _ENTRY.unpack_from(data, at)
    first = at + _ENTRY.size
    left = min(longest, len(data) - first)
    if not 0 < length <= left:
        raise FileError(f"{where}: length {length} at byte {at}", expected=f"1 to {left}")
    if not math.isfinite(score):
        raise FileError(f"{where}: score {score}", expected="a finite number")
    try:
        return data[first : first + length].decode(), score, first + length
    except UnicodeDecodeError as error:
        raise FileError(f"{where}: byte {first + error.start} is not UTF-8") from error
