"""Music: scores (MIDI, ABC) as REMI-like events, or chorales of four voices on a grid.

`music` is the first form, `music:form=chorale,grid=16th` the second (docs/music.md). What a codec
reduces a score to is its canonical form: nothing that it cannot express is left out silently.

    codec = made("music")
    codec.decode(codec.encode("K:C\\nCDEF"))  # a Score
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seriatim.codecs import _midi, _synth
from seriatim.codecs._canonical import check
from seriatim.codecs._music import MusicCodec
from seriatim.codecs._music_chorale import ChoraleCodec
from seriatim.codecs._music_events import ScoreCodec
from seriatim.codecs._options import parse
from seriatim.codecs._score import DRUMS, OPEN, REST, TICKS, VOICES, Chorale, Note, Score
from seriatim.errors import RequestError, shown

__all__ = [
    "DRUMS",
    "OPEN",
    "REST",
    "TICKS",
    "VOICES",
    "Chorale",
    "ChoraleCodec",
    "Note",
    "Options",
    "Score",
    "ScoreCodec",
    "harmonise",
    "opening",
    "vary",
    "wav",
]


@dataclass(frozen=True)
class Options:
    """What ids stand for.

    Attributes:
        form: events of a score, or the frames of a chorale.
        resolution: events: steps of the grid to a quarter note; 12 has sixteenths and triplets.
        grid: chorale: what a frame lasts. On the quarter grid frames are sets of pitches.
    """

    form: Literal["events", "chorale"] = "events"
    resolution: Literal[4, 8, 12, 24] = 12
    grid: Literal["quarter", "8th", "16th"] = "quarter"

    def __post_init__(self) -> None:
        other, of = ("grid", "chorale") if self.form == "events" else ("resolution", "events")
        if getattr(self, other) != getattr(Options, other):
            seen = f"music:{other} is {getattr(self, other)} with form={self.form}"
            raise RequestError(seen, expected=f"form={of}", fix=f"or leave {other} out")


def opening(score: Score, quarters: int) -> Score:
    """The beginning of a score, to be continued: its first quarter notes, those held on whole.

    Example:
        >>> opening(Score((Note(0, 0, 60, 960), Note(960, 0, 62, 480)), (0,)), 2).notes[-1].pitch
        60
    """
    kept = tuple(note for note in score.notes if note.start < quarters * TICKS)
    return replace(score, notes=kept)


def harmonise(chorale: Chorale, voice: str = "soprano") -> Chorale:
    """A chorale of which one voice is kept and the others are open, for `given=`.

    Raises:
        RequestError: no such voice.

    Example:
        >>> harmonise(Chorale(((72, 67, 64, 48),))).frames
        ((72, None, None, None),)
    """
    kept = _voice(voice)
    return Chorale(
        tuple(tuple(p if v == kept else OPEN for v, p in enumerate(f)) for f in chorale.frames)
    )


def vary(
    chorale: Chorale,
    share: float = 0.5,
    *,
    voices: Sequence[str] = VOICES,
    block: int = 4,
    seed: int = 0,
) -> Chorale:
    """A chorale of which some is open, for `given=`: it is varied there and kept elsewhere.

    Args:
        chorale: the piece.
        share: how likely a voice is open in a block.
        voices: which may be.
        block: frames that are open together.
        seed: of the choice; equal ones open the same places.

    Raises:
        RequestError: no such voice, or a share or block that cannot be.

    Example:
        >>> vary(Chorale(((72, 67, 64, 48),)), 1, voices=["alto"]).frames
        ((72, None, 64, 48),)
    """
    if not 0 <= share <= 1 or block < 1:
        raise RequestError(f"share is {share} in blocks of {block}", expected="0 to 1, from 1 on")
    chosen = [_voice(voice) for voice in voices]
    draws = np.random.default_rng(seed).random((len(chorale.frames) // block + 1, len(VOICES)))
    return Chorale(
        tuple(
            tuple(
                OPEN if v in chosen and draws[number // block, v] < share else pitch
                for v, pitch in enumerate(frame)
            )
            for number, frame in enumerate(chorale.frames)
        )
    )


def wav(score: Score, *, soundfont: str | Path | None = None) -> bytes:
    """A WAV file of a score: by the built-in sound, or by FluidSynth with a soundfont.

    Raises:
        FileError: a soundfont is given and FluidSynth or the file is not there, or fails.
        RequestError: the score lasts longer than 20 minutes, or has numbers that mean nothing.
    """
    check(score)
    if soundfont is None:
        return _synth.content(score)
    return _synth.played(_midi.content(score), Path(soundfont))


def _voice(name: str) -> int:
    if name not in VOICES:
        raise RequestError(f"the voice is {shown(name)}", expected=", ".join(VOICES))
    return VOICES.index(name)


def make(options: dict[str, str]) -> MusicCodec:
    """The codec of a form, such as `form=chorale,grid=16th`.

    Raises:
        RequestError: an option that there is not, or that belongs to the other form.
    """
    chosen = parse(Options, options, "music")
    if chosen.form == "events":
        return ScoreCodec(chosen.resolution)
    return ChoraleCodec(chosen.grid)


def load(folder: Path, options: dict[str, Any]) -> MusicCodec:
    """The codec of a folder whose codec.json names it.

    Raises:
        RequestError: options that codec.json gives and that there are not.
    """
    return make(options)


def specimens() -> list[MusicCodec]:
    """Codecs for the law tests."""
    chorales = [make({"form": "chorale", "grid": grid}) for grid in ("quarter", "16th")]
    return [make({}), make({"resolution": "4"}), *chorales]
