"""What each token of a tokenizer's vocabulary stands for, in bytes.

The decoders of `tokenizers` give text, and lose characters that end in a run of byte tokens with an
unfinished one, so that they can not be followed token by token. The same rules over bytes can.
"""

import json
import re
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seriatim.codecs._utf8 import BYTE
from seriatim.errors import FileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Rule:
    """A decoder as data.

    Attributes:
        alphabet: letters are GPT-2's stand-ins for bytes.
        swaps: (what, by what), in order, in every token.
        fallback: a token <0xE2> is the byte.
        lead: what is dropped once from the front of a whole text.
    """

    alphabet: bool = False
    swaps: tuple[tuple[str, str], ...] = ()
    fallback: bool = False
    lead: bytes = b""

    def complete(self, vocabulary: Container[str]) -> bool:
        """Whether every byte has a token, so that any text can be expressed."""
        tokens = BYTE_TOKENS if self.fallback else BYTE if self.alphabet else [""]
        return all(token in vocabulary for token in tokens)

    def token(self, token: str) -> bytes:
        """The bytes of one token of the vocabulary."""
        byte = _BYTE_TOKEN.fullmatch(token) if self.fallback else None
        return bytes((int(byte[1], 16),)) if byte else self.text(token)

    def text(self, text: str) -> bytes:
        """The bytes of text as the vocabulary spells it."""
        if self.alphabet and all(letter in BYTE for letter in text):
            return bytes(BYTE[letter] for letter in text)
        for old, new in self.swaps:
            text = text.replace(old, new)
        return text.encode()


def rule(tokenizer: "Tokenizer") -> Rule:
    """The rule of a tokenizer's decoder.

    Raises:
        FileError: it has no decoder, or one that is not a rule over single tokens.
    """
    if tokenizer.decoder is None:
        raise FileError(
            "the tokenizer has no decoder", expected="ByteLevel, Metaspace or a Sequence"
        )
    state = json.loads(tokenizer.decoder.__getstate__())
    made = Rule()
    for step in state["decoders"] if state["type"] == "Sequence" else [state]:
        made = _with(made, step)
    return made


def _with(rule: Rule, step: dict[str, Any]) -> Rule:
    match step:
        case {"type": "Fuse"}:
            return rule
        case {"type": "ByteLevel"}:
            return replace(rule, alphabet=True)
        case {"type": "ByteFallback"}:
            return replace(rule, fallback=True)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return replace(rule, swaps=(*rule.swaps, (old, new)))
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return replace(rule, lead=b" ")
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": "never"}:
            return replace(rule, swaps=(*rule.swaps, (mark, " ")))
        case {"type": "Metaspace", "replacement": str(mark)}:
            return replace(rule, swaps=(*rule.swaps, (mark, " ")), lead=b" ")
    raise FileError(
        f"the tokenizer's decoder has the step {json.dumps(step)}",
        expected="ByteLevel, Metaspace, Replace, ByteFallback, Fuse, or Strip of one leading space",
    )
