"""SentencePiece .model files: a protobuf message (sentencepiece_model.proto) with pieces and rules.

Only what can be reproduced to the id is accepted: BPE with byte fallback and no text normalisation,
which is what Llama and Mistral use. Neither protobuf nor sentencepiece is needed.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seriatim.codecs._files import read_bytes
from seriatim.codecs._scored import build
from seriatim.errors import FileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
_SPACE = "▁"
_BPE = 2  # TrainerSpec.ModelType


@dataclass
class Model:
    """What a .model file says; the defaults are those of the schema.

    Attributes:
        pieces: text, score and type of each id.
        trainer: fields of TrainerSpec by number: 3 model type, 24 spaces as suffixes.
        normalizer: fields of NormalizerSpec: 2 rules, 3 dummy prefix, 4 squeeze spaces, 5 escape.
        start, end: the pieces around a text.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    trainer: dict[int, Any] = field(default_factory=dict)
    normalizer: dict[int, Any] = field(default_factory=dict)
    start: str = "<s>"
    end: str = "</s>"


def read(path: Path) -> Model:
    """The content of a .model file.

    Raises:
        FileError: it is no SentencePiece model.
    """
    model = Model()
    try:
        for number, value in fields(read_bytes(path)):
            match number, value:
                case 1, bytes():
                    model.pieces.append(_piece(dict(fields(value))))
                case 2, bytes():
                    model.trainer = dict(fields(value))
                    model.start = model.trainer.get(46, b"<s>").decode()
                    model.end = model.trainer.get(47, b"</s>").decode()
                case 3, bytes():
                    model.normalizer = dict(fields(value))
    except (ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} is no SentencePiece model: {error}") from error
    if not model.pieces:
        raise FileError(f"{path} holds no pieces", expected="a SentencePiece model")
    return model


def tokenizer(path: Path, *, add_start: bool) -> tuple["Tokenizer", tuple[int, ...]]:
    """The same ids by `tokenizers`, and the ids that end a sequence.

    Raises:
        FileError: the file is damaged, or asks for what cannot be reproduced exactly.
    """
    model = read(path)
    if problem := _refusal(model):
        expected = "BPE with byte fallback and no normalisation"
        raise FileError(problem, expected=expected, fix="give its tokenizer.json")
    pieces = [text for text, _, _ in model.pieces]
    controls = [text for text, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)]
    made = build(
        pieces,
        {text: score for text, score, kind in model.pieces if kind == NORMAL},
        space=_SPACE,
        prefix=bool(model.normalizer.get(3, 1)),
        specials=controls,
        start=model.start if add_start and model.start in controls else None,
    )
    return made, tuple(
        id for id, text in enumerate(pieces) if text == model.end and text in controls
    )


def _refusal(model: Model) -> str:
    """The first thing in a model that would be lost, or ""."""
    kinds = {kind: text for text, _, kind in reversed(model.pieces)}
    problems = {
        f"model type {model.trainer.get(3, 1)}": model.trainer.get(3, 1) != _BPE,
        "spaces as suffixes": model.trainer.get(24, 0),
        "a character map": model.normalizer.get(2),
        "spaces are squeezed": model.normalizer.get(4, 1),
        "spaces are not escaped": not model.normalizer.get(5, 1),
        f"the user-defined piece {kinds.get(USER)!r}": USER in kinds,
        f"the unused piece {kinds.get(UNUSED)!r}": UNUSED in kinds,
    }
    return next((name for name, found in problems.items() if found), "")


def _piece(entry: dict[int, Any]) -> tuple[str, float, int]:
    score = struct.unpack("<f", entry.get(2, b"\0" * 4))[0]
    if not math.isfinite(score):
        raise ValueError(f"the score {score} of a piece")
    return entry.get(1, b"").decode(), score, entry.get(3, NORMAL)


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one protobuf message.

    Raises:
        ValueError: it ends within a field, or has a wire type that no schema uses.
        IndexError: it ends within a number.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7, 0)
        if kind in (0, 2):
            size, at = _varint(message, at)
        elif not size:
            raise ValueError(f"wire type {kind} at byte {at}")
        if kind == 0:
            yield key >> 3, size
            continue
        if at + size > len(message):
            raise ValueError(f"it is cut at byte {len(message)}")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")
