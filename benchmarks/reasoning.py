"""Greedy decoding beside self-consistency, on problems in GSM8K's format.

python benchmarks/reasoning.py MODEL PROBLEMS.jsonl [--n 16] [--limit 100] [--shots 4]

Each line holds a "question" and an "answer" that ends in `#### 42`. The first `--shots` problems
stand solved in front of each of the others. Accuracies come with one standard error, and so does
their difference, which is paired: both ways answer the same problems.
"""

import argparse
import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import seriatim
from seriatim.search.answers import final_answer

AGAIN = "\n\nQuestion:"  # where a model that goes on would ask itself the next one


class Problem(NamedTuple):
    question: str
    solution: str

    @property
    def answer(self) -> str | None:
        return final_answer(self.solution)

    def solved(self) -> str:
        return f"Question: {self.question}\nAnswer: {self.solution}\n\n"

    def asked(self) -> str:
        return f"Question: {self.question}\nAnswer:"


class Figure(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


def problems(path: Path) -> list[Problem]:
    """The problems of a file, one JSON object to a line."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    found = [Problem(row["question"], row["answer"]) for row in rows]
    unread = [number for number, problem in enumerate(found, 1) if problem.answer is None]
    if unread:
        raise SystemExit(f"{path}: no answer in lines {unread[:5]}")
    return found


def figure(values: Sequence[float]) -> Figure:
    return Figure(fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0)


def measure(
    model: seriatim.Model, shots: Sequence[Problem], asked: Sequence[Problem], *, n: int, **options
) -> dict[str, object]:
    """Both ways on the same problems; `options` are those of a sample."""
    prompts = ["".join(shot.solved() for shot in shots) + problem.asked() for problem in asked]
    how: dict[str, Any] = dict(stop=AGAIN, max_tokens=options.pop("max_tokens"))
    greedy, voted, shares, silent = [], [], [], 0
    for prompt, problem in zip(prompts, asked, strict=True):
        once = model.generate(prompt, temperature=0, **how)
        vote = model.vote(prompt, n=n, **how, **options)
        greedy.append(float(final_answer(once.text) == problem.answer))
        voted.append(float(vote.answer == problem.answer))
        shares.append(vote.share)
        silent += vote.unanswered
    return {
        "problems": len(asked),
        "samples": n,
        "greedy": figure(greedy),
        "vote": figure(voted),
        "vote - greedy": figure([v - g for v, g in zip(voted, greedy, strict=True)]),
        "share of the majority": figure(shares),
        "samples without an answer": silent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("problems", type=Path)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = problems(given.problems)
    shots, asked = found[: given.shots], found[given.shots :][: given.limit]
    options = {name: getattr(given, name) for name in ("n", "max_tokens", "temperature", "seed")}
    for name, value in measure(seriatim.load(given.model), shots, asked, **options).items():
        shown = f"{value.mean:.4f} ± {value.error:.4f}" if isinstance(value, Figure) else value
        print(f"{name}\t{shown}")


if __name__ == "__main__":
    main()
