"""A mutation scan as a picture: residues by positions, drawn with matplotlib (the extra `plot`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seriatim.codecs._residues import GAP
from seriatim.errors import RequestError, ResourceError
from seriatim.measure.variants import RESIDUES, Ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#dddddd"  # what is not scored


def draw(
    rows: Sequence[Ratio],
    wild: str,
    path: Path,
    *,
    offset: int = 0,
    residues: str = RESIDUES,
) -> None:
    """A heat map of single substitutions: residues by positions, blue is likelier, red is not.

    Args:
        rows: from `ratios`; those of several changes are left out.
        wild: whose residues are marked by dots; what is not scored stays grey.
        path: of a PNG.
        offset: of the numbering, as in `variants.parse`.
        residues: from top to bottom.

    Raises:
        RequestError: no single substitution is among the rows, or matplotlib is not installed.
        ResourceError: the disk refused.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        seen = "a picture needs matplotlib"
        raise RequestError(seen, fix='pip install "seriatim[plot]"') from None
    with mpl.rc_context(mpl.rcParamsDefault):  # the same picture whatever a user prefers
        wild = wild.replace(GAP, "")
        figure = _map(_values(rows, len(wild), residues), wild, residues, offset)
        try:
            figure.savefig(path, format="png", metadata={"Software": None})
        except OSError as error:
            raise ResourceError(f"{path} was not written: {error.strerror}") from error


def _values(rows: Sequence[Ratio], size: int, residues: str) -> np.ndarray:
    """Log ratios [residue, position] of single substitutions, NaN where there is none.

    Raises:
        RequestError: there is none at all.
    """
    values = np.full((len(residues), size), np.nan)
    for row in rows:
        if len(row.variant.changes) == 1 and row.log_ratio is not None:
            change = row.variant.changes[0]
            if change.new in residues:
                values[residues.index(change.new), change.index] = row.log_ratio
    if np.isnan(values).all():
        raise RequestError("no single substitution is scored", fix="leave the picture out")
    return values


def _map(values: np.ndarray, wild: str, residues: str, offset: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = min(max(0.09 * len(wild), 6), 60) + 1.5, 1 + 0.15 * len(residues)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes, most = figure.subplots(), float(np.nanmax(np.abs(values))) or 1.0
    image = axes.imshow(
        values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="nearest"
    )
    own = [(at, residues.index(c)) for at, c in enumerate(wild) if c in residues]
    axes.scatter([at for at, _ in own], [row for _, row in own], s=3, c="black")
    axes.set_facecolor(GREY)
    axes.set_yticks(range(len(residues)), [*residues], fontsize=7, family="monospace")
    places = [at for at in range(len(wild)) if (at + 1 + offset) % 10 == 0]
    axes.set_xticks(places, [str(at + 1 + offset) for at in places], fontsize=7)
    axes.set_xlabel("position")
    figure.colorbar(image, ax=axes, label="log ratio to the wild type (nats)")
    return figure
