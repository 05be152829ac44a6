"""Training: beside transformers' Trainer, against the machine's products, and what it learns.

    python benchmarks/training.py trainer DATA [--size 4M] [--precision f32] [--transformers PY]
    python benchmarks/training.py share DATA [--size 10M]
    python benchmarks/training.py shakespeare TEXT [--size 0.8M] [--steps 1100]
    python benchmarks/training.py optimizers DATA [--size 0.1M] [--steps 400]

Each takes `--threads 2` and `--json FILE`. `trainer`: both sides train the same Llama on the same
ids with AdamW, each in a process of its own, in turn, several rounds; ratios of medians of ids/s
count. Its interpreter needs transformers and accelerate. Beside wall time stand processor seconds,
which others' work on the machine stretches less.

Operations per id of `share`: 6 for each weight of a product (2 forward, 4 backward; the table of
embeddings counts once, as the head), and 6 * depth * width * context for attention, of which half
the scores are hidden. Element-wise work, the optimizer and what is computed twice count as nothing.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from shapes import WORKERS

from seriatim import train
from seriatim.codecs import text
from seriatim.kernels.native import available_cpus
from seriatim.train import dial
from seriatim.train.report import Event, Score

SQUARES = (1024, 2048, 4096)
PATIENCE = 4.0  # seconds for the products of one size; larger ones are left out
SIDES = ("seriatim", "transformers")
FRACTIONS = (0.35, 0.5, 0.7, 1.0)  # of the steps of AdamW, for runs with Muon
RATES = (0.5, 1.0, 2.0)  # times the dial's, of which AdamW gets the best


def main() -> None:
    asked = _parser().parse_args()
    torch.set_num_threads(asked.threads)
    found = asked.what(asked) | {"threads": asked.threads, "torch": torch.__version__}
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    for what, size, steps in (
        (trainer, "4M", 8),
        (share, "10M", 8),
        (shakespeare, "0.8M", 1100),
        (optimizers, "0.1M", 400),
    ):
        verb = verbs.add_parser(what.__name__, help=what.__doc__)
        verb.set_defaults(what=what)
        verb.add_argument("data", type=Path)
        verb.add_argument("--size", default=size)
        verb.add_argument("--steps", type=int, default=steps)
        verb.add_argument("--threads", type=int, default=available_cpus())
        verb.add_argument("--json", type=Path)
        if what is trainer:
            verb.add_argument("--rounds", type=int, default=5)
            verb.add_argument("--precision", choices=("f32", "bf16"), default="f32")
            verb.add_argument("--transformers", default=sys.executable, metavar="PY")
    return parser


def trainer(asked: argparse.Namespace) -> dict[str, Any]:
    """Ids a second beside transformers' Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        job, _ = _job(asked, Path(folder), optimizer="adamw", precision=asked.precision)
        sides = {
            name: _Side(name, python, job)
            for name, python in zip(SIDES, (sys.executable, asked.transformers), strict=True)
        }
        rounds = [{name: side.ask() for name, side in sides.items()} for _ in range(asked.rounds)]
    ours, theirs = ({k: median(r[s][k] for r in rounds) for k in ("value", "cpu")} for s in SIDES)
    for name, values in zip(SIDES, (ours, theirs), strict=True):
        print(f"{name:14}{values['value']:10,.0f} ids/s{values['cpu']:10,.0f} ids/cpu-s")
    ratio, cpu = ours["value"] / theirs["value"], ours["cpu"] / theirs["cpu"]
    print(f"ratio of medians {ratio:.2f} (pass 1.3); by processor seconds {cpu:.2f}")
    return {"rounds": rounds, "ratio": ratio, "cpu_ratio": cpu, "job": job}


def _job(
    asked: argparse.Namespace, folder: Path, *, optimizer: str, precision: str
) -> tuple[dict[str, Any], dial.Dial]:
    """The same ids and numbers for every side: a tokenizer learned once, the dial's shape."""
    size = dial.vocabulary(dial.parse(asked.size))
    codec, kept = text.train([asked.data.read_text()], size), folder / "codec"
    kept.mkdir()
    codec.save(kept)
    numbers = dial.dial(asked.size, codec.size, optimizer=optimizer)
    shape = {k: v for k, v in asdict(numbers).items() if k not in ("vocab_size", "optimizer")}
    job = {"data": str(asked.data), "codec": str(kept), "size": asked.size, "shape": shape}
    job |= {"threads": asked.threads, "steps": asked.steps}
    return job | {"optimizer": optimizer, "precision": precision}, numbers


class _Side:
    """A worker: one line asks for one measurement (`workers/lines.py`)."""

    def __init__(self, name: str, python: str, job: dict[str, Any]) -> None:
        words = [python, str(WORKERS / f"train_{name}.py"), json.dumps(job)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def ask(self) -> dict[str, float]:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            sys.exit(f"{self.process.args} ended: {self.process.wait()}")
        return json.loads(line)


def share(asked: argparse.Namespace) -> dict[str, Any]:
    """Ids a second, and the share of what large products reach."""
    peaks = {kind: _peak(getattr(torch, kind)) for kind in ("bfloat16", "float32")}
    with tempfile.TemporaryDirectory() as folder:
        fast = "bf16" if peaks["bfloat16"] > peaks["float32"] else "f32"
        job, numbers = _job(asked, Path(folder), optimizer="muon", precision=fast)
        speed = _Side("seriatim", sys.executable, job).ask()["value"]
    each = operations(numbers)
    print(f"{numbers.parameters:,} weights, {each / 1e6:.1f} million operations an id")
    print(f"{speed:,.0f} ids/s at {fast}: {speed * each / 1e9:.1f} GFLOP/s")
    for kind, peak in peaks.items():
        print(f"{kind} products {peak / 1e9:.1f} GFLOP/s: {speed * each / peak:.0%} (pass 40%)")
    return {"ids_per_s": speed, "operations": each, "peaks": peaks, "precision": fast}


def operations(numbers: dial.Dial) -> int:
    """Of an id: see the top."""
    d = numbers
    norms = (2 * d.depth + 1) * d.width
    return 6 * (d.parameters - norms) + 6 * d.depth * d.width * d.context


def _peak(kind: torch.dtype) -> float:
    """Best operations a second of a square product, over sizes that are done in time."""
    best = 0.0
    for n in SQUARES:
        if best and 2 * n**3 / best > PATIENCE:
            break
        a, b = (torch.randn(n, n).to(kind) for _ in range(2))
        begun = perf_counter()
        while perf_counter() - begun < PATIENCE:
            at = perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * n**3 / (perf_counter() - at))
    return best


def shakespeare(asked: argparse.Namespace) -> dict[str, Any]:
    """Nats a character of the last tenth, which is nanoGPT's split, by the dial's own numbers."""
    begun, used = perf_counter(), process_time()
    score = _score(asked, codec="byte", size=asked.size, steps=asked.steps)
    spent, used = perf_counter() - begun, process_time() - used
    nats = score.bits_per_unit * math.log(2)
    print(f"{nats:.3f} nats a character in {asked.steps} steps")
    print(f"{spent:.0f} s, {used:.0f} processor seconds (pass: 1.88 within 300 s, then 1.669)")
    return {"nats": nats, "seconds": spent, "cpu_seconds": used, "steps": asked.steps}


def optimizers(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps that Muon needs for the loss that AdamW reaches, each run with its whole schedule."""
    rate = dial.dial(asked.size, 257, optimizer="adamw").learning_rate

    def nats(steps: int, **chosen: Any) -> float:
        found = _score(asked, codec="byte", size=asked.size, steps=steps, **chosen).nats_per_id
        print(f"{steps} steps, {chosen}: {found:.4f} nats", flush=True)
        return found

    tried = {x * rate: nats(asked.steps, optimizer="adamw", learning_rate=x * rate) for x in RATES}
    curve = {s: nats(s) for s in (round(f * asked.steps) for f in FRACTIONS)}
    goal = min(tried.values())
    steps = crossing(curve, goal)
    said = "not reached" if steps is None else f"{steps:.0f}, {steps / asked.steps:.0%}"
    print(f"AdamW {goal:.4f} nats in {asked.steps} steps; Muon the same in {said}")
    return {"adamw": tried, "muon": curve, "steps": steps, "of": asked.steps}


def crossing(curve: dict[int, float], goal: float) -> float | None:
    """Steps at which a falling curve of losses is at `goal`, between points in a line."""
    points = sorted(curve.items())
    if points[0][1] <= goal:
        return float(points[0][0])
    for (a, above), (b, below) in pairwise(points):
        if below <= goal:
            return a + (b - a) * (above - goal) / (above - below)
    return None


def _score(asked: argparse.Namespace, **options: Any) -> Score:
    """The last score of a run, which is of all that is held out."""
    scores: list[Score] = []

    def note(event: Event) -> None:
        if isinstance(event, Score):
            scores.append(event)

    with tempfile.TemporaryDirectory() as folder:
        out, cache = f"{folder}/run", f"{folder}/cache"
        train(asked.data, out=out, cache=cache, threads=asked.threads, report=note, **options)
    return scores[-1]


if __name__ == "__main__":
    main()
