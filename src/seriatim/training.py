"""The command `train`; its options are those of the function (`train/options.py`)."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import Field, fields
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

import seriatim
from seriatim.errors import SeriatimError
from seriatim.train.options import Options, needed


def train(
    data: Annotated[
        list[str], typer.Argument(help="Files, folders or patterns; PATH=WEIGHT mixes them.")
    ],
    **options: Any,
) -> None:
    """Train a model on files: a folder that `generate` and `transformers` load."""
    if find_spec("torch") is None:
        raise SeriatimError(
            "training needs torch, which is not installed", fix="pip install 'seriatim[train]'"
        )
    from seriatim.progress import Bar
    from seriatim.train.parallel import world

    main = world().main  # of several ranks one is seen
    try:
        with Bar() if main else nullcontext() as bar:
            folder = seriatim.train(data, **options, report=bar)
    except (KeyboardInterrupt, SystemExit) as error:
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr, flush=True)  # to the letter: it is to be run
        raise
    if main:
        print(folder)


def _parameter(f: Field[Any]) -> Parameter:
    """An option as typer takes it."""
    kind = _kind(f.type)
    flags = (f"--{f.name.replace('_', '-')}",) if kind is bool else ()
    option = typer.Option(*flags, help=f.metadata["help"], rich_help_panel=f.metadata["panel"])
    return Parameter(
        f.name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if needed(f) else f.default,
        annotation=Annotated[kind, option],
    )


def _kind(annotated: Any) -> Any:
    """What is typed in a shell: of several forms a list of texts, a path or a text."""
    kinds = get_args(annotated) or (annotated,)
    if any(getattr(kind, "__origin__", None) is Sequence for kind in kinds):
        return list[str] | None
    if Path in kinds:
        return Path | None if type(None) in kinds else Path
    return annotated


_data = Parameter("data", Parameter.POSITIONAL_OR_KEYWORD, annotation=train.__annotations__["data"])
_shown = [_data, *map(_parameter, fields(Options))]
train.__signature__ = Signature(_shown)  # pyright: ignore[reportFunctionMemberAccess]
train.__annotations__ = {p.name: p.annotation for p in _shown}
