"""seriatim beside its peers: in turn, in one run, several rounds; ratios of medians count.

    python benchmarks/peers.py --llama PY --openvino PY --transformers PY [--json FILE]
        [--picture FILE] [--only PATTERN] [--shape DIM,FFN,LAYERS,HEADS,KV,VOCAB] [--rounds 5]

Each side is a process of its own under its own interpreter: loaded once for a row, asked once in
each round, asleep in between. Random weights of real shapes: valid for speed only. A side that
fails, or has no interpreter, stands in the table and in the JSON with the reason.
"""

import argparse
import json
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

from kernels import Setting, barrier
from rows import LLAMA, OPENVINO, ROWS, TRANSFORMERS, Row, of_shape
from shapes import SHAPES, WORKERS, Failed, Files, last

from seriatim.kernels.native import available_cpus
from seriatim.measure.limits import limits

OURS = "seriatim"
SCRIPTS = {
    OURS: "run_seriatim.py",
    LLAMA: "run_llama.py",
    OPENVINO: "run_openvino.py",
    TRANSFORMERS: "run_transformers.py",
}


@dataclass
class Side:
    """One side of a row: its process while it lasts, what it answered, or why it did not."""

    name: str
    patience: float
    process: subprocess.Popen[bytes] | None = None
    weights: int | None = None
    answers: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    log: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def start(self, python: str, job: dict[str, Any]) -> None:
        """Start the worker and wait until it has loaded."""
        words = [python, str(WORKERS / SCRIPTS[self.name]), json.dumps(job)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=self.log, bufsize=0)
        self.weights = self._answer(5 * self.patience)["weights"]

    def ask(self) -> None:
        """One measurement."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.answers.append(self._answer(self.patience))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def values(self, name: str = "value") -> list[float]:
        return [answer[name] for answer in self.answers if name in answer]

    def _answer(self, patience: float) -> dict[str, Any]:
        """An answer is one short write, so that a pipe that can be read holds a whole line."""
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], patience)[0]:
            raise Failed(f"no answer within {patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise Failed(last(self.log.read().decode(errors="replace")))
        return json.loads(line)


def measure(row: Row, files: Files, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of one row: one for each peer."""
    here = Setting(args.threads, None)
    sides = [Side(OURS, args.patience), *(Side(p.name, args.patience) for p in row.peers)]
    machines = []
    try:
        for side, form in zip(sides, [row.ours, *(p.weights for p in row.peers)], strict=True):
            _try(side, partial(_start, side, form, row, files, args))
        for turn in range(args.rounds):
            machines.append(asdict(limits()) | {"barrier_us": 1e6 * barrier(here).seconds})
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                _try(side, side.ask)
    finally:
        for side in sides:
            side.stop()
    return [line | {"machines": machines} for line in lines(row, sides)]


def _try(side: Side, act: Callable[[], None]) -> None:
    """A side that fails says why, and is asked no more."""
    if side.error is None:
        try:
            act()
        except (Failed, OSError) as error:
            side.error = str(error)
            side.stop()


def _start(side: Side, form: str, row: Row, files: Files, args: argparse.Namespace) -> None:
    python = files.pythons[side.name]
    if not python:
        raise Failed("no interpreter was given for it")
    path = str(files.path(form)) if form else ""
    job = row.task.job(path=path, threads=args.threads, seconds=args.seconds)
    side.start(python, job)


def lines(row: Row, sides: list[Side]) -> list[dict[str, Any]]:
    """What was found, with the names of the published JSON."""
    ours, *others = sides
    own = {
        "row": row.name,
        "unit": row.unit,
        "seriatim_value": _middle(ours.values()),
        "seriatim_range": _range(ours.values()),
        "bytes_per_token": _per_token(row, ours),
        "seriatim_error": ours.error,
    }
    if not row.peers:
        return [own | _bounded(row, ours)]
    pairs = zip(row.peers, others, strict=True)
    return [own | _compared(row, ours, peer.goal, peer.weights, side) for peer, side in pairs]


def _bounded(row: Row, ours: Side) -> dict[str, Any]:
    """An own row: its ratio to another of our figures, or its value, is to be at most `most`."""
    value, base = _middle(ours.values()), _middle(ours.values("base"))
    ratio = value / base if value and base else None
    judged = ratio if row.task.kind == "draft" else value
    return {
        "peer": row.base or None,
        "peer_value": base,
        "peer_range": _range(ours.values("base")),
        "ratio": ratio,
        "pass": row.most,
        "met": None if judged is None or row.most is None else judged <= row.most,
        "better": "lower",
        "error": ours.error,
    }


def _compared(row: Row, ours: Side, goal: float | None, form: str, side: Side) -> dict[str, Any]:
    value, theirs = _middle(ours.values()), _middle(side.values())
    ratio = value / theirs if value and theirs else None
    return {
        "peer": f"{side.name} ({form})",
        "peer_value": theirs,
        "peer_range": _range(side.values()),
        "peer_bytes_per_token": _per_token(row, side),
        "ratio": ratio,
        "pass": goal,
        "met": None if ratio is None or goal is None else ratio >= goal,
        "better": "higher",
        "error": side.error or (ours.error and f"seriatim: {ours.error}"),
    }


def _per_token(row: Row, side: Side) -> float | None:
    """Bytes of weights that a step reads, over the tokens it computes."""
    together = row.task.tokens if row.task.kind in ("prefill", "draft") else row.task.batch
    return side.weights / together if side.weights else None


def _middle(values: list[float]) -> float | None:
    return median(values) if values else None


def _range(values: list[float]) -> list[float] | None:
    return [min(values), max(values)] if values else None


def table(found: Iterable[dict[str, Any]]) -> str:
    """For people: one line for each peer of each row, failures by name."""
    head = f"{'row':45} {'seriatim':>28} {'peer':>28}  {'ratio':>6} {'goal':>6}   MB/token  peer"
    return "\n".join([head, *map(_line, found)])


def _line(line: dict[str, Any]) -> str:
    ours = _shown(line["seriatim_value"], line["seriatim_range"])
    theirs = _shown(line["peer_value"], line["peer_range"])
    ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
    goal = "" if line["pass"] is None else f"{line['pass']:g}"
    mark = {True: "+", False: "-", None: " "}[line["met"]]
    size = "" if line["bytes_per_token"] is None else f"{line['bytes_per_token'] / 1e6:.1f}"
    why = f" FAILED: {line['error']}" if line["error"] else ""
    unit = "" if line["unit"] == "tokens/s" else f" [{line['unit']}]"
    columns = [f"{line['row'] + unit:45}", f"{ours:>28}", f"{theirs:>28}", f"{ratio:>7}"]
    return " ".join([*columns, f"{goal:>6} {mark} {size:>8} ", (line["peer"] or "") + why])


def _shown(value: float | None, spread: list[float] | None) -> str:
    return (
        "-" if value is None or spread is None else f"{value:.1f} ({spread[0]:.1f}-{spread[1]:.1f})"
    )


def machine(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the limits over all rounds, and between what they moved."""
    every = [seen for line in found for seen in line["machines"]]
    values = {name: [seen[name] for seen in every] for name in every[0]} if every else {}
    ranges = {f"{name}_range": _range(some) for name, some in values.items()}
    return {name: median(some) for name, some in values.items()} | ranges


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for peer in ("llama", "openvino", "transformers"):
        parser.add_argument(f"--{peer}", default="", metavar="PY", help="its interpreter")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a PNG; needs matplotlib")
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the rows' names")
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for an answer")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "seriatim-bench")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.picture:
        from picture import draw  # before an hour of work, not after it
    pythons = {OURS: sys.executable, LLAMA: args.llama, OPENVINO: args.openvino}
    pythons[TRANSFORMERS] = args.transformers
    shapes = SHAPES | ({"own": args.shape} if args.shape else {})
    rows = of_shape("own") if args.shape else ROWS
    chosen = [row for row in rows if re.search(args.only, row.name)]
    found: list[dict[str, Any]] = []
    for row in chosen:
        new = measure(row, Files(args.cache, shapes[row.shape], pythons), args)
        print(*map(_line, new), sep="\n", file=sys.stderr, flush=True)
        found += new
        if args.json:  # after each row: a run that is interrupted keeps what it has
            whole = {"machine": machine(found), "rows": found}
            args.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(table(found))
    print(*(f"{name}: {value}" for name, value in machine(found).items()), sep="\n")
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
