"""Scores as events in the manner of REMI (Huang & Yang 2020, arXiv:2002.00212), and their grammar.

    meter tempo bar position [track [program]] pitch velocity duration ...

One grammar says which event may come next. The encoder writes only what it allows, the mask is what
it allows, and the decoder passes over what it does not: so ids that are decoded encode to the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from seriatim.codecs._score import DRUMS, TICKS, Score

END = 0
LONGEST = 4  # quarter notes that one duration lasts; a longer note has several, the longest first
LARGEST_BAR = 8  # quarter notes
METERS = [
    (above, below)
    for below in (2, 4, 8, 16)
    for above in range(1, 17)
    if above * 4 <= LARGEST_BAR * below
]
TEMPOS = [*range(20, 100, 2), *range(100, 200, 4), *range(200, 321, 10)]  # quarters a minute
TRACKS = 32


class State(NamedTuple):
    """Where a sequence of events stands; times are in steps of the grid."""

    last: str = "start"
    bar: int = -1  # where it begins; -1 before the first
    length: int = 0  # of the bar
    meter: int = -1
    tempo: int = -1
    position: int = -1  # in the bar
    programs: tuple[int, ...] = ()
    track: int = -1
    pitch: int = -1  # the last at this position
    velocity: int = 0
    duration: int = 0
    held: bool = False  # the last duration may be followed by another
    sounding: Mapping[tuple[int, int], int] = {}  # (track, pitch): where it ends

    @property
    def now(self) -> int:
        return self.bar + self.position


@dataclass(frozen=True)
class Events:
    """Ids of events on a grid of `resolution` steps to a quarter note."""

    resolution: int
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        sizes = {
            "end": 1,
            "bar": 1,
            "meter": len(METERS),
            "tempo": len(TEMPOS),
            "track": TRACKS,
            "program": DRUMS + 1,
            "position": LARGEST_BAR * self.resolution,
            "pitch": 128,
            "velocity": 32,
            "duration": LONGEST * self.resolution,
        }
        object.__setattr__(self, "sizes", sizes)

    @cached_property
    def first(self) -> dict[str, int]:
        """The id of each kind's value 0."""
        ends = np.cumsum([0, *self.sizes.values()]).tolist()
        return dict(zip(self.sizes, ends, strict=False))

    @cached_property
    def events(self) -> list[tuple[str, int]]:
        """Kind and value of each id."""
        return [(kind, value) for kind, size in self.sizes.items() for value in range(size)]

    @property
    def step(self) -> int:
        """Ticks."""
        return TICKS // self.resolution

    def bar_length(self, meter: int) -> int:
        above, below = METERS[meter]
        return above * 4 * self.resolution // below

    # ---- the grammar -----------------------------------------------------------------------------

    def allowed(self, s: State) -> np.ndarray:
        """bool [id]: what may follow."""
        mask = np.zeros(len(self.events), bool)

        def allow(kind: str, least: int = 0, most: int | None = None, but: int = -1) -> None:
            begin, size = self.first[kind], self.sizes[kind]
            mask[begin + least : begin + min(size, size if most is None else most)] = True
            if but >= 0:
                mask[begin + but] = False

        def allow_pitches(least: int = 0) -> None:
            allow("pitch", least)
            for (track, pitch), end in s.sounding.items():
                if track == s.track and end > s.now:
                    mask[self.first["pitch"] + pitch] = False

        def allow_later() -> None:
            allow("position", s.position + 1, s.length)
            allow("bar")
            allow("meter", but=s.meter)

        def allow_note() -> None:
            allow("track", most=len(s.programs) + 1, but=s.track)
            if s.track >= 0:
                allow_pitches()

        match s.last:
            case "start":
                allow("meter")
                allow("end")
            case "meter":
                allow("tempo" if s.tempo < 0 else "bar")
            case "tempo" if s.bar < 0:
                allow("bar")
            case "tempo":
                allow_note()
                allow_later()
            case "bar":
                allow_later()
            case "position":
                allow_note()
                if s.now:
                    allow("tempo", but=s.tempo)
            case "track" if s.track == len(s.programs):
                allow("program")
            case "track" | "program":
                allow_pitches()
            case "pitch":
                allow("velocity")
            case "velocity":
                allow("duration")
            case _:
                allow("end")
                allow_later()
                allow_pitches(s.pitch + 1)
                allow("track", s.track + 1, len(s.programs) + 1)
                if s.held:
                    allow("duration")
        return mask

    def follow(self, s: State, id: int) -> State | None:
        """The state after `id`; None where it may not stand, and for an end."""
        if not 0 < id < len(self.events) or not self.allowed(s)[id]:
            return None
        kind, value = self.events[id]
        match kind:
            case "meter" | "tempo" | "position" | "velocity":
                changed = {kind: value}
            case "bar":
                begins = s.bar + s.length if s.bar >= 0 else 0
                changed = {"bar": begins, "length": self.bar_length(s.meter), "position": -1}
            case "track":
                changed = {"track": value, "pitch": -1}
            case "program":
                changed = {"programs": (*s.programs, value)}
            case "pitch":
                changed = {"pitch": value}
            case _:
                changed = self._lasting(s, value + 1)
        return s._replace(last=kind, **changed)

    def _lasting(self, s: State, steps: int) -> dict[str, object]:
        whole = steps + (s.duration if s.last == "duration" else 0)
        sounding = {key: end for key, end in s.sounding.items() if end > s.now}
        sounding[s.track, s.pitch] = s.now + whole
        held = steps == self.sizes["duration"]
        return {"duration": whole, "held": held, "sounding": sounding}

    # ---- scores ----------------------------------------------------------------------------------

    def encode(self, score: Score) -> list[int]:
        """The ids of a canonical score."""
        return list(self._ids(score)) if score.notes else []

    def _ids(self, score: Score) -> Iterator[int]:
        id_of, step = self.first, self.step
        meters = {tick // step: METERS.index((a, b)) for tick, a, b in score.signatures}
        tempos = [(tick // step, -1, TEMPOS.index(int(tempo))) for tick, tempo in score.tempos]
        order = sorted([*tempos[1:], *((n.start // step, i) for i, n in enumerate(score.notes))])
        yield id_of["meter"] + meters[0]
        yield id_of["tempo"] + tempos[0][2]
        yield id_of["bar"]
        bar, length, position, track, known = 0, self.bar_length(meters[0]), -1, -1, 0
        for now, index, *tempo in order:
            while now >= bar + length:
                bar, position = bar + length, -1
                if bar in meters:
                    yield id_of["meter"] + meters[bar]
                    length = self.bar_length(meters[bar])
                yield id_of["bar"]
            if now - bar != position:
                position = now - bar
                yield id_of["position"] + position
            if tempo:
                yield id_of["tempo"] + tempo[0]
                continue
            note = score.notes[index]
            if note.track != track:
                track = note.track
                yield id_of["track"] + track
            if track == known:
                yield id_of["program"] + score.programs[track]
                known += 1
            yield id_of["pitch"] + note.pitch
            yield id_of["velocity"] + note.velocity // 4
            yield from self._durations(note.duration // step)

    def _durations(self, steps: int) -> Iterator[int]:
        longest = self.sizes["duration"]
        while steps > 0:
            yield self.first["duration"] + min(steps, longest) - 1
            steps -= longest
