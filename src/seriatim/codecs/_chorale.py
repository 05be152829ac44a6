"""Chorales as ids: four a frame, soprano to bass; each voice has ids of its own for its pitches.

On the quarter grid a frame is the set of its pitches, as in the data of Boulanger-Lewandowski et
al. (2012, arXiv:1206.6392): the voices are its pitches in falling order, rests last, so that sets
and ids are one to one. On the finer grids a voice keeps what it sings, also across another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seriatim.codecs._score import (
    DRUMS,
    HIGHEST,
    LOWEST,
    OPEN,
    REST,
    TICKS,
    VOICES,
    Chorale,
    Frame,
    Note,
    Score,
    frame_line,
    pitch_name,
)
from seriatim.errors import RequestError, shown

END = 0
KEYS = HIGHEST - LOWEST + 1
WIDTH = KEYS + 1  # ids of a voice: its rest, then its pitches
FOUR = len(VOICES)
MOST_FRAMES = 1 << 16
TEMPO = 80  # quarter notes a minute, at which a chorale is played
PROGRAM = 19  # a church organ


@dataclass(frozen=True)
class Grid:
    """Ids of chorales; `ranked` is whether a frame is a set."""

    frames: int  # to a quarter note
    ranked: bool

    @property
    def size(self) -> int:
        return 1 + FOUR * WIDTH

    @property
    def ticks(self) -> int:
        """Of a frame."""
        return TICKS // self.frames

    # ---- the grammar -----------------------------------------------------------------------------

    def span(self, frame: Sequence[int]) -> tuple[int, int]:
        """The pitches from .. to that the next voice may sing after `frame`; from > to: none."""
        if not self.ranked or not frame:
            return LOWEST, HIGHEST
        return LOWEST, frame[-1] - 1 if frame[-1] != REST else LOWEST - 1

    def allowed(self, frame: Sequence[int]) -> np.ndarray:
        """bool [id]: what may follow the voices of a frame that has begun."""
        mask = np.zeros(self.size, bool)
        least, most = self.span(frame)
        begin = 1 + len(frame) * WIDTH
        mask[begin] = True
        mask[begin + 1 + least - LOWEST : begin + 1 + max(most, least - 1) - LOWEST + 1] = True
        mask[END] = not frame
        return mask

    def follow(self, frame: tuple[int, ...], id: int) -> tuple[int, ...] | None:
        """The frame with the voice that `id` is; () once it is whole, None where it may not be."""
        voice, value = divmod(id - 1, WIDTH)
        if id <= END or voice != len(frame):
            return None
        pitch = value - 1 + LOWEST if value else REST
        least, most = self.span(frame)
        if pitch != REST and not least <= pitch <= most:
            return None
        return (*frame, pitch)

    # ---- chorales --------------------------------------------------------------------------------

    def encode(self, chorale: Chorale) -> list[int]:
        """The ids of a canonical chorale."""
        return [
            voice_id(voice, pitch)
            for frame in chorale.frames
            for voice, pitch in enumerate(frame)
            if pitch is not None
        ]

    def canonical(self, chorale: Chorale, *, given: bool = False) -> Chorale:
        """The chorale with the voices of each frame in order.

        Raises:
            RequestError: a frame that is none; or one with open places, unless it is `given`.
        """
        if len(chorale.frames) > MOST_FRAMES:
            seen = f"the chorale has {len(chorale.frames):,} frames"
            raise RequestError(seen, expected=f"at most {MOST_FRAMES:,}")
        for number, frame in enumerate(chorale.frames):
            _check(number, frame, given=given)
            if self.ranked and OPEN in frame:
                _check_room(number, frame)
        if self.ranked:
            return Chorale(tuple(map(ranked, chorale.frames)))
        return Chorale(tuple(map(tuple, chorale.frames)))

    def sampled(self, score: Score) -> Chorale:
        """What sounds in a score at the start of each frame.

        Four tracks that never sing two notes at once are the four voices. Otherwise the voices are
        what sounds, from the highest pitch down; of a lone melody the other voices are open.

        Raises:
            RequestError: more than four notes at once, or one outside the 88 keys.
        """
        tracks = sorted({note.track for note in score.notes})
        frames = [*_sounding(score, self.ticks)]
        alone = [len({note.track for note in frame}) == len(frame) for frame in frames]
        if len(tracks) == 1 and all(len(frame) <= 1 for frame in frames):
            return Chorale(tuple(_melody(frame) for frame in frames))
        if len(tracks) == FOUR and all(alone) and not self.ranked:
            return Chorale(tuple(_by_track(frame, tracks) for frame in frames))
        return Chorale(
            tuple(_by_pitch(frame, index * self.ticks) for index, frame in enumerate(frames))
        )

    def score(self, chorale: Chorale) -> Score:
        """The chorale as a score of a track for each voice; what is open is silent.

        The data do not tell held and repeated notes apart: equal pitches that follow each other in
        a voice are one note.
        """
        notes: list[Note] = []
        for voice in range(FOUR):
            before: int | None = REST
            for index, frame in enumerate(chorale.frames):
                pitch = frame[voice]
                if pitch == before and notes and pitch not in (REST, None):
                    notes[-1] = notes[-1]._replace(duration=notes[-1].duration + self.ticks)
                elif pitch is not None and pitch != REST:
                    notes.append(Note(index * self.ticks, voice, pitch, self.ticks))
                before = pitch
        return Score(tuple(sorted(notes)), (PROGRAM,) * FOUR, ((0, TEMPO),))

    # ---- what is given ---------------------------------------------------------------------------

    def agreeing(self, given: Chorale, number: int, frame: Sequence[int]) -> np.ndarray:
        """bool [id]: what agrees with `given` after `frame`, the beginning of frame `number`."""
        mask = np.zeros(self.size, bool)
        if number >= len(given.frames):
            mask[END] = True
            return mask
        wanted, voice = given.frames[number], len(frame)
        begin = 1 + voice * WIDTH
        if (pitch := wanted[voice]) is not None:
            mask[voice_id(voice, pitch)] = True
            return mask
        mask[begin : begin + WIDTH] = True
        if self.ranked:
            self._make_room(mask[begin : begin + WIDTH], wanted[voice + 1 :])
        return mask

    def _make_room(self, voice: np.ndarray, below: Sequence[int | None]) -> None:
        """Of the ids of an open voice leaves those that let what is given below it be sung."""
        sung = [index for index, pitch in enumerate(below) if pitch not in (OPEN, REST)]
        if sung:
            pitch = below[sung[0]] or 0
            voice[: 1 + pitch + sung[0] + 1 - LOWEST] = False


def voice_id(voice: int, pitch: int) -> int:
    """The id of a voice's pitch, or of its rest."""
    return 1 + voice * WIDTH + (0 if pitch == REST else 1 + pitch - LOWEST)


def ranked(frame: Frame) -> Frame:
    """Pitches in falling order, each once, rests last; a frame with open places as it is."""
    if OPEN in frame:
        return tuple(frame)
    pitches = sorted({pitch for pitch in frame if pitch is not None and pitch != REST})
    return (*reversed(pitches), *[REST] * (FOUR - len(pitches)))


def _check(number: int, frame: Any, *, given: bool) -> None:
    if not isinstance(frame, tuple | list) or len(frame) != FOUR:
        raise RequestError(f"frame {number} is {shown(frame)}", expected=f"{FOUR} voices")
    for voice, pitch in zip(VOICES, frame, strict=True):
        if pitch is None and not given:
            raise RequestError(
                f"the {voice} of frame {number} is open",
                fix="have it generated: model.generate(given=...), or --given-file",
            )
        whole = type(pitch) is int and (pitch == REST or LOWEST <= pitch <= HIGHEST)
        if pitch is not None and not whole:
            seen = f"the {voice} of frame {number} is {shown(pitch)}"
            raise RequestError(seen, expected=f"{LOWEST} to {HIGHEST}, or {REST} for a rest")


def _check_room(number: int, frame: Frame) -> None:
    """Refuses a set, given in part, whose open places cannot be filled in falling order."""
    below: int = HIGHEST + 1
    silent = False
    for voice, pitch in zip(VOICES, frame, strict=True):
        silent = silent or pitch == REST
        below -= 1
        if pitch is None or pitch == REST:
            continue
        if silent or pitch > below:
            seen = f"the {voice} of frame {number} is {pitch_name(pitch)}, which leaves no room"
            raise RequestError(seen, expected="pitches that fall from the soprano to the bass")
        below = pitch


def _sounding(score: Score, ticks: int) -> Iterator[list[Note]]:
    """The notes that sound at the start of each frame; drums have no pitch."""
    notes = sorted(note for note in score.notes if score.programs[note.track] != DRUMS)
    end = max((note.start + note.duration for note in notes), default=0)
    if end > MOST_FRAMES * ticks:
        seen = f"the score has {end // ticks:,} frames"
        raise RequestError(seen, expected=f"at most {MOST_FRAMES:,}")
    held: list[Note] = []
    index = 0
    for tick in range(0, end, ticks):
        held = [note for note in held if note.start + note.duration > tick]
        while index < len(notes) and notes[index].start <= tick:
            if notes[index].start + notes[index].duration > tick:
                held.append(notes[index])
            index += 1
        yield held


def _melody(frame: Sequence[Note]) -> Frame:
    return (frame[0].pitch if frame else REST, OPEN, OPEN, OPEN)


def _by_track(frame: Sequence[Note], tracks: Sequence[int]) -> Frame:
    sung = {note.track: note.pitch for note in frame}
    return tuple(sung.get(track, REST) for track in tracks)


def _by_pitch(frame: Sequence[Note], tick: int) -> Frame:
    pitches = sorted({note.pitch for note in frame}, reverse=True)
    if len(pitches) > FOUR:
        names = ", ".join(map(pitch_name, pitches[: FOUR + 1]))
        seen = f"{len(pitches)} notes sound at tick {tick}: {names}"
        raise RequestError(seen, expected=f"at most {FOUR}")
    return (*pitches, *[REST] * (FOUR - len(pitches)))


class Singer:
    """Ids one by one to the frames that they complete.

    Args:
        grid: the ids.
        after: those that came before; a frame that they begin is shown by the ids that end it.
    """

    def __init__(self, grid: Grid, after: Sequence[int] = ()) -> None:
        self.grid, self.frame = grid, tuple[int, ...]()
        self.frames = list[Frame]()
        for id in after:
            self.feed(id)
        self.frames, self._begun = [], False

    def feed(self, id: int, /) -> str:
        """Takes an id; the line of the frame that it completes."""
        frame = self.grid.follow(self.frame, id)
        if frame is None:
            return ""
        self.frame, self._begun = frame, True
        return self._complete() if len(frame) == FOUR else ""

    def finish(self) -> str:
        """The line of a frame that was begun; its other voices are silent."""
        if not self.frame or not self._begun:
            return ""
        self.frame = (*self.frame, *[REST] * (FOUR - len(self.frame)))
        return self._complete()

    def _complete(self) -> str:
        self.frames.append(self.frame)
        self.frame = ()
        return frame_line(self.frames[-1])
