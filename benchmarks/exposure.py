"""Exposure bias of a tiny model, exactly, and what scheduled sampling does to it.

Models learn from the same Markov source: plainly, in as many steps and in as many forward passes
(twice the steps) as scheduled sampling, which runs two of them in a step; each with several seeds.
Columns are expected nats of the id after `depth` ids of the data and after as many of the model's
own, KL(truth || model) after each, and what the second has more of it (± one standard error, over
prefixes or over seeds, whichever is larger).

    python benchmarks/exposure.py [--steps 400] [--size 0.05M] [--shares 0.25 0.5] [--seeds 2]
"""

import argparse
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np

import seriatim
from seriatim.measure.exposure import Exposure, Markov, exposure, markov

DEPTHS = (1, 8, 64)
COLUMNS = ("loss", "own_loss", "error", "own_error")


def trained(source: Markov, given: argparse.Namespace, seed: int, **options: Any) -> list[Exposure]:
    """What a new model shows."""
    with TemporaryDirectory() as folder:
        data, held, out = (Path(folder) / name for name in ("source.txt", "held.txt", "model"))
        data.write_bytes(bytes(source.draw(given.letters, seed=1)))
        held.write_bytes(bytes(source.draw(1000, seed=3)))
        how = dict(codec="byte", size=given.size, context=128, threads=given.threads, seed=seed)
        how |= dict(cache=Path(folder) / "cache", save_every=10**6, validation=[held])
        seriatim.train(data, out=out, report=lambda record: None, **how, **options)
        model = seriatim.load(out, threads=given.threads)
        return exposure(model, source, depths=DEPTHS, count=given.count, seed=2)


def shown(runs: list[list[Exposure]]) -> str:
    """Means over seeds by depth, one line each."""
    lines = []
    for rows in zip(*runs, strict=True):
        excess = np.array([row.excess.mean for row in rows])
        within = sqrt(sum(row.excess.error**2 for row in rows)) / len(rows)
        between = excess.std(ddof=1) / sqrt(len(rows)) if len(rows) > 1 else 0.0
        means = [np.mean([getattr(row, n).mean for row in rows]) for n in COLUMNS]
        numbers = "".join(f"{mean:10.4f}" for mean in means)
        error = max(within, between)
        lines.append(f"{rows[0].depth:7}{numbers}{excess.mean():10.4f} ± {error:.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", default="0.05M")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--symbols", type=int, default=6)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--spread", type=float, default=0.05)
    parser.add_argument("--letters", type=int, default=400_000, help="of data")
    parser.add_argument("--count", type=int, default=1024, help="prefixes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    source = markov(given.symbols, given.order, seed=0, spread=given.spread)
    runs: dict[str, dict[str, Any]] = {
        "plain": dict(steps=given.steps),
        "plain, twice the steps": dict(steps=2 * given.steps),
    }
    for share in given.shares:
        how = dict(steps=given.steps, objective="scheduled", own_share=share)
        runs[f"scheduled, share {share}"] = how
    print("  depth      loss       own     error       own    excess")
    for name, options in runs.items():
        begin = process_time()
        found = [trained(source, given, seed, **options) for seed in range(given.seeds)]
        print(f"{name} ({process_time() - begin:.0f} s of CPU)\n{shown(found)}", flush=True)


if __name__ == "__main__":
    main()
