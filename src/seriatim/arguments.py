"""Command-line options that several commands share: those of `seriatim.load`."""

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from inspect import Signature, signature
from typing import Annotated, Any

import typer

from seriatim.errors import RequestError, SeriatimError


def _loading(
    *,
    backend: Annotated[str, typer.Option(help="native or torch.")] = "native",
    device: Annotated[str | None, typer.Option(help="Of the torch backend: cpu, ...")] = None,
    precision: Annotated[
        str, typer.Option(help="stored, f32, f16, bf16, int8 or int4.")
    ] = "stored",
    kv: Annotated[str | None, typer.Option(help="Keys and values: f32, bf16 or int8.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Workers.", show_default="one per processor")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="The most ids of a sequence.", show_default="the model's own")
    ] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="For keys and values.", show_default="half of what is free")
    ] = None,
    isa: Annotated[
        str | None, typer.Option(help="avx512, avx2 or plain.", show_default="the best here")
    ] = None,
) -> None:
    """The options of `load`, for the commands that load a model."""


def loads(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `load`, which reach it together as `loading`."""
    own, extra = signature(command).parameters, signature(_loading).parameters
    shown = [p for p in own.values() if p.name != "loading"] + [*extra.values()]

    @wraps(command)
    def run(**given: Any) -> None:
        loading = {name: given.pop(name) for name in extra}
        command(**given, loading=loading)

    run.__signature__ = Signature(shown)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {p.name: p.annotation for p in shown}
    return run


def parse_ids(name: str, text: str) -> list[int]:
    """1,5,9 as ids."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise RequestError(f"{name} is {text!r:.80}", expected="ids such as 1,5,9") from None


def parse_bias(text: str) -> tuple[int, float]:
    """ID=NUMBER."""
    id, _, value = text.partition("=")
    try:
        return int(id), float(value)
    except ValueError:
        raise RequestError(f"--logit-bias is {text!r:.80}", expected="ID=NUMBER") from None


def need_torch() -> None:
    """Refuse a command that trains where torch is not installed."""
    if find_spec("torch") is None:
        raise SeriatimError(
            "training needs torch, which is not installed", fix="pip install 'seriatim[train]'"
        )
