"""Command-line options in groups: those of `seriatim.load`, of a request, and of a gap."""

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from seriatim.errors import RequestError
from seriatim.terminal import typed


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
    adapter: Annotated[
        str | None, typer.Option(help="A folder of a LoRA adapter in PEFT's format.")
    ] = None,
    isa: Annotated[
        str | None, typer.Option(help="avx512, avx2 or plain.", show_default="the best here")
    ] = None,
) -> None:
    """The options of `load`, for the commands that load a model."""


def _requesting(
    *,
    max_tokens: Annotated[int | None, typer.Option(show_default="a full context")] = None,
    min_tokens: int = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    typical_p: float = 1.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    xtc_probability: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    xtc_threshold: float = 0.1,
    dynatemp_range: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    dynatemp_exponent: float = 1.0,
    filters: Annotated[
        str | None, typer.Option(help="In order, such as min_p,temperature.")
    ] = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    dry_multiplier: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_range: Annotated[int, typer.Option(help="How many last ids; 0 is all.")] = 0,
    dry_breakers: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="ID=NUMBER; may be repeated.")
    ] = None,
    allowed_ids: Annotated[str | None, typer.Option(help="No others: ids, such as 1,5,9.")] = None,
    banned_ids: Annotated[str | None, typer.Option(help="Not these.")] = None,
    seed: Annotated[int | None, typer.Option(show_default="drawn; --json says it")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be repeated.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Ends it with its line, block (by indentation) or braces.")
    ] = None,
    speculate: Annotated[
        str | None, typer.Option(help="ngram or suffix: guesses from what was said; same ids.")
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="A model of the same vocabulary that guesses; same ids.")
    ] = None,
    draft_text: Annotated[
        Path | None, typer.Option(help="With --speculate suffix: a file to guess from too.")
    ] = None,
    draft_tokens: Annotated[
        int | None, typer.Option(help="Guesses in a step.", show_default="as many as pay")
    ] = None,
    ignore_end: Annotated[bool, typer.Option("--ignore-end", help="Go on past end ids.")] = False,
    loop_limit: Annotated[
        int, typer.Option(help="Ends once the last ids repeat so often; 0 is off.")
    ] = 0,
    loop_length: Annotated[int, typer.Option(help="The most ids of what repeats.")] = 64,
    regex: Annotated[str | None, typer.Option(help="What the text must match whole.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="What the text may be; may be repeated.")
    ] = None,
    json_schema: Annotated[
        str | None, typer.Option(help="Of the text: JSON that begins with {, or its file.")
    ] = None,
    grammar: Annotated[
        str | None, typer.Option(help="Of the text: rules such as start: ..., or their file.")
    ] = None,
) -> None:
    """The options of a request, for the commands that generate."""


def _filling(
    *,
    prefix: Annotated[str | None, typer.Option(help="Fill a gap: what comes before it.")] = None,
    suffix: Annotated[str | None, typer.Option(help="What comes after it.")] = None,
    prefix_file: Annotated[Path | None, typer.Option(help="Likewise, in a file.")] = None,
    suffix_file: Annotated[Path | None, typer.Option(help="Likewise.")] = None,
    fim_order: Annotated[
        str | None, typer.Option(help="psm or spm.", show_default="the model's")
    ] = None,
    context_file: Annotated[
        list[Path] | None,
        typer.Option(help="Another file to show before the gap, the last nearest; repeatable."),
    ] = None,
    context_budget: Annotated[
        int | None, typer.Option(help="Ids these may take.", show_default="as many as they need")
    ] = None,
    file: Annotated[str | None, typer.Option(help="The path of the file with the gap.")] = None,
    repository: Annotated[str | None, typer.Option(help="Its repository's name.")] = None,
) -> None:
    """The options of a gap to fill, for the commands that generate."""


def loads(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `load`, which reach it together as `loading`."""
    return _given("loading", _loading, command)


def requests(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of a request, which reach it together as `asked`."""
    return _given("asked", _requesting, command)


def fills(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of a gap, which reach it together as `gap`."""
    return _given("gap", _filling, command)


def _given(group: str, source: Callable[..., None], command: Callable[..., None]) -> Callable:
    own, extra = signature(command).parameters, signature(source).parameters
    shown = [p for p in own.values() if p.name != group] + [*extra.values()]

    @wraps(command)
    def run(**given: Any) -> None:
        together = {name: given.pop(name) for name in extra}
        command(**given, **{group: together})

    run.__signature__ = Signature(shown)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {p.name: p.annotation for p in shown}
    return run


def request_options(asked: dict[str, Any]) -> dict[str, Any]:
    """Options of a request as they were typed, as `Model.generate` takes them; no defaults."""
    untyped = {p.name: p.default for p in signature(_requesting).parameters.values()}
    options = {name: value for name, value in asked.items() if value != untyped[name]}
    for name in ("allowed_ids", "banned_ids"):
        if name in options:
            options[name] = parse_ids(f"--{name.replace('_', '-')}", options[name])
    if "logit_bias" in options:
        options["logit_bias"] = dict(map(parse_bias, options["logit_bias"]))
    if "filters" in options:
        options["filters"] = options["filters"].replace(",", " ").split()
    if "dry_breakers" in options:
        breakers = options["dry_breakers"]
        options["dry_breakers"] = [typed("--dry-breakers", text) for text in breakers]
    options |= _constraints(options)
    if "choice" in options:
        options["choices"] = [typed("--choice", text) for text in options.pop("choice")]
    return options | {"stop": [typed("--stop", text) for text in asked["stop"] or ()]}


def gap_options(gap: dict[str, Any]) -> dict[str, Any]:
    """Options of a gap as they were typed, as `Model.generate` takes them; those that are given."""
    names = ("file", "repository")
    options = {
        "prefix": side("--prefix", gap["prefix"], gap["prefix_file"]),
        "suffix": side("--suffix", gap["suffix"], gap["suffix_file"]),
        "fim_order": gap["fim_order"],
        "files": _files(gap["context_file"]),
        "context_budget": gap["context_budget"],
        **{n: None if gap[n] is None else typed(f"--{n}", gap[n]) for n in names},
    }
    return {name: value for name, value in options.items() if value is not None}


def side(name: str, text: str | None, path: Path | None) -> str | Path | None:
    """A text, from the one of two ways that was used."""
    if text is not None and path is not None:
        raise RequestError(f"{name} and {name}-file are given", expected="one of them")
    return path if text is None else typed(name, text)


def _files(paths: list[Path] | None) -> dict[str, Path] | None:
    """Files by the paths they were named with."""
    files = {path.as_posix(): path for path in paths or ()}
    if len(files) < len(paths or ()):
        raise RequestError("--context-file names a file twice", fix="leave one out")
    return files or None


def _constraints(asked: dict[str, Any]) -> dict[str, str]:
    """What text must be: as typed, or the file of what does not look like it."""
    from seriatim.codecs._files import read_text

    looks = {"regex": "", "json_schema": "{", "grammar": ":"}
    texts = {n: typed(f"--{n.replace('_', '-')}", asked[n]) for n in looks if n in asked}
    return {n: t if looks[n] in t else read_text(Path(t)) for n, t in texts.items()}


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
