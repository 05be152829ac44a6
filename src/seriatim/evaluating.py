"""The command `eval`: what a model does on tasks, beside another, as a table or as JSON."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import seriatim
from seriatim.arguments import loads
from seriatim.errors import FileError, RequestError
from seriatim.terminal import check_out, plain, spinner, tell, typed, write

if TYPE_CHECKING:
    from seriatim.measure.evaluation import Evaluation, Pair, Report
    from seriatim.measure.tasks import Task

MANY = ("--text", "--infill-lines")  # these take all words up to the next option
COLUMNS = ("task", "measure", "model", "value", "±", "items", "")


class Several(TyperCommand):
    """`--text A B` is `--text A --text B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's, given an option before each of its values."""
        return super().parse_args(ctx, [*_repeated(args)])


def _repeated(words: Sequence[str]) -> Iterator[str]:
    option = ""  # to be said again before the next word
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-"):
            option = ""
        elif before in MANY:
            option = before
        elif option:
            yield option
        yield word


@loads
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped name, path or hub id.")],
    tasks: Annotated[
        list[Path] | None, typer.Argument(help="Files of JSON lines; the keys say which kind.")
    ] = None,
    *,
    text: Annotated[
        list[Path] | None, typer.Option(help="Files to score, in bits per unit.")
    ] = None,
    infill_lines: Annotated[
        list[Path] | None, typer.Option(help="Source files to take single lines out of.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another model, on the same items, paired.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="How many are drawn.", show_default="all; 100 lines")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws items, and votes.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Ends an answer; may be repeated.", show_default="a newline, or none"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(show_default="what right answers need; 512 of reasoning")
    ] = None,
    fim_order: Annotated[
        str | None, typer.Option(help="Of gaps: psm or spm.", show_default="the model's")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Of reasoning: so many stand solved before.", show_default="0"),
    ] = None,
    votes: Annotated[
        int | None, typer.Option(help="Of reasoning: draw so many.", show_default="one, greedy")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of reasoning.", show_default="0; of votes 1")
    ] = None,
    extract: Annotated[
        str | None,
        typer.Option(
            help="A regex for the answer.", show_default="what follows ####, or the last number"
        ),
    ] = None,
    cut: Annotated[bool, typer.Option("--cut", help="Cut what is too long, and say so.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each task.")] = False,
    out: Annotated[Path | None, typer.Option(help="Each item as a JSON line.")] = None,
    loading: dict[str, Any],
) -> None:
    """What a model does, on tasks, with error bars."""
    from seriatim.measure.evaluate import evaluate as run

    asked = {
        "stop": None if stop is None else [typed("--stop", s) for s in stop],
        "max_tokens": max_tokens,
        "fim_order": fim_order,
        "shots": shots,
        "votes": votes,
        "temperature": temperature,
        "extract": None if extract is None else typed("--extract", extract),
        "cut": cut or None,
    }
    options = {name: value for name, value in asked.items() if value is not None}
    wanted = _tasks(tasks or (), text or (), infill_lines or (), items, seed)
    _check(wanted, options)
    if out is not None:
        check_out(out)
    names = [model] if against is None else [model, against]
    models = []
    for name in names:
        with spinner(f"loading {name}"):
            models.append(seriatim.load(name, **loading))
        tell(models[-1].facts)
    with ExitStack() as stack:
        file = None if out is None else stack.enter_context(_opened(out))
        for task in wanted:
            known = _known(task, options | {"seed": seed})
            with spinner(f"evaluating {task.name}"):
                report = run(models[0], task, against=models[1] if against else None, **known)
            _explain(report)
            _print(report, names, as_json)
            if file is not None:
                _keep(report, names, file)


def _tasks(
    files: Sequence[Path],
    text: Sequence[Path],
    sources: Sequence[Path],
    items: int | None,
    seed: int,
) -> "list[Task]":
    """All that is asked, read and checked before a model is loaded."""
    from seriatim.measure import tasks

    if not (files or text or sources):
        raise RequestError("no task is given", expected="a TASK, --text or --infill-lines")
    if items is not None and not (files or sources):
        raise RequestError("--items draws no texts", fix="leave it out")
    if missing := next((path for path in text if not path.is_file()), None):
        why = "is no file" if missing.exists() else "does not exist"
        raise FileError(f"--text {missing} {why}", expected="a file of the codec's kind")
    found = [tasks.text(text)] if text else []
    found += [tasks.lines(sources, items=items, seed=seed)] if sources else []
    return found + [tasks.read(path, items=items, seed=seed) for path in files]


def _check(wanted: "Sequence[Task]", options: dict[str, Any]) -> None:
    """No option goes unused."""
    from seriatim.measure.evaluate import OPTIONS

    kinds = {task.kind: OPTIONS[task.kind] for task in wanted}
    for name in options:
        if not any(name in known for known in kinds.values()):
            option = f"--{name.replace('_', '-')}"
            seen = f"{option} means nothing for {' and '.join(kinds)} tasks"
            raise RequestError(seen, fix="leave it out")


def _known(task: "Task", options: dict[str, Any]) -> dict[str, Any]:
    """Those that this kind of task has."""
    from seriatim.measure.evaluate import OPTIONS

    return {name: value for name, value in options.items() if name in OPTIONS[task.kind]}


# ---- what is said ------------------------------------------------------------------------------


def _explain(report: "Report") -> None:
    """How it was measured, on stderr."""
    if unused := report.task.unused:
        tell(f"{report.task.name}: fields that mean nothing here: {', '.join(unused)}")
    for e in report.evaluations:
        tell(f"{e.name}: {e.measure}: {e.how}")


def _print(report: "Report", names: Sequence[str], as_json: bool) -> None:
    if as_json:
        write(json.dumps(_facts(report, names)) + "\n")
        return
    rows = [_row(name, e) for name, e in _evaluations(report, names)]
    rows += [_difference(pair, names) for pair in report.pairs]
    if sys.stdout.isatty():
        _table(rows)
    else:
        for row in rows:
            write("\t".join(map(plain, row)) + "\n")


def _table(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS)
    for column in table.columns[3:6]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console().print(table)


def _evaluations(report: "Report", names: Sequence[str]) -> "Iterator[tuple[str, Evaluation]]":
    for name, found in zip(names, (report.evaluations, report.others), strict=False):
        for evaluation in found:
            yield name, evaluation


def _row(name: str, e: "Evaluation") -> tuple[str, ...]:
    said = {"cut to the context": e.cut, "unfinished": e.unfinished}
    notes = ", ".join(f"{count} {what}" for what, count in said.items() if count)
    return e.name, e.measure, name, f"{e.value:.4f}", _error(e.error), f"{e.items}", notes


def _difference(pair: "Pair", names: Sequence[str]) -> tuple[str, ...]:
    d = pair.difference
    verdict = "above noise" if d.above_noise else "not above noise"
    notes = "too little to tell" if d.p is None else f"{verdict}, p = {d.p:.2g}"
    measures, models = _sides(pair, names)
    if pair.models[0] == pair.models[1]:
        which = " - ".join(measures), models[0]
    else:
        which = measures[0], " - ".join(models)
    return pair.first.name, *which, f"{d.value:+.4f}", _error(d.error), f"{d.items}", notes


def _sides(pair: "Pair", names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Measures and models, of the first and of the second; one of both differs."""
    measures = [pair.first.measure, pair.second.measure]
    return measures, [names[i] for i in pair.models]


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _facts(report: "Report", names: Sequence[str]) -> dict[str, Any]:
    """A task as JSON; its items are for `--out`."""
    hidden = {"records", "scores"}
    task = report.task
    results = [
        {"model": name} | {key: value for key, value in vars(e).items() if key not in hidden}
        for name, e in _evaluations(report, names)
    ]
    differences = []
    for pair in report.pairs:
        measures, models = _sides(pair, names)
        facts = {"name": pair.first.name, "measures": measures, "models": models}
        d = pair.difference
        differences.append(facts | asdict(d) | {"above_noise": d.above_noise})
    return {
        "task": task.name,
        "kind": task.kind,
        "items": len(task.items),
        "unused": list(task.unused),
        "results": results,
        "differences": differences,
    }


def _keep(report: "Report", names: Sequence[str], file: IO[str]) -> None:
    for name, e in _evaluations(report, names):
        for record in e.records:
            facts = {"task": e.name, "measure": e.measure, "model": name} | vars(record)
            file.write(json.dumps(facts) + "\n")
    file.flush()


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        seen = f"--out {path} cannot be written: {error.strerror}"
        raise FileError(seen, fix="choose another") from None
