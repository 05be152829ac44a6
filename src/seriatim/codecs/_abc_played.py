"""Events of a tune in ABC, repeats played out, to a score: times, ties, chords."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from seriatim.codecs._abc_repeats import Mark
from seriatim.codecs._score import TICKS, Note, Score

LOUD, SOFT = 95, 67  # of the tune and of its chords


@dataclass(frozen=True)
class Sound:
    """Pitches for a length of a whole note; none of them is a rest."""

    pitches: tuple[int, ...]
    length: Fraction
    tied: bool = False


def scored(events: list[Any]) -> Score:
    """The score of events in the order in which they sound."""
    notes: list[Note] = []
    tempos: dict[int, float] = {0: 120}
    meters: dict[int, tuple[int, int]] = {0: (4, 4)}
    symbols: list[tuple[int, tuple[int, ...]]] = []
    bars: list[int] = []
    now = begin = _pickup(events)
    tied: dict[int, int] = {}  # pitch: index of the note that goes on
    for event in events:
        tick = _tick(now)
        match event:
            case Sound(pitches, length, ties):
                now += length
                going = {}
                for pitch in pitches:
                    index = tied.get(pitch, len(notes))
                    if index == len(notes):
                        notes.append(Note(tick, 0, pitch, max(1, _tick(now) - tick), LOUD))
                    else:
                        begun = notes[index]
                        notes[index] = begun._replace(duration=_tick(now) - begun.start)
                    going[pitch] = index
                tied = going if ties else {}
            case ("symbol", pitches):
                symbols.append((tick, pitches))
            case ("tempo", value):
                tempos[tick if now > begin else 0] = value
            case ("meter", above, below):
                meters[tick if now > begin else 0] = above, below
            case Mark("bar"):
                bars.append(tick)
    notes += _accompaniment(symbols, bars, _tick(now))
    tracks = 1 + any(note.track for note in notes)
    return Score(
        tuple(sorted(notes)),
        (0,) * tracks if notes else (),
        tuple(sorted(tempos.items())),
        tuple((tick, *meter) for tick, meter in sorted(meters.items())),
    )


def _pickup(events: list[Any]) -> Fraction:
    """The silence before a first bar that is shorter than its meter, so that bar lines agree."""
    whole, so_far = Fraction(1), Fraction(0)
    for event in events:
        match event:
            case ("meter", above, below) if not so_far:
                whole = Fraction(above, below)
            case Sound(_, length):
                so_far += length
            case Mark("bar") if so_far:
                return max(whole - so_far, Fraction(0))
    return Fraction(0)


def _accompaniment(
    symbols: list[tuple[int, tuple[int, ...]]], bars: list[int], end: int
) -> Iterator[Note]:
    """Chords, each until the next, and struck again on the bar lines between."""
    changes = dict(symbols)
    sounding: tuple[int, ...] = ()
    times = sorted({*changes, *bars, end})
    for tick, until in pairwise(times):
        sounding = changes.get(tick, sounding)
        for pitch in sounding:
            yield Note(tick, 1, pitch, until - tick, SOFT)


def _tick(time: Fraction) -> int:
    return round(time * 4 * TICKS)
