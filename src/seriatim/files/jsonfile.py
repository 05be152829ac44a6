"""JSON objects from strangers, read strictly: what two parsers could read differently is refused.

A byte order mark, a key given twice, NaN or Infinity, numbers that overflow, half a surrogate
pair, and nesting deeper than Python's stack are errors of one line that name the file.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from seriatim.files.regular import open_regular, refuse

LIMIT = 256 << 20  # bytes; the largest tokenizer.json in use has 34 MB


class _Bad(ValueError):
    """A fault found by a hook of the parser."""


def read_object(path: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: a regular file.
        limit: the most bytes it may have.

    Raises:
        FileError: missing, too large, not UTF-8, not strict JSON, or not an object.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise refuse(path, f"has {size} bytes", expected=f"JSON of at most {limit}")
        data = file.read(size)
    value = parse(data, path)
    if not isinstance(value, dict):
        raise refuse(path, f"holds a JSON {type(value).__name__}", expected="a JSON object")
    return value


def parse(data: bytes, path: Path | str, *, pairs: Any = None) -> Any:
    """Strict JSON from bytes.

    Args:
        data: UTF-8.
        path: what to call it in errors.
        pairs: what makes an object of its list of (key, value); default: a dict of distinct keys.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise refuse(path, "begins with a byte order mark", expected="plain UTF-8")
    try:
        text = data.decode()
        value = json.loads(
            text,
            object_pairs_hook=pairs or distinct,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False, default=str).encode()  # fails on half a pair
    except UnicodeDecodeError as error:
        raise refuse(path, f"is not UTF-8 at byte {error.start}", expected="UTF-8") from None
    except UnicodeEncodeError:
        raise refuse(path, "holds half of a surrogate pair", expected="whole characters") from None
    except RecursionError:
        raise refuse(path, "is nested too deeply", expected="JSON of a sane depth") from None
    except ValueError as error:
        raise refuse(path, f"is not valid JSON ({error})", expected="a JSON object") from None
    return value


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs whose keys must differ."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Bad(f"the key {twice!r} is given twice")
    return value


def _no_constant(word: str) -> NoReturn:
    raise _Bad(f"the number {word}")


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise _Bad(f"the number {word} is out of range")
    return value
