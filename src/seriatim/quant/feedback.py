"""Error feedback: what rounding one column loses, the columns after it make up for.

The error that matters is of a product's outputs, E |W x - Q y|^2, where x are its inputs in the
model and y those in the quantised one, rounded before it. It is the trace of (T - Q) H (T - Q)^T
and a constant, with H = E y y^T and the target T = W E[x y^T] H^-1. Rows do not meet in it.

Source: the columns one by one, GPTQ (arXiv:2210.17323); the target, GPTAQ (arXiv:2504.02692); then
descent, one column at a time, scales solved for between, QuantEase (arXiv:2309.01885).
"""

from typing import NamedTuple

import numpy as np

from seriatim.kernels.formats import GROUP, PANEL, Blocks
from seriatim.quant.rounding import grouped, integers, packed, stored
from seriatim.quant.search import scale

DAMP = 0.03  # of H's mean diagonal, added to it: inputs not seen in the text
SWEEPS = 2
CHUNK = 1 << 20  # values of rows worked on together, so that their systems of scales fit memory
SHARE = 0.5  # of the way to the target: all of it is no better on the text and worse on others


class Moments(NamedTuple):
    """Second moments of a product's inputs: `own` is E y y^T, `shift` is E (x - y) y^T."""

    own: np.ndarray  # float64 [column, column]
    shift: np.ndarray | None = None


def feedback(array: np.ndarray, kind: str, moments: Moments, *, sweeps: int = SWEEPS) -> Blocks:
    """A matrix in blocks that keeps the outputs of its product on given inputs.

    Args:
        array: [row, column].
        kind: "int8" or "int4".
        moments: of the product's inputs.
        sweeps: of descent after the first pass.

    Raises:
        ModelError: a scale would be infinite in f16.
    """
    columns = array.shape[1]
    h = _damped(moments.own)
    target = array.astype(np.float32)
    if moments.shift is not None:
        owed = np.linalg.solve(h, moments.shift.T).T.astype(np.float32)
        target = target + SHARE * (target @ owed)
    target, h = _padded(target), _whole(h)
    u = np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)  # H^-1 = U^T U
    h, step = h.astype(np.float32), max(CHUNK // len(h) // PANEL, 1) * PANEL
    parts = []
    for first in range(0, len(target), step):
        rows = target[first : first + step]
        q, scales = _forward(rows, kind, u)
        for _ in range(sweeps):
            scales = _solved(rows, q, scales, h)
            q = _descent(rows, q, scales, kind, h)
        parts.append(packed(kind, grouped(q), scales, columns).data)
    return Blocks(kind, (len(target), columns), np.concatenate(parts))


def _forward(target: np.ndarray, kind: str, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ: round a column, and move the later ones to where its error is made up for best."""
    left, q = target.copy(), np.empty_like(target)
    scales = np.empty((len(target), target.shape[1] // GROUP), np.float16)
    for first in range(0, target.shape[1], GROUP):
        here = slice(first, first + GROUP)
        part, own, lost = left[:, here].copy(), u[here, here], np.empty((len(target), GROUP))
        s = scales[:, first // GROUP] = scale(part, kind, np.diag(own) ** -2)
        for i in range(GROUP):
            q[:, first + i] = integers(part[:, i, None], s, kind)[:, 0]
            lost[:, i] = (part[:, i] - q[:, first + i] * s.astype(np.float32)) / own[i, i]
            part[:, i:] -= lost[:, i, None].astype(np.float32) * own[i, i:]
        left[:, first + GROUP :] -= lost.astype(np.float32) @ u[here, first + GROUP :]
    return q, scales


def _descent(
    target: np.ndarray, q: np.ndarray, scales: np.ndarray, kind: str, h: np.ndarray
) -> np.ndarray:
    """Each column in turn set to its best integers, all others kept."""
    q, wide = q.copy(), np.repeat(scales.astype(np.float32), GROUP, axis=1)
    pull = (target - q * wide) @ h  # half the slope of the error, downhill
    for first in range(0, q.shape[1], GROUP):
        here, before = slice(first, first + GROUP), q[:, first : first + GROUP].copy()
        s, part, own = scales[:, first // GROUP], pull[:, here].copy(), h[here, here]
        for i in range(GROUP):
            column = q[:, first + i]
            value = column * wide[:, first] + part[:, i] / own[i, i]
            new = integers(value[:, None], s, kind)[:, 0]
            part -= ((new - column) * wide[:, first])[:, None] * own[i]
            q[:, first + i] = new
        pull -= ((q[:, here] - before) * wide[:, here]) @ h[here]
    return q


def _solved(target: np.ndarray, q: np.ndarray, scales: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The best scales of a row for its integers: a linear system over its groups."""
    rows, groups = scales.shape
    gram = np.empty((rows, groups, groups))
    for g in range(groups):
        here = slice(g * GROUP, (g + 1) * GROUP)
        seen = grouped((q[:, here] @ h[here]) * q)
        gram[:, g] = seen.sum(-1)
    wanted = grouped((target @ h) * q).sum(-1)
    empty = gram[:, range(groups), range(groups)] <= 0
    gram[:, range(groups), range(groups)] += empty
    found = np.linalg.solve(gram, wanted[..., None].astype(np.float64))[..., 0]
    return np.where(empty, scales, stored(found.astype(np.float32)))


def _damped(h: np.ndarray) -> np.ndarray:
    """H with something added to its diagonal, so that columns that were never used stay put."""
    mean = float(np.trace(h)) / len(h)
    return h + np.eye(len(h)) * (DAMP * mean if mean > 0 else 1.0)


def _padded(x: np.ndarray) -> np.ndarray:
    return grouped(x).reshape(len(x), -1)


def _whole(h: np.ndarray) -> np.ndarray:
    """H with the columns that are not there, which nothing depends on."""
    spare = -len(h) % GROUP
    whole = np.eye(len(h) + spare)
    whole[: len(h), : len(h)] = h
    return whole
