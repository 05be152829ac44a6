"""The form of chorales: four voices, frame by frame."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.codecs import _abc, _jsb, _score
from seriatim.codecs._base import refused, words
from seriatim.codecs._chorale import FOUR, WIDTH, Grid, Singer
from seriatim.codecs._music import MusicCodec, Remembered, one_tune
from seriatim.codecs._score import OPEN, REST, VOICES, Chorale, Score
from seriatim.errors import RequestError, SeriatimError

FRAMES = {"quarter": 1, "8th": 2, "16th": 4}  # to a quarter note


class ChoraleCodec(MusicCodec):
    """Chorales of four voices; its raw object is a `Chorale`, a `str` is the lines of one, or ABC.

    The canonical form: a score is what sounds at the start of each frame. On the quarter grid the
    voices of a frame are its pitches in falling order, each once, rests last: a set, as the
    published protocol has it. On the finer grids each voice keeps its pitch.
    """

    unit = "frame"
    suffixes = (".json", ".mid", ".midi", ".abc", ".txt", ".png", ".wav")

    def __init__(self, grid: str = "quarter") -> None:
        self.grid = Grid(FRAMES[grid], ranked=grid == "quarter")
        super().__init__(self.grid.size, form="chorale", grid=grid)

    def encode(self, raw: Chorale | Score | str, /) -> list[int]:
        """The voices of each frame, soprano first.

        Raises:
            RequestError: a frame that is none, or has open places.
        """
        return self.grid.encode(self.canonical(raw))

    def canonical(self, raw: Chorale | Score | str, /) -> Chorale:
        """The chorale, as the class says."""
        return self.grid.canonical(self._chorale(raw))

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Chorale:
        """The frames that `ids` complete; in a last one that is not whole, voices are silent."""
        singer = Singer(self.grid, after)
        for id in ids:
            singer.feed(id)
        singer.finish()
        return Chorale(tuple(singer.frames))

    def stream(self, *, after: Sequence[int] = ()) -> Singer:
        """A line for each frame, once it is whole."""
        return Singer(self.grid, after)

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many frames: basses, rests among them."""
        return sum(1 + (FOUR - 1) * WIDTH <= id < self.size for id in ids)

    def agreeing(
        self, given: Any, /, *, after: Sequence[int] = ()
    ) -> Callable[[Sequence[int]], np.ndarray]:
        """What agrees with a chorale that has open places (None, `?`); it has as many frames.

        Args:
            given: the whole chorale, the part that the prompt holds as well. A lone melody, as MIDI
                or ABC, is one whose other voices are open.
            after: the prompt's ids.

        Raises:
            RequestError: it is none, no chorale can agree, or what was sung contradicts it.
        """
        wanted = self._given(given)
        state = Remembered((0, ()), partial(self._sung, wanted))

        def rule(ids: Sequence[int]) -> np.ndarray:
            return words(self.grid.agreeing(wanted, *state((*after, *ids))))

        rule(())
        return rule

    def _sung(
        self, given: Chorale, state: tuple[int, tuple[int, ...]], id: int
    ) -> tuple[int, tuple[int, ...]]:
        """The number and the voices of the frame that has begun, once `id` is sung."""
        number, frame = state
        if (voices := self.grid.follow(frame, id)) is None:
            return state
        wanted = given.frames[number][len(frame)] if number < len(given.frames) else REST
        if number >= len(given.frames) or wanted not in (OPEN, voices[-1]):
            name = f"{VOICES[len(frame)]} of frame {number}"
            raise RequestError(f"the {name} is not what is given there")
        return (number + 1, ()) if len(voices) == FOUR else (number, voices)

    def examples(self) -> list[Chorale]:
        """Frames of four voices, of fewer, of none, and voices that cross."""
        return [
            Chorale(),
            Chorale(((72, 67, 64, 48), (74, 67, 65, 47), (74, 67, 65, 47), (72, 67, 64, 48))),
            Chorale(((60, 64, 64, REST), (REST,) * 4, (REST, 55, REST, 40), (108, 107, 22, 21))),
        ]

    def records(self, path: Path, /) -> Iterator[tuple[str, Any | SeriatimError]]:
        """Each piece of a .json file with its place, such as "train 12"; else as every codec."""
        return _jsb.pieces(path) if path.suffix.lower() == ".json" else super().records(path)

    def write(self, raw: Any, path: Path, /) -> None:
        """Writes .json, open places as null, or a file as every codec of music."""
        if path.suffix.lower() == ".json":
            _jsb.write(self._given(raw), path)
        else:
            super().write(raw, path)

    def played(self, raw: Chorale | Score | str, /) -> Score:
        """A track for each voice, equal pitches that follow each other held; open is silent."""
        return self.grid.score(self._given(raw))

    def _given(self, raw: Any) -> Chorale:
        """The canonical form of one that may have open places."""
        return self.grid.canonical(self._chorale(raw), given=True)

    def _chorale(self, raw: Any) -> Chorale:
        if isinstance(raw, str):
            return self._literal(raw)
        if isinstance(raw, Score):
            return self._of(raw)
        if not isinstance(raw, Chorale):
            expected = "a Chorale, a Score, or lines such as C5 G4 E4 C3"
            raise refused("music:form=chorale", raw, expected)
        return raw

    def _lines(self, raw: Any) -> str:
        return "".join(map(_score.frame_line, self._chorale(raw).frames))

    def _literal(self, text: str) -> Chorale:
        if _abc.is_abc(text):
            return self._of(one_tune(text))
        return Chorale(tuple(_score.frames_of(text.replace("|", "\n"))))

    def _of(self, score: Score) -> Chorale:
        return self.grid.sampled(score)

    def _begun(self) -> tuple[int, ...]:
        return ()

    def _followed(self, state: tuple[int, ...], id: int) -> tuple[int, ...]:
        frame = self.grid.follow(state, id)
        return state if frame is None else () if len(frame) == FOUR else frame

    def _mask(self, state: tuple[int, ...]) -> np.ndarray:
        return self.grid.allowed(state)
