"""Palettes: colours as 0xRRGGBB, given as text, or learnt from counts in whole numbers alone.

So that the same files give the same palette on every machine: boxes are cut at their mean (after
Heckbert, "Color image quantization for frame buffer display", 1982), then their means are refined
(Lloyd 1957).
"""

import re

import numpy as np

from seriatim.errors import RequestError

ROUNDS = 8  # of refining
DISTINCT = 1 << 16  # colours from which a palette is learnt; of more, 5 bits of a channel count
TOGETHER = 1 << 12  # colours that are compared with a palette at once


def parse(text: str) -> tuple[int, ...]:
    """The colours of "RRGGBB-RRGGBB-...".

    Raises:
        RequestError: it is no such text, or a colour is there twice.

    Example:
        >>> parse("000000-ff8000")
        (0, 16744448)
    """
    if not re.fullmatch(r"[0-9a-fA-F]{6}(-[0-9a-fA-F]{6})*", text):
        raise RequestError(f"palette is {text!r:.40}", expected="RRGGBB-RRGGBB-... in hexadecimal")
    found = tuple(int(colour, 16) for colour in text.split("-"))
    if len(set(found)) < len(found):
        twice = next(colour for colour in found if found.count(colour) > 1)
        raise RequestError(f"palette has the colour {twice:06x} twice", expected="each once")
    return found


def spelt(palette: tuple[int, ...]) -> str:
    """The text that `parse` reads."""
    return "-".join(f"{colour:06x}" for colour in palette)


def channels(codes: np.ndarray) -> np.ndarray:
    """0xRRGGBB [colour] to uint8 [colour, channel]."""
    return (codes[:, None] >> np.array([16, 8, 0]) & 255).astype(np.uint8)


def codes(pixels: np.ndarray) -> np.ndarray:
    """uint8 [colour, channel] to 0xRRGGBB [colour]."""
    return (pixels.astype(np.int64) << np.array([16, 8, 0])).sum(1)


def nearest(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Which row of `table` has the least squared distance, the first of equals: int64 [pixel].

    Args:
        pixels: uint8 [pixel, channel].
        table: uint8 [colour, channel].
    """
    points, table = pixels.astype(np.int32), table.astype(np.int32)
    found = np.empty(len(points), np.int64)
    for at in range(0, len(points), TOGETHER):
        part = points[at : at + TOGETHER, None] - table  # [pixel, colour, channel]
        found[at : at + TOGETHER] = (part * part).sum(2).argmin(1)
    return found


class Counts:
    """How often each colour was seen. 128 MB of addresses; memory only where colours are."""

    def __init__(self) -> None:
        self._of = np.zeros(1 << 24, np.int64)

    def add(self, pixels: np.ndarray) -> None:
        """Counts uint8 [pixel, channel]."""
        seen, times = np.unique(codes(pixels), return_counts=True)
        self._of[seen] += times

    def palette(self, size: int) -> tuple[int, ...]:
        """At most `size` colours: those that were seen, or means of such; dark ones first."""
        seen = np.flatnonzero(self._of)
        points, times = channels(seen).astype(np.int64), self._of[seen]
        if len(seen) > size:
            points = _refined(*_coarse(points, times), size)
        found = np.unique(codes(points))
        light = channels(found) @ np.array([299, 587, 114])  # ITU-R BT.601, in thousandths
        return tuple(found[np.argsort(light, kind="stable")].tolist())


def _coarse(points: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colours, or where there are too many, the means of those alike in 5 bits a channel."""
    if len(points) <= DISTINCT:
        return points, times
    _, group = np.unique(codes(points >> 3), return_inverse=True)
    return _means(points, times, group, np.zeros((group.max() + 1, 3), np.int64))


def _refined(points: np.ndarray, times: np.ndarray, size: int) -> np.ndarray:
    """Means of the colours that are nearest to each: int64 [colour, channel]."""
    group = _boxes(points, times, size)
    means, _ = _means(points, times, group, np.zeros((group.max() + 1, 3), np.int64))
    for _ in range(ROUNDS):
        means, _ = _means(points, times, nearest(points, means), means)
    return means


def _boxes(points: np.ndarray, times: np.ndarray, size: int) -> np.ndarray:
    """Which of at most `size` boxes each colour is in, the widest always cut next."""
    box = np.zeros(len(points), np.int64)
    widths = {0: _width(points, times)}  # squared deviations, channel, where to cut
    for new in range(1, size):
        most = max(widths, key=lambda index: widths[index][0])
        spread, channel, mean = widths[most]
        if not spread:
            break
        box[(box == most) & (points[:, channel] > mean)] = new
        for index in (most, new):
            widths[index] = _width(points[box == index], times[box == index])
    return box


def _width(points: np.ndarray, times: np.ndarray) -> tuple[float, int, int]:
    """The widest channel's sum of squared deviations, which it is, and its mean, rounded down."""
    count = int(times.sum())
    sums = (times @ points).tolist()
    squares = (times @ (points * points)).tolist()
    spreads = [(count * q - s * s) / count for s, q in zip(sums, squares, strict=True)]
    channel = spreads.index(max(spreads))
    return spreads[channel], channel, sums[channel] // count


def _means(
    points: np.ndarray, times: np.ndarray, group: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rounded mean of each group and its count; of an empty one what it was `before`."""
    size = len(before)
    count, sums = np.zeros(size, np.int64), np.zeros((size, 3), np.int64)
    np.add.at(count, group, times)
    np.add.at(sums, group, times[:, None] * points)
    filled = count > 0
    means = before.copy()
    means[filled] = (2 * sums[filled] + count[filled, None]) // (2 * count[filled, None])
    return means, count
