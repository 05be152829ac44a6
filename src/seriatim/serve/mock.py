"""Models without weights that say what they are told to: for tests of clients.

`mock:echo` repeats the last thing it was told; `mock:script` says the replies of a file, one after
another in a conversation. All else is the same as for any model: the engine steps, the cache keeps
its books, text is streamed, stop strings end it. The ids are bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seriatim.api import Model
from seriatim.codecs.byte import END, ByteCodec
from seriatim.codecs.chat import Templates
from seriatim.errors import FileError, RequestError
from seriatim.kernels.ops import Batch
from seriatim.models.checkpoint import Checkpoint
from seriatim.models.spec import Norm, Spec

CONTEXT, BLOCKS = 1 << 15, 1 << 13
PREFIX = "mock:"
# What was said ends with the end id, which no content can write: a script reads who said what.
TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }} <tool_call>{...}</tool_call><|end|>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}<|end|>{% endfor %}assistant: "
)
HEAD, TAIL = b": ", b"assistant: "
REPLIES = ("This is the first reply of the script.", "This is the second, and it is the last.")


class Silent:
    """A runtime that computes nothing: all logits are equal."""

    vocab_size, block_bytes, kv = ByteCodec.size, 1, "f32"
    facts = arithmetic = "mock"

    def __init__(self) -> None:
        self.blocks, self._rows = 0, 0

    def resize(self, blocks: int) -> None:
        """There is nothing to hold."""
        self.blocks = max(blocks, self.blocks)

    def copy(self, source: int, target: int) -> None:
        """Nor to copy."""

    def read(self, block: int, positions: int) -> np.ndarray:
        """Nor to read."""
        return np.zeros(self.block_bytes, np.uint8)

    def write(self, block: int, data: np.ndarray) -> None:
        """Nor to write."""

    def step(self, batch: Batch) -> np.ndarray:
        """Zeros: float32 [R, V]."""
        self._rows = len(batch.rows)
        return np.zeros((self._rows, self.vocab_size), np.float32)

    def finite(self) -> np.ndarray:
        """They are: uint8 [R]."""
        return np.ones(self._rows, np.uint8)

    def best(self) -> np.ndarray:
        """The first of all: int32 [R]."""
        return np.zeros(self._rows, np.int32)

    def trace(self, batch: Batch) -> str:
        """Nothing is not finite."""
        return ""


class Echo:
    """A script: what was last told."""

    def __call__(self, prompt: Sequence[int]) -> list[int]:
        """The ids it says."""
        return list(_turns(prompt)[-1])


class Script:
    """A script: replies in order; the last one again and again.

    Args:
        replies: texts.
    """

    def __init__(self, replies: Sequence[str]) -> None:
        self._replies = [list(reply.encode()) for reply in replies]

    def __call__(self, prompt: Sequence[int]) -> list[int]:
        """The ids it says after so many answers."""
        answers = sum(turn.startswith(TAIL) for turn in _told(prompt)[:-1])
        return self._replies[min(answers, len(self._replies) - 1)]


def model(name: str) -> tuple[Model, Echo | Script]:
    """A mock by its name: `mock:echo`, `mock:script`, or `mock:script:FILE` (a JSON list of texts).

    Raises:
        RequestError: there is no such mock.
        FileError: the file has no replies.
    """
    kind, _, path = name.removeprefix(PREFIX).partition(":")
    if kind == "echo" and not path:
        return _model(name), Echo()
    if kind == "script":
        return _model(name), Script(_replies(Path(path)) if path else REPLIES)
    raise RequestError(f"there is no {name}", expected="mock:echo, mock:script or mock:script:FILE")


def _model(name: str) -> Model:
    norm = Norm("rms", 1e-5)
    spec = Spec(ByteCodec.size, 1, CONTEXT, (), norm, tied=True)
    source = Checkpoint(Path(name), "mock", "mock", spec, {}, {}, (END,), END, {}, ())
    codec, run = ByteCodec(), Silent()
    made = Model(
        source,
        codec,
        run,
        blocks=BLOCKS,
        weight_bytes=0,
        precision="f32",
        facts=f"{name}: no weights, bytes, context {CONTEXT}",
        load=lambda *_, **__: _model(name),
    )
    made.templates = Templates({"default": TEMPLATE}, codec, {})
    return made


def _replies(path: Path) -> list[str]:
    try:
        replies = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    if not isinstance(replies, list) or not replies or not all(map(_is_text, replies)):
        raise FileError(f"{path} holds no script", expected="a JSON list of texts")
    return replies


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _told(prompt: Sequence[int]) -> list[bytes]:
    """What was said before, a piece between ends each; of a conversation with who said it."""
    text = np.array(prompt, np.int32)
    cuts = np.flatnonzero(text == END)
    return [bytes(run[run != END].tolist()) for run in np.split(text, cuts)]


def _turns(prompt: Sequence[int]) -> list[bytes]:
    """The contents of what was said; a prompt that is no conversation is one."""
    told = _told(prompt)
    if told[-1] != TAIL or len(told) < 2:
        return told
    return [turn.partition(HEAD)[2] for turn in told[:-1]]
