"""Ids of events to the notes that they complete, one id at a time."""

from collections.abc import Sequence
from dataclasses import replace

from seriatim.codecs._events import METERS, TEMPOS, Events, State
from seriatim.codecs._score import Listing, Note, Score


class Player:
    """Ids one by one to the notes that they complete.

    What follows ids that hold notes is a score of its own: it begins with the bar of its first
    note, in the tempo and meter that are in force, and keeps the numbers of the tracks.

    Args:
        events: the ids.
        after: those that came before.
    """

    def __init__(self, events: Events, after: Sequence[int] = ()) -> None:
        self.events, self.state = events, State()
        self._tempos, self._meters = list[tuple[int, int]](), list[tuple[int, int]]()
        self._note, self._bar, self._origin = None, 0, 0
        self.notes, self._listing = list[Note](), Listing()
        for id in after:
            self.feed(id)
        if self.notes or self._note:
            self._tempos, self._meters = [(-1, self.state.tempo)], [(-1, self.state.meter)]
            self._note, self._origin = None, -1  # the bar of the first note, once there is one
            self.notes, self._listing = [], Listing()

    def feed(self, id: int, /) -> str:
        """Takes an id; the lines of the notes that it completes."""
        before, after = self.state, self.events.follow(self.state, id)
        if after is None:
            return ""
        self.state, text = after, ""
        if after.last == "duration":
            self._lengthen(after, begins=before.last == "velocity")
        if after.last != "duration" or not after.held:
            text = self.finish()
        if after.last == "tempo":
            self._tempos.append((max(after.now, 0), after.tempo))
        elif after.last == "bar" and (not self._meters or self._meters[-1][1] != after.meter):
            self._meters.append((after.bar, after.meter))
        return text

    def finish(self) -> str:
        """The lines of a note that might have become longer."""
        if self._note is None:
            return ""
        if self._origin < 0:
            self._origin = self._bar
        note, self._note, step = self._note, None, self.events.step
        start, duration = (note.start - self._origin) * step, note.duration * step
        self.notes.append(note._replace(start=start, duration=duration))
        return self._listing.note(self.notes[-1], self._around())

    @property
    def score(self) -> Score:
        """What was completed."""
        if not self.notes:
            return Score()
        around, last = self._around(), self.notes[-1].start
        return replace(
            around,
            notes=tuple(self.notes),
            tempos=tuple(change for change in around.tempos if change[0] <= last),
            signatures=tuple(change for change in around.signatures if change[0] <= last),
        )

    def _lengthen(self, s: State, *, begins: bool) -> None:
        if begins:
            self._note = Note(s.now, s.track, s.pitch, s.duration, s.velocity * 4 + 3)
            self._bar = s.bar
        elif self._note:
            self._note = self._note._replace(duration=s.duration)

    def _around(self) -> Score:
        """All but the notes."""
        tempos = [(tick, TEMPOS[value]) for tick, value in self._since(self._tempos)]
        meters = [(tick, *METERS[value]) for tick, value in self._since(self._meters)]
        return Score((), self.state.programs, tuple(tempos), tuple(meters))

    def _since(self, changes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """From the origin on, in ticks; what is in force there comes first."""
        before = [value for tick, value in changes if tick <= self._origin]
        step = self.events.step
        after = [((tick - self._origin) * step, v) for tick, v in changes if tick > self._origin]
        return [(0, before[-1]), *after]
