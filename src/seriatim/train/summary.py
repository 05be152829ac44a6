"""report.md: what was foreseen of a run, what it took, how it went, and what to do next.

The card, README.md, is about the model and goes with it; this is about the run and stays in its
folder, beside the picture. All but times and memory is the same for equal runs.
"""

import math
import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from seriatim import __version__
from seriatim.errors import FileError
from seriatim.files.regular import listed
from seriatim.train import logs
from seriatim.train.logs import Row
from seriatim.train.picture import draw
from seriatim.train.report import (
    Forecast,
    Measured,
    Note,
    Report,
    Sample,
    Score,
    Started,
    amount,
    counted,
    duration,
    indented,
    printable,
)

T = TypeVar("T")

REPORT = "report.md"
NAMED = 100  # held-out files
SCORES, SAMPLES = 40, 8  # shown: evenly spread, the first and the last among them


def write_report(
    folder: Path,
    *,
    command: str,
    started: Started,
    measured: Measured,
    score: Score | None,
    refused: int = 0,
    device: str = "cpu",
    say: Report,
) -> None:
    """Draw loss.png and write report.md into a run folder, from its logs and these facts.

    A disk that refuses gives a note: what was trained is not lost for it.

    Args:
        command: that asks for the same run.
        measured: since `started`.
        score: of the model as stored; None where the run was stopped before its last step.
        refused: records of the data that were passed over.
        device: where it computed.
    """
    try:
        rows = logs.read(folder)
        picture = draw(folder, unit=started.unit, say=say)
        parts = [
            f"# {printable(folder.resolve().name)}: how it was trained",
            _headline(started, rows, score),
            indented(command),
            picture and f"![Loss, held-out score and rate, step by step]({picture.name})",
            _took(started, measured),
            _scores(rows, started.unit),
            _samples(logs.read_samples(folder)),
            _data(started, refused),
            _machine(device),
            _next(folder, command, finished=score is not None),
        ]
        text = "\n\n".join(part for part in parts if part) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
    except (OSError, FileError) as error:
        say(Note(f"no {REPORT}: {error}"))


def _headline(started: Started, rows: Sequence[Row], score: Score | None) -> str:
    dial, done = started.dial, max((row.step for row in rows), default=started.first)
    steps = f"{done:,} of {started.steps:,} steps of {dial.batch * dial.context:,} ids"
    result = "**stopped before the end**" if score is None else score.sentence
    return f"{started.parameters:,} parameters, {steps}: {result}."


def _took(started: Started, measured: Measured) -> str:
    """What was foreseen beside it, for the steps since the run was last started."""
    lead = f"From step {started.first:,} on, where it was resumed.\n\n" * bool(started.first)
    before, now = measured.forecast, _figures(measured)
    if not measured.tokens:
        return "## Time and memory\n\nEvery step had been taken before."
    if before is None:
        rows = [[name, _shown(name, value)] for name, value in now.items()]
        return f"## Time and memory\n\n{lead}{_table(['', 'measured'], rows)}"
    then = _figures(before)
    rows = [
        [name, _shown(name, then[name]), _shown(name, value), f"{value / then[name] - 1:+.0%}"]
        for name, value in now.items()
        if then[name]
    ]
    work = f"{before.flops:.3g} operations were foreseen, counted from the model's shape."
    columns = ["", "foreseen", "measured", "difference"]
    return f"## Time and memory\n\n{lead}{_table(columns, rows)}\n\n{work}"


def _figures(of: Measured | Forecast) -> dict[str, float]:
    speed = of.tokens / of.seconds if of.seconds else 0.0
    return {"ids": of.tokens, "time": of.seconds, "ids/s": speed, "peak memory": of.bytes}


def _shown(name: str, value: float) -> str:
    shows = {"time": duration, "peak memory": amount}
    return shows[name](value) if name in shows else f"{value:,.0f}"


def _scores(rows: Sequence[Row], unit: str) -> str:
    """The validations, each with the mean loss of the steps since the one before."""
    found, losses = [], []
    for row in rows:
        losses += [row.loss] if row.loss is not None and math.isfinite(row.loss) else []
        if row.bits_per_unit is not None:
            found.append(_score(row, losses))
            losses = []
    if not found:
        return ""
    columns = ["after step", "training loss since the line before (nats per id)"]
    columns += [f"held out (bits per {unit})", "one standard error", "on ids", "time until then"]
    shown = _spread(found, SCORES)
    return f"## Scores\n\n{_table(columns, shown)}\n\n{_share(shown, found)} in log.csv."


def _score(row: Row, losses: Sequence[float]) -> list[str]:
    loss = f"{sum(losses) / len(losses):.4f}" if losses else ""
    error = "" if row.error is None else f"{row.error:.4f}"
    spent = "" if row.seconds is None else duration(row.seconds)
    return [f"{row.step:,}", loss, f"{row.bits_per_unit:.4f}", error, f"{row.scored or 0:,}", spent]


def _samples(samples: Sequence[Sample]) -> str:
    shown = _spread(samples, SAMPLES)
    texts = "\n\n".join(f"After step {s.step:,}:\n\n{indented(s.text)}" for s in shown)
    where = f"{_share(shown, samples)} in {logs.SAMPLES}."
    return f"## Samples\n\n{texts}\n\n{where}" if samples else ""


def _share(shown: Sequence[object], whole: Sequence[object]) -> str:
    return f"{len(shown):,} of the {len(whole):,}" if len(shown) < len(whole) else "All of them are"


def _data(started: Started, refused: int) -> str:
    learned = f"{counted(started.documents, 'document')} of {started.ids:,} ids to learn from"
    if refused:
        learned += f"; {counted(refused, 'record')} refused, listed in checkpoints/refused.jsonl"
    return f"## Data\n\n{learned}. Held out:\n\n{indented(listed(started.held_out, NAMED))}"


def _machine(device: str) -> str:
    facts = {
        "seriatim": __version__,
        "torch": f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{os.cpu_count()} of {torch.backends.cpu.get_cpu_capability()}",
        "device": device,
    }
    if torch.device(device).type == "cuda":
        facts["device"] += f", {torch.cuda.get_device_name(device)}"
    return "## Machine\n\n" + _table(["", ""], [list(fact) for fact in facts.items()])


def _next(folder: Path, command: str, *, finished: bool) -> str:
    name = shlex.quote(str(folder))
    commands = [f"seriatim generate --model {name}", f"seriatim score --model {name} FILE"]
    if not finished:  # equal bits need as many threads
        commands = [f"{command} --resume --threads {torch.get_num_threads()}"]
    return "## Next\n\n" + indented("\n".join(commands))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(items: Sequence[T], most: int) -> Sequence[T]:
    if len(items) <= most:
        return items
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]
