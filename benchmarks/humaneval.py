"""HumanEval and its infilling sets on any model: pass@k and exact match, with standard errors.

    python benchmarks/humaneval.py MODEL                          # pass@1, greedy
    python benchmarks/humaneval.py MODEL --samples 20 --temperature 0.2 --k 1 10
    python benchmarks/humaneval.py MODEL --set single-line random-span
    python benchmarks/humaneval.py --reference                    # or --empty: no model

This runs what a model wrote. `sandbox.py` holds it, is tried before anything else, and says on
stderr what protects this machine; where that is not enough nothing is run.

A program is the problem's prompt, the completion and, of a gap, the suffix. Of HumanEval the
completion ends before the first of Codex's five stop strings (Chen et al. 2021); of a line, with
it; else at an end id. pass@k is the mean of the unbiased estimate over the problems; exact match is
equality up to space at the end. A prompt that does not fit the context counts as failed, and how
many did not is said. Four of MBPP's 974 problems are left out (`LEFT_OUT`).
"""

import argparse
import gzip
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sandbox import Check, Limits, Outcome, protection, run

import seriatim
from seriatim.errors import RequestError
from seriatim.measure.statistics import pass_at_k, share

DATA = Path(__file__).parents[2] / "shared" / "data" / "code"
SETS = {
    "humaneval": "HumanEval.jsonl.gz",
    "single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "random-span": "HumanEval-RandomSpanInfillingLight.jsonl.gz",
    "mbpp": "mbpp.jsonl",
}
STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]  # Codex's
# Of MBPP: their checks hand over classes, or objects of the program's own, and no plain values.
LEFT_OUT = {367, 533, 601, 927}
TOGETHER = 128  # requests that are under way at once


@dataclass(frozen=True)
class Problem:
    """What is asked, what it is checked by, and a solution.

    Attributes:
        suffix: what stands behind a gap; None: the prompt is continued.
    """

    name: str
    prompt: str
    solution: str
    check: Check
    suffix: str | None = None

    def program(self, completion: str) -> str:
        """What is run."""
        return f"{self.prompt}{completion}{self.suffix or ''}\n"


@dataclass(frozen=True)
class Completion:
    """What was written for a problem; None where its prompt does not fit the context."""

    problem: Problem
    sample: int
    text: str | None
    finished: bool = True

    @property
    def exact(self) -> bool:
        """Whether it equals the solution up to space at the end."""
        return self.text is not None and self.text.rstrip() == self.problem.solution.rstrip()


# ---- problems ------------------------------------------------------------------------------------


def problems(path: Path) -> list[Problem]:
    """Those of a file of HumanEval's, HumanEval-Infilling's or MBPP's records."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    records = [r for r in map(json.loads, data.splitlines()) if r["task_id"] not in LEFT_OUT]
    return [_mbpp(r) if "test_list" in r else _humaneval(r) for r in records]


def _humaneval(record: dict[str, Any]) -> Problem:
    """The solution, which can be trusted, gives the checks what they need beside the function."""
    prompt, suffix = record["prompt"], record.get("suffix")
    name, solution = record["entry_point"], record["canonical_solution"]
    checks = f"{record['test']}\ncheck({name})\n"
    check = Check([name], checks, f"{prompt}{solution}{suffix or ''}\n")
    return Problem(record["task_id"], prompt, solution, check, suffix)


def _mbpp(record: dict[str, Any]) -> Problem:
    """The task and its tests in a docstring, as InCoder asks (Fried et al. 2022)."""
    code = record["code"].replace("\r\n", "\n")
    tests = "\n".join(record["test_list"])
    check = Check(
        re.findall(r"^def (\w+)", code, re.M), tests, f"{code}\n{record['test_setup_code']}"
    )
    prompt = f'"""\n{record["text"]}\n{tests}\n"""\n'
    return Problem(f"MBPP/{record['task_id']}", prompt, code, check)


# ---- completions ---------------------------------------------------------------------------------


def written(
    model: seriatim.Model, asked: Sequence[Problem], samples: int, seed: int, **options: Any
) -> Iterator[Completion]:
    """What a model writes: sample i of each by seed + i, many requests together."""
    lines = all("\n" not in p.solution.strip("\n") for p in asked)
    pairs = ((p, i) for p in asked for i in range(samples))
    while batch := list(islice(pairs, TOGETHER)):
        streams = [_opened(model, p, lines, seed=seed + i, **options) for p, i in batch]
        for (problem, sample), stream in zip(batch, streams, strict=True):
            if stream is None:
                yield Completion(problem, sample, None)
            else:
                result = stream.result()
                finished = result.finish_reason == "stop"
                yield Completion(problem, sample, result.text, finished)


def _opened(
    model: seriatim.Model, problem: Problem, line: bool, *, fim_order: str | None, **options: Any
) -> Any:
    """A request under way, or None if its prompt does not fit."""
    if problem.suffix is None:
        how: dict[str, Any] = {"prompt": problem.prompt, "stop": STOPS}
    else:
        how = {"prefix": problem.prompt, "suffix": problem.suffix, "fim_order": fim_order}
        how |= {"until": "line"} if line else {}
    try:
        return model.stream(**how, **options)
    except RequestError as error:
        if "context" not in str(error):
            raise
        return None


def given(asked: Iterable[Problem], text: Callable[[Problem], str]) -> Iterator[Completion]:
    """The same way of answering for all."""
    return (Completion(problem, 0, text(problem)) for problem in asked)


# ---- figures -------------------------------------------------------------------------------------


def tried(
    completions: Iterable[Completion], limits: Limits, workers: int, *, alone: bool = True
) -> list[Outcome]:
    """Whether each passes, in order."""

    def one(completion: Completion) -> Outcome:
        if completion.text is None:
            return Outcome(False, "the prompt does not fit the context")
        problem = completion.problem
        return run(problem.program(completion.text), problem.check, limits=limits, alone=alone)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, completions))


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """A mean over problems, and one standard error of it."""
    if set(values) <= {0, 1}:
        return share([value == 1 for value in values])
    return fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def figures(
    completions: Sequence[Completion], outcomes: Sequence[Outcome], ks: Sequence[int]
) -> dict[str, tuple[float, float | None]]:
    """pass@k for each k, and of gaps exact match, with their errors."""
    by_problem: dict[str, list[tuple[bool, bool]]] = {}
    for completion, outcome in zip(completions, outcomes, strict=True):
        pair = outcome.passed, completion.exact
        by_problem.setdefault(completion.problem.name, []).append(pair)
    rows = by_problem.values()
    found = {
        f"pass@{k}": mean([pass_at_k(len(row), sum(p for p, _ in row), k) for row in rows])
        for k in ks
    }
    if completions[0].problem.suffix is not None:
        found["exact match"] = mean([fmean(e for _, e in row) for row in rows])
    return found


# ---- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="A shipped name, a folder or a hub id.")
    parser.add_argument("--reference", action="store_true", help="The solutions: all should pass.")
    parser.add_argument("--empty", action="store_true", help="Nothing: none should pass.")
    parser.add_argument("--set", nargs="+", choices=SETS, default=["humaneval"])
    parser.add_argument("--data", type=Path, default=DATA, help="The folder of the sets.")
    parser.add_argument("--items", type=int, help="Only the first so many problems.")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--k", type=int, nargs="+", default=[1])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--fim-order", choices=["psm", "spm"], help="Default: the model's.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu", type=int, default=Limits.cpu, help="Seconds a trial may take.")
    parser.add_argument("--wall", type=float, default=Limits.wall, help="Likewise, by the clock.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="Each completion as a JSON line.")
    asked = parser.parse_args()
    if (asked.model is not None) + asked.reference + asked.empty != 1:
        parser.error("one of MODEL, --reference and --empty is needed")
    if not 1 <= min(asked.k) <= max(asked.k) <= asked.samples:
        parser.error(f"--k is {asked.k} and --samples {asked.samples}: each k is 1 to that")
    held = protection()
    for line in held.held:
        print(f"a trial has {line}", file=sys.stderr)
    model = asked.model and seriatim.load(asked.model, threads=asked.threads)
    lines = [line for name in asked.set for line in _evaluated(asked, name, model, held.alone)]
    if asked.out:
        asked.out.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _evaluated(
    asked: argparse.Namespace, name: str, model: Any, alone: bool
) -> list[dict[str, Any]]:
    """One set: prints its figures, gives its completions."""
    chosen = problems(asked.data / SETS[name])[: asked.items]
    if model:
        options = {name: getattr(asked, name) for name in ("temperature", "top_p", "max_tokens")}
        completions = list(
            written(model, chosen, asked.samples, asked.seed, fim_order=asked.fim_order, **options)
        )
    else:
        completions = [*given(chosen, lambda p: p.solution if asked.reference else "")]
    limits = Limits(asked.cpu, asked.wall)
    outcomes = tried(completions, limits, asked.workers, alone=alone)
    counts = {
        "prompts did not fit the context": sum(c.text is None for c in completions),
        "were ended by their length": sum(not c.finished for c in completions),
    }
    notes = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    for measure, (value, error) in figures(completions, outcomes, asked.k).items():
        shown = "-" if error is None else f"{error:.4f}"
        print(f"{name}\t{measure}\t{value:.4f}\t± {shown}\t{len(chosen)} problems\t{notes}")
    return [
        {"task_id": c.problem.name, "sample": c.sample, "completion": c.text, "exact": c.exact}
        | {"passed": o.passed, "why": o.why}
        for c, o in zip(completions, outcomes, strict=True)
    ]


if __name__ == "__main__":
    main()
