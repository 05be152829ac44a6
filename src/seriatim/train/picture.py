"""loss.png: how a run went, drawn from its log.csv with matplotlib (the extra `plot`)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seriatim.train.logs import Row, read
from seriatim.train.report import Note, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "loss.png"
POINTS = 4000  # of a curve: more than there are pixels
LOSS, SCORE, RATE, TEXT = "#2a6fb0", "#c4541b", "#4d7d3a", "#333333"


def draw(folder: Path, *, unit: str, say: Report) -> Path | None:
    """Draw loss.png into a run folder from its log.csv.

    Without matplotlib, without a step in the log or without room on the disk a note says so, and
    there is no picture.

    Args:
        unit: what the scores count bits per.

    Returns:
        The picture's path, if there is one.
    """
    if not (rows := [row for row in read(folder) if row.step >= 0]):
        say(Note(f"no {PICTURE}: the log has no step"))
        return None
    try:
        import matplotlib as mpl

        with mpl.rc_context(mpl.rcParamsDefault):  # the same picture whatever a user prefers
            figure = curves(rows, unit=unit, title=folder.resolve().name)
            figure.savefig(folder / PICTURE, metadata={"Software": None})
    except ImportError:
        say(Note(f"no {PICTURE}: it needs matplotlib: pip install 'seriatim[plot]'"))
        return None
    except OSError as error:
        say(Note(f"no {PICTURE}: {error.strerror or error}"))
        return None
    return folder / PICTURE


def curves(rows: Sequence[Row], *, unit: str, title: str) -> "Figure":
    """Training loss, held-out bits per unit with their standard error, and the rate, over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = [row for row in rows if row.bits_per_unit is not None]
    heights = [3, 2, 1] if scored else [3, 1]
    figure = Figure(figsize=(10, 2 + 1.1 * sum(heights)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    loss, *score, rate = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    figure.suptitle(title.replace("$", r"\$"), color=TEXT)
    _loss(loss, rows)
    for axes in score:
        _score(axes, scored, unit)
    _rate(rate, rows)
    for axes in (loss, *score, rate):
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=TEXT)
    figure.align_ylabels()
    return figure


def _loss(axes: "Axes", rows: Sequence[Row]) -> None:
    """Each step's faint, their mean over neighbours strong."""
    known = [(row.step, row.loss) for row in rows if row.loss is not None]
    means = _mean(np.array([loss for _, loss in known]))
    drawn = [(*point, mean) for point, mean in zip(known, means, strict=True)][:: _every(known)]
    if drawn:
        steps, raw, smooth = zip(*drawn, strict=True)
        axes.plot(steps, raw, color=LOSS, alpha=0.3, linewidth=0.8, label="each step")
        axes.plot(steps, smooth, color=LOSS, linewidth=1.8, label="mean of neighbours")
        axes.legend(frameon=False)
    axes.set_ylabel("training loss\n(nats per id)")


def _mean(values: np.ndarray) -> np.ndarray:
    """Means over neighbours on both sides, near ones for more; what is not finite is left out."""
    span = min(25, len(values) // 20)
    weights = np.hanning(2 * span + 3)[1:-1]
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), weights, "same")
    with np.errstate(invalid="ignore"):  # no finite neighbour: nothing is drawn
        return sums / np.convolve(finite.astype(float), weights, "same")


def _score(axes: "Axes", scored: Sequence[Row], unit: str) -> None:
    steps = [row.step for row in scored]
    bits = [row.bits_per_unit or math.nan for row in scored]
    errors = [row.error or 0.0 for row in scored]
    axes.fill_between(
        steps,
        [b - e for b, e in zip(bits, errors, strict=True)],
        [b + e for b, e in zip(bits, errors, strict=True)],
        color=SCORE,
        alpha=0.2,
        linewidth=0,
        label="± one standard error",
    )
    axes.plot(steps, bits, color=SCORE, linewidth=1.8, marker="o", markersize=4, label="held out")
    axes.legend(frameon=False)
    axes.set_ylabel(f"held-out score\n(bits per {unit})")


def _rate(axes: "Axes", rows: Sequence[Row]) -> None:
    known = [(row.step, row.rate) for row in rows if row.rate is not None]
    if drawn := known[:: _every(known)]:
        axes.plot(*zip(*drawn, strict=True), color=RATE, linewidth=1.8)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("learning rate\n(share of full)")
    axes.set_xlabel("step")


def _every(values: Sequence[object]) -> int:
    return math.ceil(len(values) / POINTS) or 1
