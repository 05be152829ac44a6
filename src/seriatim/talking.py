"""`seriatim chat`: a conversation by the model's own template, typed or piped, a line a message.

stdout is what the model answers. Prompts, reasoning and remarks are on stderr.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import seriatim
from seriatim.arguments import loads, request_options, requests
from seriatim.errors import RequestError, SeriatimError
from seriatim.terminal import spinner, tell, typed, write

if TYPE_CHECKING:
    from seriatim.api import Model
    from seriatim.results import Result

COMMANDS = {"/exit": "end", "/reset": "begin anew", "/usage": "what the last answer took"}


@loads
@requests
def chat(
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped name, path or hub id.")
    ] = "tales",
    system: Annotated[str | None, typer.Option(help="The system's message.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="Jinja, in a file.", show_default="the model's own")
    ] = None,
    think_budget: Annotated[
        int | None, typer.Option(help="The most ids of reasoning.", show_default="any")
    ] = None,
    asked: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Talk with a model, by its own template: a line is a message; /exit, /reset, /usage."""
    options = request_options(asked) | {"template": template, "think_budget": think_budget}
    with spinner(f"loading {model}"):
        loaded = seriatim.load(model, **loading)
    loaded.templates.get(template)  # refused before anything is typed
    tell(f"{loaded.facts} ({', '.join(f'{name}: {does}' for name, does in COMMANDS.items())})")
    first = [] if system is None else [_message("system", typed("--system", system))]
    history, last = list(first), None
    for line in _lines():
        if line == "/exit":
            return
        if line == "/reset":
            history = list(first)
        elif line == "/usage":
            _tell_usage(last)
        elif line.startswith("/"):
            tell(f"there is no {line!r:.40}; known: {', '.join(COMMANDS)}")
        elif line:
            last = _turn(loaded, history, line, options) or last


def _turn(
    model: "Model", history: list[dict[str, Any]], line: str, options: dict[str, Any]
) -> "Result | None":
    """One message and its answer, added to the history; a terminal goes on after an error."""
    talk = [*history, _message("user", line)]
    try:
        result = _answer(model, talk, options)
    except SeriatimError as error:
        if not sys.stdin.isatty():
            raise
        tell(str(error))
        return None
    said: Any = result.message
    history[:] = [*talk, said]
    return result


def _answer(model: "Model", talk: list[dict[str, Any]], options: dict[str, Any]) -> "Result":
    """The answer as it comes; an interrupt ends it, and what was said stays said."""
    stream = model.chat(talk, stream=True, **options)
    with suppress(KeyboardInterrupt):
        for piece in stream:
            _think(piece.reasoning)
            write(piece.text)
            sys.stdout.flush()
    stream.close()
    write("\n")
    sys.stdout.flush()
    return stream.result()


def _think(text: str) -> None:
    """Reasoning, in grey, where somebody sees it."""
    if text and sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m")
        sys.stderr.flush()


def _lines() -> Iterator[str]:
    """What is typed or piped, a line at a time.

    Raises:
        RequestError: stdin is closed, or a line is not UTF-8.
    """
    if sys.stdin is None:
        raise RequestError("stdin is closed", fix="pipe messages in, a line each")
    number = 0
    while line := _line():
        number += 1
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            seen = f"line {number} of stdin is not UTF-8: byte {error.start}"
            raise RequestError(seen, expected="UTF-8") from None


def _line() -> bytes:
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    return sys.stdin.buffer.readline()


def _tell_usage(result: "Result | None") -> None:
    if result is None:
        tell("nothing was answered yet")
        return
    u = result.usage
    tell(
        f"{u.prompt} ids of prompt, {u.cached} of them from the cache; {u.generated} generated; "
        f"{u.prefill_ms:.0f} ms to read, {u.decode_ms:.0f} ms to write; seed {result.seed}"
    )


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
