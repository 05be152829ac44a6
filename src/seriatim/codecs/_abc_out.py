"""A score of one line of notes as ABC; what has several is refused."""

from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise

from seriatim.codecs._score import TICKS, Score
from seriatim.errors import RequestError

_LETTERS = ("C", "^C", "D", "^D", "E", "F", "^F", "G", "^G", "A", "^A", "B")
UNIT = TICKS // 4  # a sixteenth


def content(score: Score) -> str:
    """The tune in C, every accidental written; velocities and programs are no part of it.

    Raises:
        RequestError: two notes sound at once.
    """
    notes = sorted(score.notes)
    for note, after in pairwise(notes):
        if note.start + note.duration > after.start:
            seen = f"several notes sound at tick {after.start}"
            raise RequestError(seen, expected="a single line of notes", fix="write .mid")
    pieces: list[tuple[int, int, str]] = []
    now = 0
    for note in notes:
        if note.start > now:
            pieces.append((now, note.start, "z"))
        now = note.start + note.duration
        pieces.append((note.start, now, _letter(note.pitch)))
    (_, above, below), *changes = sorted(score.signatures)
    head = f"X:1\nT:seriatim\nM:{above}/{below}\nL:1/16\nQ:1/4={score.tempos[0][1]:g}\nK:C\n"
    return head + _bars(pieces, now, [(0, above, below), *changes], dict(score.tempos[1:]))


def _bars(
    pieces: list[tuple[int, int, str]],
    end: int,
    meters: list[tuple[int, int, int]],
    tempos: dict[int, float],
) -> str:
    """Notes cut on bar lines and where the tempo changes, tied across them."""
    lines = {tick: number for number, tick in enumerate(_bar_lines(meters, end))}
    cuts = sorted({*lines, *tempos})
    marks = {tick: f"[M:{a}/{b}]" for tick, a, b in meters[1:]}
    text = ""
    for start, until, letter in pieces:
        while start < until:
            if start in lines:
                text += "|\n" if lines[start] % 4 == 3 else "|"
            text += marks.pop(start, "")
            text += f"[Q:1/4={tempos[start]:g}]" if start in tempos else ""
            place = bisect_right(cuts, start)
            stop = min([until, *cuts[place : place + 1]])
            text += letter + _length(stop - start) + "-" * (stop < until and letter != "z") + " "
            start = stop
    return text.rstrip() + "|]\n"


def _bar_lines(meters: list[tuple[int, int, int]], end: int) -> list[int]:
    found: list[int] = []
    for (tick, above, below), (until, *_) in zip(meters, [*meters[1:], (end + 1,)], strict=True):
        found += range(tick, min(until, end + 1), above * 4 * TICKS // below)
    return found[1:]


def _length(ticks: int) -> str:
    length = Fraction(ticks, UNIT)
    above = "" if length.numerator == 1 else str(length.numerator)
    return above + (f"/{length.denominator}" if length.denominator > 1 else "")


def _letter(pitch: int) -> str:
    """With its accidental, and the marks of its octave: 60 is C, 72 is c."""
    name, octave = _LETTERS[pitch % 12], pitch // 12 - 5
    name = name if name.startswith("^") else f"={name}"
    return name.lower() + "'" * (octave - 1) if octave > 0 else name + "," * -octave
