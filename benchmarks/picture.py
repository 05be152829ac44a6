"""The picture of a run: how many times as fast as each peer, and where the goal lies.

python benchmarks/picture.py RUN.json OUT.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"llama.cpp": "#4878a8", "OpenVINO": "#c2763c", "transformers": "#8a8a8a"}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each comparison, logarithmic; what failed is written where it would be."""
    lines = [line for line in rows if line["better"] == "higher"]
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.32 * len(lines)), layout="constrained")
    for place, line in enumerate(lines):
        _bar(axes, place, line)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(lines)), [f"{l['row']}  |  {l['peer']}" for l in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlabel("times the peer's speed, medians; the mark is the goal")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bar(axes: Any, place: int, line: dict[str, Any]) -> None:
    if line["ratio"] is None:
        axes.text(1, place, f" no figure: {line['error'] or ''}"[:90], va="center", fontsize=7)
        return
    colour = COLOURS.get(line["peer"].partition(" (")[0], "#666666")
    axes.barh(place, line["ratio"] - 1, left=1, color=colour)
    axes.text(line["ratio"], place, f" {line['ratio']:.2f}", va="center", fontsize=8)
    if line["pass"] is not None:
        axes.plot([line["pass"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())["rows"], Path(sys.argv[2]))
