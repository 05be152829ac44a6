"""A score as a piano roll: time to the right, pitch upwards, a colour for each track."""

import struct
import zlib
from itertools import pairwise

import numpy as np

from seriatim.codecs._score import TICKS, Score
from seriatim.errors import RequestError

ROW = 8  # pixels of a pitch
QUARTER = 24  # pixels of a quarter note; fewer where the picture would be too wide
KEYBOARD = 28  # pixels of the keys on the left
WIDEST = 1 << 14
BLACK = {1, 3, 6, 8, 10}
COLOURS = [(31, 119, 180), (214, 82, 34), (44, 140, 60), (148, 70, 170), (190, 150, 20)]
WHITE, GREY, BEAT, BAR, EDGE = (255,) * 3, (240,) * 3, (228,) * 3, (170,) * 3, (120,) * 3


def content(score: Score) -> bytes:
    """A PNG file.

    Raises:
        RequestError: more than 16,000 pixels of notes, a pixel to a quarter note.
    """
    return png(pixels(score))


def pixels(score: Score) -> np.ndarray:
    """uint8 [row, column, 3]."""
    pitches = [note.pitch for note in score.notes] or [60]
    low, high = min(pitches) - 2, max(pitches) + 2
    end = max((note.start + note.duration for note in score.notes), default=TICKS)
    quarters = -(-end // TICKS)
    if quarters > WIDEST:
        seen = f"the score has {quarters:,} quarter notes"
        raise RequestError(seen, expected=f"at most {WIDEST:,} in a picture")
    scale = max(1, min(QUARTER, WIDEST // quarters)) / TICKS
    roll = np.full(((high - low + 1) * ROW, int(end * scale) + 1, 3), WHITE, np.uint8)
    keys = np.full((len(roll), KEYBOARD, 3), WHITE, np.uint8)
    for pitch in range(low, high + 1):
        top = (high - pitch) * ROW
        if pitch % 12 in BLACK:
            roll[top : top + ROW] = GREY
            keys[top : top + ROW, : KEYBOARD * 2 // 3] = 30
        if pitch % 12 in (0, 5):  # between B and C, E and F
            roll[top + ROW - 1], keys[top + ROW - 1] = BEAT, EDGE
    _lines(roll, score, end, scale)
    for note in sorted(score.notes):
        top, left = (high - note.pitch) * ROW, int(note.start * scale)
        right = max(left + 1, int((note.start + note.duration) * scale) - 1)
        colour = np.array(COLOURS[note.track % len(COLOURS)], float)
        loud = 0.4 + 0.6 * note.velocity / 127
        roll[top + 1 : top + ROW - 1, left:right] = 255 - (255 - colour) * loud
        roll[top + 1 : top + ROW - 1, left] = colour * 0.6
    keys[:, -1] = EDGE
    return np.concatenate([keys, roll], axis=1)


def _lines(roll: np.ndarray, score: Score, end: int, scale: float) -> None:
    """Beats, and bar lines over them."""
    changes = [*sorted(score.signatures), (end + 1, 4, 4)]
    for (tick, above, below), (until, *_) in pairwise(changes):
        beat = TICKS * 4 // below
        for number, at in enumerate(range(tick, min(until, end + 1), beat)):
            roll[:, int(at * scale)] = BEAT if number % above else BAR


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 [row, column, 3] (ISO/IEC 15948)."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
