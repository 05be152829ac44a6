"""Scores and chorales as objects, and as text a line at a time. No ids here, and no files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seriatim.errors import RequestError, shown

TICKS = 480  # of a quarter note, in every score: 2, 3, 4, 5, 6, 8, 12 and 16 divide it
DRUMS = 128  # a program beside the 128 of General MIDI
REST, OPEN = -1, None  # a voice that is silent; one that is to be generated
VOICES = ("soprano", "alto", "tenor", "bass")
LOWEST, HIGHEST = 21, 108  # the 88 keys of a piano
VELOCITY = 83  # of notes whose source has none
MOST_NOTES = 1 << 18
MOST_QUARTERS = 100_000  # 14 hours at 120 a minute

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_PITCH = re.compile(r"([A-Ga-g])([#b]?)(-?\d{1,2})|(\d{1,3})")


class Note(NamedTuple):
    """A note; times are in ticks, `TICKS` to a quarter note. Sorts by start, track and pitch."""

    start: int
    track: int
    pitch: int
    duration: int
    velocity: int = VELOCITY


@dataclass(frozen=True)
class Score:
    """Notes in tracks, with tempi and time signatures. Two are equal if every number is.

    Attributes:
        notes: in any order.
        programs: of each track, 0 to 127 of General MIDI; 128 is the drums.
        tempos: (tick, quarter notes a minute), the first at 0.
        signatures: (tick, numerator, denominator), the first at 0.

    Example:
        >>> Score((Note(0, 0, 60, 480),), (0,)).notes[0].pitch
        60
    """

    notes: tuple[Note, ...] = ()
    programs: tuple[int, ...] = ()
    tempos: tuple[tuple[int, float], ...] = ((0, 120),)
    signatures: tuple[tuple[int, int, int], ...] = ((0, 4, 4),)


Frame = tuple[int | None, ...]  # soprano, alto, tenor, bass; -1 is a rest, None is open


@dataclass(frozen=True)
class Chorale:
    """Four voices on a grid: what each sings in each frame, held and repeated notes alike.

    Attributes:
        frames: each a pitch of 21 to 108 for soprano, alto, tenor and bass; -1 is a rest. None is
            a place that is open: such a chorale is given in part, for the rest to be generated.

    Example:
        >>> Chorale(((72, 67, 64, 48), (74, None, None, None))).open
        3
    """

    frames: tuple[Frame, ...] = ()

    @property
    def open(self) -> int:
        """How many places are open."""
        return sum(pitch is None for frame in self.frames for pitch in frame)


def pitch_name(pitch: int) -> str:
    """Of a MIDI number; 60 is C4.

    Example:
        >>> pitch_name(61), pitch_name(21)
        ('C#4', 'A0')
    """
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


def pitch_number(name: str) -> int | None:
    """The MIDI number of a name such as C#4, Bb3 or 61; None if it is none."""
    if not (match := _PITCH.fullmatch(name)):
        return None
    letter, sign, octave, number = match.groups()
    if number:
        return int(number)
    step = _NAMES.index(letter.upper()) + {"#": 1, "b": -1}.get(sign, 0)
    return step + 12 * (int(octave) + 1)


# ---- a score as lines ----------------------------------------------------------------------------


class Listing:
    """Writes notes as lines, in order, and what changes before each."""

    def __init__(self) -> None:
        self._tempos, self._signatures, self._tracks = 0, 0, set[int]()

    def note(self, note: Note, within: Score) -> str:
        """The lines of the next note; `within` holds the tempi, signatures and programs so far."""
        lines: list[str] = []
        for tick, above, below in within.signatures[self._signatures :]:
            if tick <= note.start:
                lines.append(f"{tick} meter {above}/{below}")
        self._signatures += len(lines)
        for tick, tempo in within.tempos[self._tempos :]:
            if tick <= note.start:
                lines.append(f"{tick} tempo {tempo}")
                self._tempos += 1
        if note.track not in self._tracks:
            self._tracks.add(note.track)
            program = within.programs[note.track]
            sound = "drums" if program == DRUMS else f"program {program}"
            lines.append(f"{note.start} track {note.track} {sound}")
        name = f"{note.start} {pitch_name(note.pitch)} {note.duration} v{note.velocity}"
        lines.append(name + f" t{note.track}" * (note.track > 0))
        return "".join(line + "\n" for line in lines)


def listed(score: Score) -> str:
    """A score as lines; tempi and time signatures after the last note are left out.

    Example:
        >>> print(listed(Score((Note(0, 0, 60, 480),), (0,))), end="")
        0 meter 4/4
        0 tempo 120
        0 track 0 program 0
        0 C4 480 v83
    """
    listing = Listing()
    return "".join(listing.note(note, score) for note in sorted(score.notes))


_LINES = {
    "meter": re.compile(r"(\d+) meter (\d+)/(\d+)"),
    "tempo": re.compile(r"(\d+) tempo (\d+(?:\.\d+)?)"),
    "track": re.compile(r"\d+ track (\d+) (?:program (\d+)|drums)"),
    "note": re.compile(r"(\d+) ([A-Ga-g][#b]?-?\d+|\d+) (\d+)(?: v(\d+))?(?: t(\d+))?"),
}


def unlisted(text: str) -> Score:
    """The score that lines such as those of `listed` say.

    Raises:
        RequestError: a line is none, with its number.
    """
    found: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in _LINES}
    for number, line in enumerate(text.splitlines(), 1):
        if line := line.strip():
            kind, match = _matched(line, number)
            found[kind].append(tuple(value or "" for value in match.groups()))
    programs = {int(t[:4]): int(p[:4]) if p else DRUMS for t, p in found["track"]}
    notes = tuple(_note(*values) for values in found["note"])
    tracks = max([-1, *programs, *(note.track for note in notes)]) + 1
    if tracks > len(notes) + len(programs):
        raise RequestError(f"track {tracks - 1} is named", expected="tracks in order from 0")
    meters = tuple((_whole(t), _whole(a), _whole(b)) for t, a, b in found["meter"])
    tempos = tuple((_whole(t), float(q) if "." in q else _whole(q)) for t, q in found["tempo"])
    return Score(
        notes,
        tuple(programs.get(track, 0) for track in range(tracks)),
        tempos or ((0, 120),),
        meters or ((0, 4, 4),),
    )


def _matched(line: str, number: int) -> tuple[str, re.Match[str]]:
    for kind, pattern in _LINES.items():
        if match := pattern.fullmatch(line):
            if kind == "note" and pitch_number(match[2]) is None:
                break
            return kind, match
    expected = 'ABC (with a line "K:C"), or lines such as "0 C4 480": tick, pitch, ticks'
    raise RequestError(f"line {number} is {shown(line)}", expected=expected)


def _note(start: str, name: str, duration: str, velocity: str, track: str) -> Note:
    pitch = pitch_number(name)
    loud = _whole(velocity) if velocity else VELOCITY
    return Note(_whole(start), _whole(track or "0"), pitch or 0, _whole(duration), loud)


def _whole(digits: str) -> int:
    """A number, of which no more digits are read than make it too large."""
    return int(digits[:18])


# ---- a chorale as lines --------------------------------------------------------------------------


def frame_line(frame: Sequence[int | None]) -> str:
    """A frame as a line: names from the soprano down, `-` for a rest, `?` for what is open."""
    return " ".join(_voice(pitch) for pitch in frame) + "\n"


def _voice(pitch: int | None) -> str:
    if pitch is None:
        return "?"
    return "-" if pitch == REST else pitch_name(pitch)


def frames_of(text: str) -> Iterator[Frame]:
    """The frames that lines such as those of `frame_line` say; a line may have fewer voices.

    The others of such a line are silent. A line of one voice and `...` leaves the others open.

    Raises:
        RequestError: a line is none, with its number.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.split():
            rest: list[int | None] = [OPEN if words[-1] == "..." else REST]
            words = words[: -1 if words[-1] == "..." else None]
            voices = [_sung(word, number) for word in words]
            if len(voices) > len(VOICES):
                seen = f"line {number} has {len(voices)} voices"
                raise RequestError(seen, expected=f"at most {len(VOICES)}: {', '.join(VOICES)}")
            yield (*voices, *rest * (len(VOICES) - len(voices)))


def _sung(word: str, number: int) -> int | None:
    if word in ("?", "-"):
        return OPEN if word == "?" else REST
    pitch = pitch_number(word)
    if pitch is None or not LOWEST <= pitch <= HIGHEST:
        expected = f"{pitch_name(LOWEST)} to {pitch_name(HIGHEST)}, - (a rest) or ? (open)"
        raise RequestError(f"line {number} has {shown(word)}", expected=expected)
    return pitch
