"""The form of events: any score."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from seriatim.codecs import _abc, _score
from seriatim.codecs._base import refused
from seriatim.codecs._canonical import canonical
from seriatim.codecs._events import Events, State
from seriatim.codecs._music import MusicCodec, one_tune
from seriatim.codecs._player import Player
from seriatim.codecs._score import DRUMS, Note, Score


class ScoreCodec(MusicCodec):
    """Scores as events; its raw object is a `Score`, and a `str` is ABC or the lines of one.

    The canonical form: starts and ends on the grid (nearest, the later of two; a note lasts at
    least a step), velocities in 32 levels (v | 3), tempi of a table (nearest), a time signature
    from the next bar line on; tracks without notes left out, the others numbered as they come in;
    of equal pitches in a track at one time the longest and loudest, each ending where the next
    begins; and nothing after the last note.
    """

    unit = "note"
    suffixes = (".mid", ".midi", ".abc", ".txt", ".png", ".wav")

    def __init__(self, resolution: int = 12) -> None:
        self.events = Events(resolution)
        super().__init__(len(self.events.events), form="events", resolution=resolution)

    def encode(self, raw: Score | str, /) -> list[int]:
        """The events of a score, or of its literal form.

        Raises:
            RequestError: a note, tempo or time signature that no event stands for, by name.
        """
        return self.events.encode(self.canonical(raw))

    def canonical(self, raw: Score | str, /) -> Score:
        """The score on the grid, as the class says."""
        return canonical(self._score(raw), self.events.step)

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Score:
        """The notes that `ids` complete; those that follow others begin with a bar of their own."""
        player = Player(self.events, after)
        for id in ids:
            player.feed(id)
        player.finish()
        return player.score

    def stream(self, *, after: Sequence[int] = ()) -> Player:
        """A line for each note, once it is whole."""
        return Player(self.events, after)

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many notes: durations that follow a velocity."""
        loud, long = self.events.first["velocity"], self.events.first["duration"]
        line = [*after[-1:], *ids]
        return sum(loud <= a < long <= b < self.size for a, b in pairwise(line))

    def examples(self) -> list[Score]:
        """Scores in two tracks, off the grid, with long notes, changes and drums."""
        return [
            Score(),
            self._score('X:1\nM:6/8\nQ:3/8=80\nK:D\n|:"D"a3 f2d|(3ABc d2 e2:|'),
            Score((Note(7, 0, 60, 5000, 1), Note(7, 0, 60, 90, 127), Note(9000, 0, 0, 1)), (0,)),
            Score(
                (Note(0, 2, 36, 10), Note(0, 1, 127, 960, 40), Note(3000, 2, 36, 10)),
                (5, 127, DRUMS),
                ((0, 99.7), (950, 20), (2000, 320), (9000, 50)),
                ((0, 3, 4), (500, 7, 8), (9000, 2, 4)),
            ),
        ]

    def played(self, raw: Score | str, /) -> Score:
        """The canonical score."""
        return self.canonical(raw)

    def _score(self, raw: Any) -> Score:
        if isinstance(raw, str):
            return self._literal(raw)
        if not isinstance(raw, Score):
            raise refused("music", raw, "a Score, ABC, or lines such as 0 C4 480")
        return raw

    def _lines(self, raw: Score | str) -> str:
        return _score.listed(self._score(raw))

    def _literal(self, text: str) -> Score:
        return one_tune(text) if _abc.is_abc(text) else _score.unlisted(text)

    def _of(self, score: Score) -> Score:
        return score

    def _begun(self) -> State:
        return State()

    def _followed(self, state: State, id: int) -> State:
        return self.events.follow(state, id) or state

    def _mask(self, state: State) -> np.ndarray:
        return self.events.allowed(state)
