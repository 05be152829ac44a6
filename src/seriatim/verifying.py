"""The command `verify`: the laws as a table, or as JSON; exit code 1 where one is broken."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

import seriatim
from seriatim.arguments import loads
from seriatim.errors import SeriatimError
from seriatim.terminal import plain, spinner, tell, write

if TYPE_CHECKING:
    from seriatim.verify.report import Report, Row


@loads
def verify(
    model: Annotated[str, typer.Argument(help="A shipped name, path or hub id.")] = "tales",
    *,
    original: Annotated[
        str | None, typer.Option(help="What a quantised model was made from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the cases.")] = 0,
    thorough: Annotated[bool, typer.Option("--thorough", help="Longer, and more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    loading: dict[str, Any],
) -> None:
    """The laws, run on this model, this machine and these settings."""
    with spinner(f"loading {model}"):
        loaded = seriatim.load(model, **loading)
    with spinner(f"verifying {model}"):
        report = loaded.verify(original=original, seed=seed, thorough=thorough)
    if as_json:
        write(json.dumps(report.as_dict(), default=str) + "\n")
    else:
        _print(report)
    if report.failures:
        raise SeriatimError(
            f"{len(report.failures)} of {len(report.rows)} laws are broken: "
            f"{', '.join(report.failures)}",
            fix="the table says what to do about each",
        )


def _print(report: "Report") -> None:
    tell(report.model)
    if sys.stdout.isatty():
        _table(report)
    else:
        for row in report.rows:
            fields = (row.law, row.result, f"{row.cases}", row.compared, row.power)
            write("\t".join(map(plain, fields)) + "\n")
    for row in report.rows:
        if row.difference is not None:
            write(f"\n{row.law} is broken\n" + _difference(row))
    if report.left:
        tell(f"not tried: {report.left}")


def _table(report: "Report") -> None:
    """Law, result, cases, what was compared and what would have been seen."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"passed": "green", "failed": "bold red", "left out": "yellow"}
    table = Table("law", "result", "cases", "compared", "what would be seen")
    table.columns[2].justify = "right"
    for row in report.rows:
        result = Text(row.result, colours[row.result])
        cases = f"{row.cases:,}" if row.cases else ""
        table.add_row(row.law, result, cases, Text(plain(row.compared)), Text(plain(row.power)))
    Console().print(table)


def _difference(row: "Row") -> str:
    """One fact on each line, then what to do."""
    facts = {**(row.difference or {}), "fix": row.fix}
    return "".join(f"{name}\t{plain(str(value))}\n" for name, value in facts.items())
