"""Where text may be cut without changing an id: at a space between two ASCII letters.

The rules for cutting text that are known here (`_cuts`, and the one of `text.train`) begin a part
at that space whatever stands around it, look at nothing before it, and end the part before it at
the same place when nothing follows. Merging never leaves a part. tests/test_data.py cuts texts
under each of them.
"""

import json
from typing import TYPE_CHECKING, Any

from seriatim.codecs._cuts import CUTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KNOWN = {pattern for rule in CUTS.values() for pattern in rule.patterns}
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def cuttable(tokenizer: "Tokenizer") -> bool:
    """Whether `last_cut` is safe: a byte-level vocabulary whose rules are all known.

    A normalizer, a space put in front, or added tokens of plain text could see across the cut.
    """
    parts = json.loads(tokenizer.to_str())
    plain = [token for token in parts["added_tokens"] if not token["special"]]
    if parts["normalizer"] or plain or not (splitter := parts["pre_tokenizer"]):
        return False
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    return steps[-1]["type"] == "ByteLevel" and all(map(_known, steps)) and any(map(_cuts, steps))


def _known(step: dict[str, Any]) -> bool:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": space}:
            return not space
        case {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": flip}:
            return rule in KNOWN and not flip
        case {"type": "Digits"}:
            return True
    return False


def _cuts(step: dict[str, Any]) -> bool:
    """A rule that begins a part at the space; digits and punctuation alone would not."""
    return step.get("use_regex", False) or (
        step["type"] == "Split" and r"\p{L}" in step["pattern"]["Regex"]
    )


def last_cut(data: bytes) -> int:
    """The last index at which UTF-8 may be cut; 0 if there is none.

    Example:
        >>> last_cut(b"one two 3"), last_cut(b"one")
        (3, 0)
    """
    at = len(data) - 1
    while (at := data.rfind(b" ", 1, at)) > 0:
        if data[at - 1] in _LETTERS and data[at + 1] in _LETTERS:
            return at
    return 0
