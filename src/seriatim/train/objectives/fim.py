"""Fill in the middle: some pieces of documents are learned with a gap whose text comes last.

Context-level FIM (Bavarian et al. 2022, arXiv:2207.14255, section 4.2): after documents were cut
and packed, each piece in a row is, with probability `fim_rate`, split at two characters drawn
uniformly; or, for the share `fim_lines`, around whole lines, as an editor asks: one, or each time
with probability 1/2 one more, without the last newline. Its parts are encoded one by one, as in
use, and written as `generate(prefix=, suffix=)` shows a gap, with the middle and an end id behind;
by StarCoder's ids:

    psm: start <fim_prefix> PREFIX <fim_suffix> SUFFIX <fim_middle> MIDDLE end
    spm: start <fim_prefix> <fim_suffix> SUFFIX <fim_middle> PREFIX MIDDLE end  ("variant 2" there)

Nothing of a piece is dropped. As in the paper every id of it but the first is a target, the special
ones included; nothing is learned across pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from seriatim.codecs import Codec, Spelt, code
from seriatim.errors import RequestError
from seriatim.train.batches import NOTHING, Batch
from seriatim.train.objectives.next import Next
from seriatim.train.options import Options

SLACK = 4  # ids by which parts may outgrow a piece: 97 % of those of 500 ids of Python do not

Parts = tuple[list[int], list[int], list[int]]  # prefix, middle, suffix
Whole = TypeVar("Whole", str, list[int])


@dataclass(frozen=True, kw_only=True)
class Fim(Next):
    """-log p(id | all before it in its row), where some of the pieces have a gap.

    Attributes:
        codec: of text, with ids that mark a gap.
        family: how they are written.
        rate: probability of a gap.
        lines: probability that it is one of whole lines.
        orders: each as likely as the others.
        seed: what is drawn for a piece follows from it, the row's number and the piece's in it.
    """

    codec: Spelt
    family: code.Family
    rate: float
    lines: float
    orders: tuple[str, ...]
    seed: int

    @cached_property
    def room(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The marks, `SLACK`, and a start and an end, which a piece may not have."""
        marks = code.framed(self.codec, self.family, [], [], self.orders[0])
        return len(marks) + SLACK + len(self.codec.start) + 1

    def prepare(self, batch: Batch) -> Batch:
        """The rows with gaps, each piece right behind the one before: what is left comes last."""
        made = Batch(
            np.zeros_like(batch.inputs),
            np.full_like(batch.targets, NOTHING),
            np.zeros_like(batch.segments),
            batch.numbers,
        )
        for row, number in enumerate(batch.numbers.tolist()):
            at = piece = 0
            for piece, ids in enumerate(_pieces(batch, row), 1):
                draw = np.random.Generator(np.random.PCG64([self.seed, number, piece]))
                ids = self.rewritten(ids, draw)
                span = slice(at, at := at + len(ids) - 1)
                made.inputs[row, span], made.targets[row, span] = ids[:-1], ids[1:]
                made.segments[row, span] = piece - 1
            made.segments[row, at:] = piece
        return made

    def rewritten(self, ids: list[int], draw: np.random.Generator) -> list[int]:
        """A piece as it is, or with a gap; at most `room` ids longer.

        Args:
            ids: of the piece, with its start and its end if it has them.
            draw: what all is drawn from.
        """
        if draw.random() >= self.rate:
            return ids
        order = self.orders[draw.integers(len(self.orders))]
        start, end = list(self.codec.start), self.codec.ends[0]
        body = ids[len(start) :] if ids[: len(start)] == start else ids
        body = body[:-1] if body[-1:] == [end] else body
        prefix, middle, suffix = self._split(body, draw)
        framed = code.framed(self.codec, self.family, prefix, suffix, order)
        return [*start, *framed, *middle, end]

    def _split(self, body: list[int], draw: np.random.Generator) -> Parts:
        """Between characters; between ids where there is no text, or no room for its parts."""
        if (text := self._text(body)) is not None:
            cut = (_cut_lines if draw.random() < self.lines else _cut)(text, draw)
            prefix, middle, suffix = (code.part(self.codec, self.family, part) for part in cut)
            if len(prefix) + len(middle) + len(suffix) <= len(body) + SLACK:
                return prefix, middle, suffix
        return _cut(body, draw)

    def _text(self, ids: list[int]) -> str | None:
        """What ids spell, if they begin and end with whole characters and none is special."""
        spelt = [self._spelt[id] for id in ids]
        try:
            return b"".join(spelt).decode() if all(spelt) else None
        except UnicodeDecodeError:
            return None

    @cached_property
    def _spelt(self) -> list[bytes]:
        return self.codec.pieces()


def _pieces(batch: Batch, row: int) -> Iterator[list[int]]:
    """The ids of each piece of a row, one more than it has targets."""
    there = batch.targets[row] != NOTHING
    for piece in range(batch.segments[row].max() + 1):
        at = np.flatnonzero(there & (batch.segments[row] == piece))
        if len(at):
            yield [*batch.inputs[row, at].tolist(), int(batch.targets[row, at[-1]])]


def _cut(whole: Whole, draw: np.random.Generator) -> tuple[Whole, Whole, Whole]:
    """Three parts, by two places that are drawn uniformly and may be one."""
    first, last = sorted(draw.integers(len(whole) + 1, size=2).tolist())
    return whole[:first], whole[first:last], whole[last:]


def _cut_lines(text: str, draw: np.random.Generator) -> tuple[str, str, str]:
    """Three parts, the middle of whole lines, its last newline left to what follows."""
    lines = text.split("\n")
    first = int(draw.integers(len(lines)))
    count = int(draw.geometric(0.5))
    before, middle = lines[:first], lines[first : first + count]
    start = sum(map(len, before)) + len(before)
    end = start + len("\n".join(middle))
    return text[:start], text[start:end], text[end:]


def objective(options: Options, codec: Codec) -> Fim:
    """Of a run's options.

    Raises:
        RequestError: the codec has no ids that mark a gap, or not in this order, or none that ends
            a text; or its texts cannot be cut without a change.
    """
    try:
        family = code.of(codec)
    except RequestError as error:
        raise _unfit(codec, "has no ids that mark a gap") from error
    orders = code.ORDERS if options.fim_order == "both" else (options.fim_order,)
    for order in orders:
        code.framed(codec, family, [], [], order)
    if not isinstance(codec, Spelt):
        raise _unfit(codec, "does not say what its ids spell")
    if codec.lead(()):
        raise _unfit(codec, "puts a space in front of a text")
    if not codec.ends:
        raise _unfit(codec, "has no id that ends a text")
    return Fim(
        options.isolate,
        codec=codec,
        family=family,
        rate=options.fim_rate,
        lines=options.fim_lines,
        orders=orders,
        seed=options.seed,
    )


def _unfit(codec: Codec, why: str) -> RequestError:
    return RequestError(
        f"objective is 'fim' and the codec {codec.name} {why}",
        expected="a byte-level tokenizer with the ids of a family of codecs/code.py",
        fix="codec='code'",
    )
