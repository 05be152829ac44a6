"""Tunes in ABC 2.1 (abcnotation.com/wiki/abc:standard:v2.1) as scores: one voice, chord symbols.

Repeats, endings and parts are played out. A chord symbol sounds on a track of its own until the
next, and again in each bar. Grace notes, slurs, decorations, lyrics and other annotations make no
difference to a score. What would (several voices, overlays, macros) is refused with its line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, NoReturn

from seriatim.codecs._abc_played import Sound, scored
from seriatim.codecs._abc_repeats import Mark, played
from seriatim.codecs._score import Score
from seriatim.errors import RequestError, SeriatimError, shown

CHORDS_BASE = 48  # C3: triads stand above it, their bass below
MOST_EVENTS = 1 << 17
DIVISIONS = (1, 2, 4, 8, 16, 32, 64)  # of a whole note; a length may have other parts, up to 64

_FIELD = re.compile(r"([A-Za-z]):(.*)")
_SILENT = set("ABCDEFGHIJNORSTWXZwsr")  # that say nothing of what sounds, or mean nothing
_TOKEN = re.compile(
    r"""(?P<space>[\s\\`*]+)
      | (?P<symbol>"[^"]*")
      | (?P<decoration>![^!\n]*!|\+[A-Za-z0-9.]+\+|[.~H-Wh-wuvT](?=[.~H-Wu-v^_=A-Ga-g\[({"]|$))
      | (?P<inline>\[[A-Za-z]:[^\]]*\])
      | (?P<grace>\{[^}]*\})
      | (?P<ending>\[\d+(?:[,-]\d+)*|(?<=\|)\s*\d+(?:[,-]\d+)*)
      | (?P<bar>:*\|+[:\]]*|::+|\[\|)
      | (?P<tuplet>\(\d(?::\d?(?::\d?)?)?)
      | (?P<chord>\[\+?(?:[\^_=]*[A-Ga-g][,']*[\d/]*-?\s*)+\])
      | (?P<note>[\^_=]*[A-Ga-gzx][,']*)
      | (?P<rest>Z\d*)
      | (?P<length>\d*(?:/+\d*)|\d+)
      | (?P<broken>>+|<+)
      | (?P<tie>-)
      | (?P<slur>[()])
      | (?P<spacer>y\d*)
    """,
    re.VERBOSE,
)
_NOTE = re.compile(r"([\^_=]*)([A-Ga-g])([,']*)([\d/]*)")
_SYMBOL = re.compile(
    r"\(?\s*([A-G])([#b]?)\s*(maj7|m7|min|dim|aug|sus4|sus2|m6|m|6|7|9|d|\+)?\s*"
    r"(?:/([A-Ga-g])([#b+]?))?\s*\)?"
)
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SHARPS = "FCGDAEB"
_FIFTHS = {"F": -1, "C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5}
_MODES = {"maj": 0, "ion": 0, "": 0, "m": -3, "min": -3, "aeo": -3, "dor": -2, "phr": -4}
_MODES |= {"lyd": 1, "mix": -1, "loc": -5}
_QUALITIES = {
    "": (0, 4, 7), "m": (0, 3, 7), "min": (0, 3, 7), "7": (0, 4, 7, 10), "m7": (0, 3, 7, 10),
    "maj7": (0, 4, 7, 11), "6": (0, 4, 7, 9), "m6": (0, 3, 7, 9), "9": (0, 4, 7, 10, 14),
    "d": (0, 3, 6), "dim": (0, 3, 6), "aug": (0, 4, 8), "+": (0, 4, 8), "sus4": (0, 5, 7),
    "sus2": (0, 2, 7),
}  # fmt: skip
_TUPLETS = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}  # the time that so many notes take; of others 2 or 3


def tunes(text: str) -> Iterator[tuple[str, Score | SeriatimError]]:
    """Each tune in a file with its place ("tune 3"), or why there is none."""
    starts = [m.start() for m in re.finditer(r"^X:", text, re.MULTILINE)]
    if not starts:
        yield "", _tune(text, 1)
        return
    line = 1 + text.count("\n", 0, starts[0])
    for begin, end in pairwise([*starts, len(text)]):
        tune = text[begin:end]
        yield f"tune {tune[2:].partition(chr(10))[0].strip()[:20]}", _tune(tune, line)
        line += tune.count("\n")


def is_abc(text: str) -> bool:
    """Whether a text has a field line, such as K:C."""
    return re.search(r"^[A-Za-z]:", text, re.MULTILINE) is not None


def _tune(text: str, line: int) -> Score | SeriatimError:
    try:
        return Tune(line).score(text)
    except RequestError as error:
        return error


@dataclass
class Tune:
    """A tune that is being read."""

    line: int
    unit: Fraction | None = None
    meter: tuple[int, int] = (4, 4)
    key: dict[str, int] = field(default_factory=dict)
    local: dict[tuple[str, int], int] = field(default_factory=dict)  # accidentals of the bar
    order: str = ""
    body: bool = False
    events: list[Any] = field(default_factory=list)
    tuplet: tuple[int, Fraction] = (0, Fraction(1))
    broken: Fraction = Fraction(1)
    last: int = -1  # index of the last sound

    def score(self, text: str) -> Score:
        """All of it.

        Raises:
            RequestError: what cannot be read, with its line and column.
        """
        for number, line in enumerate(text.splitlines(), self.line):
            self.line = number
            line = re.sub(r"(?<!\\)%.*", "", line).rstrip()
            if match := _FIELD.fullmatch(line.strip()):
                self._field(match[1], match[2].strip())
            elif line.strip() and self.body:
                self._music(line)
            elif line.strip():
                self._fail(f"{shown(line.strip())} stands before the key (K:)")
        if not self.body:
            self._fail("the tune has no key", expected="a line K:")
        return scored(played(self.events, self.order, MOST_EVENTS))

    def _fail(self, seen: str, expected: str = "") -> NoReturn:
        raise RequestError(f"line {self.line}: {seen}", expected=expected or "ABC 2.1 of one voice")

    # ---- fields ----------------------------------------------------------------------------------

    def _field(self, name: str, value: str) -> None:
        match name:
            case "K":
                self.key, self.body = self._key(value), True
            case "M":
                self._meter(value)
            case "L":
                self.unit = self._fraction(value)
            case "Q":
                self._tempo(value)
            case "P" | "Y" if not self.body:  # Y: in the Nottingham Music Database
                self.order = re.sub(r"[\s.]", "", value)
            case "P":
                self.events.append(Mark("part", value[:1]))
            case "V" if value.split()[:1] not in ([], ["1"]):
                self._fail(f"voice {shown(value)}")
            case "V":
                pass
            case _ if name not in _SILENT:
                self._fail(f"the field {name}:{shown(value)}")

    def _fraction(self, value: str) -> Fraction:
        match = re.match(r"(\d{1,4})\s*/\s*(\d{1,4})", value)
        if not match or not int(match[1]) or int(match[2]) not in DIVISIONS:
            self._fail(f"{shown(value)} is no fraction of a note", "one such as 1/8")
        return Fraction(int(match[1]), int(match[2]))

    def _meter(self, value: str) -> None:
        value = {"C": "4/4", "C|": "2/2", "none": "4/4", "": "4/4"}.get(value, value)
        match = re.fullmatch(r"\(?([\d+]{1,20})\)?\s*/\s*(\d{1,3})", value)
        parts = match[1].split("+") if match else []
        if not match or not all(parts) or int(match[2]) not in DIVISIONS:
            self._fail(f"the meter is {shown(value)}", "one such as 6/8")
            return
        self.meter = sum(int(part) for part in parts), int(match[2])
        self.events.append(("meter", *self.meter))

    def _tempo(self, value: str) -> None:
        value = re.sub(r'"[^"]*"', "", value).strip()
        if not value:
            return
        beat, _, number = value.rpartition("=")
        number = re.match(r"\s*(\d{1,4})", number)
        if not number or not int(number[1]):
            self._fail(f"the tempo is {shown(value)}", "one such as 1/4=120")
            return
        of = sum((self._fraction(part) for part in beat.split()), Fraction(0))
        of = of or (self._length() if not beat.strip() else Fraction(1, 4))
        self.events.append(("tempo", float(int(number[1]) * of * 4)))

    def _key(self, value: str) -> dict[str, int]:
        match = re.match(r"(HP|Hp|none|)$|([A-G])([#b]?)\s*(?:([A-Za-z]+)(?![A-Za-z=]))?", value)
        if not match:
            self._fail(f"the key is {shown(value)}", "one such as K:G or K:Am")
        if match[2] is None:
            return {} if match[1].lower() != "hp" else {"F": 1, "C": 1}
        word = (match[4] or "").lower()
        mode = word if word in ("", "m") else word[:3]
        if mode not in _MODES:
            self._fail(f"the key is {shown(value)}", "one such as K:G or K:Am")
        fifths = _FIFTHS[match[2]] + {"#": 7, "b": -7, "": 0}[match[3]] + _MODES[mode]
        if not -7 <= fifths <= 7:
            self._fail(f"the key {shown(value)} has {abs(fifths)} accidentals", "at most 7")
        if fifths >= 0:
            key = dict.fromkeys(_SHARPS[:fifths], 1)
        else:
            key = dict.fromkeys(_SHARPS[fifths:], -1)
        signs = {"^": 1, "_": -1, "=": 0}
        for sign, letter in re.findall(r"(?:^|\s)([\^_=])([A-Ga-g])", value[match.end() :]):
            key[letter.upper()] = signs[sign]
        return key

    def _length(self) -> Fraction:
        if self.unit:
            return self.unit
        return Fraction(1, 16) if Fraction(*self.meter) < Fraction(3, 4) else Fraction(1, 8)

    # ---- music -----------------------------------------------------------------------------------

    def _music(self, line: str) -> None:
        at = 0
        while at < len(line):
            match = _TOKEN.match(line, at)
            if not match or match.end() == at:
                self._fail(f"column {at + 1}: {shown(line[at : at + 12])}")
                return
            kind, text, at = str(match.lastgroup), match[0], match.end()
            if kind in ("note", "chord"):
                length = _TOKEN.match(line, at)
                told = length[0] if length and length.lastgroup == "length" else ""
                at += len(told)
                self._sound(text, self._told(told))
            elif kind == "length":
                self._fail(f"the length {text} belongs to no note")
            else:
                getattr(self, f"_{kind}", self._nothing)(text)
            if len(self.events) > MOST_EVENTS:
                self._fail(f"the tune has more than {MOST_EVENTS:,} events")

    def _nothing(self, text: str) -> None:
        """Spaces, decorations, grace notes, slurs, spacers."""

    def _symbol(self, text: str) -> None:
        if pitches := chord(text[1:-1]):
            self.events.append(("symbol", pitches))

    def _inline(self, text: str) -> None:
        self._field(text[1], text[3:-1].strip())

    def _ending(self, text: str) -> None:
        self.events.append(Mark("ending", text.strip(" [")))

    def _bar(self, text: str) -> None:
        self.local = {}
        self.events.append(Mark("bar", text))

    def _tuplet(self, text: str) -> None:
        told = [int(part) if part else 0 for part in text[1:].split(":")]
        count, time, notes = (*told, 0, 0, 0)[:3]
        if not count or self.tuplet[0]:
            self._fail(f"the tuplet {text}" + " within another" * bool(count))
        compound = self.meter[1] == 8 and self.meter[0] % 3 == 0
        time = time or _TUPLETS.get(count) or (3 if compound else 2)
        self.tuplet = notes or count, Fraction(time, count)

    def _broken(self, text: str) -> None:
        if self.last < 0:
            self._fail(f"{text} stands behind no note")
        if len(text) > 3:
            self._fail(f"the broken rhythm {shown(text)}", "at most >>> or <<<")
        short = Fraction(1, 2 ** len(text))
        first, second = (2 - short, short) if text[0] == ">" else (short, 2 - short)
        before = self.events[self.last]
        self.events[self.last] = Sound(before.pitches, before.length * first, before.tied)
        self.broken, self.last = second, -1

    def _tie(self, text: str) -> None:
        if self.events and isinstance(last := self.events[-1], Sound):
            self.events[-1] = Sound(last.pitches, last.length, True)

    def _rest(self, text: str) -> None:
        bars = int(text[1:5] or 1)
        self.events.append(Sound((), Fraction(*self.meter) * bars))

    def _told(self, text: str) -> Fraction:
        above, slashes, below = re.fullmatch(r"(\d*)(/*)(\d*)", text).groups()  # type: ignore[union-attr]
        if len(text) > 8 or (below and not int(below)):
            self._fail(f"the length {shown(text)}")
        divided = int(below) * 2 ** max(len(slashes) - 1, 0) if below else 2 ** len(slashes)
        if divided > DIVISIONS[-1]:
            self._fail(f"the length {shown(text)}", f"at least 1/{DIVISIONS[-1]}")
        return Fraction(int(above or 1), divided)

    def _sound(self, text: str, length: Fraction) -> None:
        whole = length * self._length() * self.broken
        self.broken = Fraction(1)
        left, factor = self.tuplet
        if left:
            whole, self.tuplet = whole * factor, (left - 1, factor)
        self.last = len(self.events)
        if text[0] in "zx":
            self.events.append(Sound((), whole))
            return
        found = _NOTE.findall(text)
        own = self._told(found[0][3]) if text[0] == "[" else Fraction(1)
        pitches = tuple(dict.fromkeys(self._pitch(*each[:3]) for each in found))
        self.events.append(Sound(pitches, whole * own, "-" in text))

    def _pitch(self, signs: str, letter: str, marks: str) -> int:
        octave = 5 + letter.islower() + marks.count("'") - marks.count(",")
        name = letter.upper()
        if signs:
            self.local[name, octave] = signs.count("^") - signs.count("_")
        sign = self.local.get((name, octave), self.key.get(name, 0))
        pitch = 12 * octave + _STEPS[name] + sign
        if not 0 <= pitch <= 127:
            self._fail(f"the note {letter}{marks[:10]}", "one of MIDI's 128")
        return pitch


def chord(text: str) -> tuple[int, ...]:
    """The pitches of a chord symbol, such as Am or D/f#; none of any other text.

    Example:
        >>> chord("Am"), chord("D/f+")[0], chord("fine")
        ((45, 48, 52, 57), 42, ())
    """
    if not (match := _SYMBOL.fullmatch(text.strip())):
        return ()
    root = (_STEPS[match[1]] + {"#": 1, "b": -1, "": 0}[match[2]]) % 12
    bass = root
    if match[4]:
        sign = {"#": 1, "+": 1, "b": -1, "": 0}[match[5]]
        bass = (_STEPS[match[4].upper()] + sign) % 12
    tones = [CHORDS_BASE + (root + step) % 12 for step in _QUALITIES[match[3] or ""]]
    return (CHORDS_BASE - 12 + bass, *sorted(tones))
