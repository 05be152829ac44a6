"""Chorales as JSON: the splits of the JSB data, and single ones with the places that are open."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seriatim.codecs._chorale import FOUR
from seriatim.codecs._score import OPEN, REST, Chorale
from seriatim.errors import FileError, SeriatimError, shown
from seriatim.files.jsonfile import read_object


def pieces(path: Path) -> Iterator[tuple[str, Chorale | SeriatimError]]:
    """Each chorale in a file with its place ("train 12"), or why there is none.

    The file is an object of lists of pieces (`{"train": [...], ...}`), or of one piece
    (`{"frames": [...]}`). A piece is a list of frames, a frame a list of up to four pitches, from
    the soprano down; null is open, -1 a rest, and the voices that a frame lacks are silent. Numbers
    such as 67.0, of which the published files have many, are whole.

    Raises:
        FileError: it is no such file.
    """
    content = read_object(path)
    if isinstance(content.get("frames"), list) and len(content) == 1:
        yield "", _piece(content["frames"])
        return
    for name, many in content.items():
        if not isinstance(many, list):
            seen = f"{path}: {shown(name)} is a JSON {type(many).__name__}"
            raise FileError(seen, expected='lists of pieces, or {"frames": [...]}')
        for number, piece in enumerate(many):
            yield f"{name} {number}", _piece(piece)


def write(chorale: Chorale, path: Path) -> None:
    """Writes a chorale as a file of one piece."""
    frames = [list(frame) for frame in chorale.frames]
    path.write_text(json.dumps({"frames": frames}) + "\n", encoding="utf-8")


def _piece(piece: Any) -> Chorale | SeriatimError:
    if not isinstance(piece, list):
        return FileError(f"the piece is {shown(piece)}", expected="a list of frames")
    try:
        return Chorale(tuple(_frame(number, frame) for number, frame in enumerate(piece)))
    except FileError as error:
        return error


def _frame(number: int, frame: Any) -> tuple[int | None, ...]:
    if not isinstance(frame, list) or len(frame) > FOUR:
        raise FileError(f"frame {number} is {shown(frame)}", expected=f"up to {FOUR} pitches")
    voices = [_pitch(number, pitch) for pitch in frame]
    return (*voices, *[REST] * (FOUR - len(voices)))


def _pitch(number: int, pitch: Any) -> int | None:
    if pitch is OPEN:
        return OPEN
    if isinstance(pitch, bool) or not isinstance(pitch, int | float) or pitch != pitch // 1:
        raise FileError(f"frame {number} has the pitch {shown(pitch)}", expected="a whole number")
    return int(pitch)
