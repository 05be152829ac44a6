"""The command line: each command is a public function with its options spelt with dashes.

stdout carries the result and nothing else; errors are one line on stderr and an exit code: 0 done,
1 it failed, 2 you asked for something impossible, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import seriatim
from seriatim import evaluating, rating, serving, talking, training, verifying, weighing
from seriatim.arguments import (
    fills,
    gap_options,
    loads,
    parse_ids,
    request_options,
    requests,
    side,
)
from seriatim.errors import RequestError, SeriatimError
from seriatim.terminal import (
    check_out,
    check_suffix,
    failed,
    plain,
    print_facts,
    print_row,
    replace_closed,
    spinner,
    stdin_text,
    tell,
    typed,
    write,
)

if TYPE_CHECKING:
    from seriatim.api import Model
    from seriatim.codecs import Joint
    from seriatim.codecs._repository import Shown
    from seriatim.results import Result

DEFAULT = "tales"

app = typer.Typer(
    help="Trains, measures and runs autoregressive models over any sequence.",
    pretty_exceptions_enable=False,
)

Name = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A shipped name, path or hub id.", show_default=DEFAULT),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@app.command()
@loads
@requests
@fills
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text, or - to read it from stdin.")] = None,
    *,
    model: Name = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file of the codec's kind.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Ids, such as 1,5,9.")] = None,
    given: Annotated[
        str | None, typer.Option(help="An object in part, of which the rest is generated.")
    ] = None,
    given_file: Annotated[Path | None, typer.Option(help="Likewise, in a file.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 1,
    beams: Annotated[
        int | None, typer.Option(help="Search with so many beams: the n best.")
    ] = None,
    best_of: Annotated[int | None, typer.Option(help="Draw so many: the n likeliest.")] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: how many alternatives, 0 to 20.")
    ] = None,
    prompt_logprobs: Annotated[bool, typer.Option("--prompt-logprobs", help="Likewise.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the output here; of n, FILE-0, FILE-1, ...")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="With --out: all n in that one file.")
    ] = False,
    as_json: Json = False,
    gap: dict[str, Any],
    asked: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Continue a prompt, one id after another."""
    start = _prompt(prompt, prompt_file, prompt_ids)
    if (logprobs is not None or prompt_logprobs) and not as_json:
        raise RequestError("log-probabilities are shown in JSON only", fix="add --json")
    options: dict[str, Any] = request_options(asked)
    options |= {"prompt_logprobs": True} if prompt_logprobs else {}
    options |= {} if logprobs is None else {"logprobs": logprobs}
    options |= gap_options(gap)
    if (part := side("--given", given, given_file)) is not None:
        options |= {"given": part}
    if out is not None:
        check_out(out)
    elif together:
        raise RequestError("--together is given without --out", fix="name the file")
    loaded = _load(model, loading)
    if together:
        _joint(loaded)
    if out is not None:
        check_suffix(out, loaded.codec)
    drawn = beams is None and best_of is None
    if drawn and n == 1 and not as_json and out is None and loaded.codec is not None:
        _stream(loaded, start, options, say=model is None)
        return
    with spinner("generating"):
        results = _answers(loaded, start, n, beams, best_of, options)
    _say(loaded, model is None)
    _tell_files(results[0][0].files)
    if out is not None and together:
        _save_all(loaded, [result.output for result, _ in results], out)
    for index, (result, more) in enumerate(results):
        if out is not None and not together:
            _save(loaded, result, out if n == 1 else out.with_stem(f"{out.stem}-{index}"))
        if as_json:
            write(json.dumps(_as_dict(index, result) | more) + "\n")
        elif out is None:
            write(_text(loaded, result) + "\n")


app.command()(rating.score)
app.command()(training.train)
app.command()(serving.serve)


@app.command()
@loads
def bench(
    model: Annotated[str, typer.Argument(help="A name, path or hub id.")] = DEFAULT,
    *,
    prompt_tokens: Annotated[int | None, typer.Option(show_default="256")] = None,
    max_tokens: Annotated[int | None, typer.Option(show_default="64")] = None,
    batch: Annotated[int, typer.Option(help="Sequences that generate together.")] = 8,
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 15.0,
    as_json: Json = False,
    loading: dict[str, Any],
) -> None:
    """How fast a model runs here, beside this machine's limits."""
    options = dict(locals())
    del options["model"], options["as_json"], options["loading"]
    from seriatim.measure import bench as measure

    loaded = _load(model, loading)
    with spinner("measuring"):
        found = measure.bench(loaded, **options)
    print_facts(asdict(found) if as_json else measure.lines(found), as_json)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A name, path or hub id.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """What a model is, and what this machine runs it with."""
    from seriatim.measure.facts import machine, of

    facts = machine() if model is None else {**of(seriatim.load(model)), **machine()}
    print_facts(facts, as_json)


@app.command()
def models(*, as_json: Json = False) -> None:
    """The models that ship."""
    from seriatim.measure.facts import shipped

    for name, facts in shipped().items():
        print_row(name, facts, as_json)


@app.command()
def codecs(
    codec: Annotated[
        str | None, typer.Argument(help="NAME or NAME:option=value,...: check its laws.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """The codecs there are: what turns raw objects into ids. Of one, whether it keeps the laws."""
    from seriatim import registry

    if codec is not None:
        _check(codec, as_json)
        return
    for name in registry.names("seriatim.codecs"):
        about = registry.get("seriatim.codecs", name).__doc__ or ""  # python -OO has none
        print_row(name, {"does": about.strip().partition("\n")[0]}, as_json)


app.command()(talking.chat)
app.command()(weighing.quantize)
app.command()(weighing.compare)
app.command()(weighing.export)
app.command()(rating.variants)
app.command()(verifying.verify)
app.command("eval", cls=evaluating.Several)(evaluating.evaluate)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from; of any command.")
    ] = False,
) -> None:
    if version:
        print(f"seriatim {seriatim.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
        raise RequestError("no command was given", expected=f"one of {', '.join(names)}")


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; `--debug` anywhere before `--` keeps the traceback."""
    words = list(sys.argv[1:] if args is None else args)
    options = words[: words.index("--")] if "--" in words else words
    words = [word for word in options if word != "--debug"] + words[len(options) :]
    replace_closed()
    try:
        code = typer.main.get_command(app).main(words, prog_name="seriatim", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        code = failed(error, debug="--debug" in options)
    sys.exit(code if isinstance(code, int) else 0)


def _check(codec: str, as_json: bool) -> None:
    """The laws of a codec, or of its module's specimens, each with what breaks it."""
    from seriatim import registry
    from seriatim.codecs import PACKAGE, laws, made

    name, options, _ = codec.partition(":")
    checked = [made(codec)] if options else registry.get(PACKAGE, name).specimens()
    found = [(law, example) for one in checked if one for law, example in laws(one)]
    for law, example in found:
        print_row(law, {"broken": example} if as_json else {"": example or "holds"}, as_json)
    if broken := sum(bool(example) for _, example in found):
        raise SeriatimError(f"codec {codec} breaks {broken} laws", fix="see docs/codecs.md")


def _load(name: str | None, loading: Mapping[str, Any]) -> "Model":
    with spinner(f"loading {name or DEFAULT}"):
        return seriatim.load(name or DEFAULT, **loading)


def _say(model: "Model", default: bool) -> None:
    """What runs: said once nothing can be refused any more."""
    tell(model.facts + " (--model chooses another)" * default)


def _prompt(text: str | None, path: Path | None, ids: str | None) -> Any:
    """The prompt, from the one of three ways that was used; none is the model's start id."""
    ways = {"PROMPT": text, "--prompt-file": path, "--prompt-ids": ids}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are given", expected="one of them")
    if ids is not None:
        return parse_ids("--prompt-ids", ids)
    if text == "-":
        return stdin_text()
    return path if text is None else typed("PROMPT", text)


def _tell_files(files: "Sequence[Shown] | None") -> None:
    """What the budget left out of the prompt."""
    for file in files or ():
        if not file.ids or file.lines < file.total:
            tell(f"--context-file {plain(file.path)}: {file.lines} of {file.total} lines are shown")


def _answers(
    model: "Model",
    prompt: Any,
    n: int,
    beams: int | None,
    best_of: int | None,
    options: dict[str, Any],
) -> "list[tuple[Result, dict[str, Any]]]":
    """`n` results, and what JSON says of each besides."""
    if beams is not None and best_of is not None:
        raise RequestError("--beams and --best-of are given", expected="one of them")
    if beams is not None:
        choice = model.beam(prompt, beams=beams, n=n, **options)
    elif best_of is not None:
        if not 1 <= n <= max(best_of, 1):  # best_of itself is checked below
            raise RequestError(f"--n is {n}", expected=f"1 to {best_of}, as many as are drawn")
        choice = model.best_of(prompt, n=best_of, **options)
    else:
        return [(result, {}) for result in model.generate(prompt, n=n, **options).samples]
    return [(c.result, {"sample": c.sample, "score": c.score}) for c in choice.candidates[:n]]


def _stream(model: "Model", prompt: Any, options: dict[str, Any], *, say: bool) -> None:
    """Text as it comes; on a terminal the prompt stands in front of it, in grey, on stderr."""
    stream = model.stream(prompt, **options)
    _say(model, say)
    _tell_files(stream.files)
    if isinstance(prompt, str) and sys.stdout.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{prompt}\x1b[0m")
        sys.stderr.flush()
    for piece in stream:
        write(piece.text)
        sys.stdout.flush()
    write("\n")


def _text(model: "Model", result: "Result") -> str:
    """The text, or the ids where there is no codec to make text of them."""
    return " ".join(map(str, result.ids)) if model.codec is None else result.text


def _save(model: "Model", result: "Result", path: Path) -> None:
    with _writing(path):
        if model.codec is None:
            path.write_text(_text(model, result) + "\n")
        else:
            model.codec.write(result.output, path)


def _save_all(model: "Model", outputs: Sequence[Any], path: Path) -> None:
    with _writing(path):
        _joint(model).write_all(outputs, path)


def _joint(model: "Model") -> "Joint":
    """The codec, where it can write several objects into one file."""
    from seriatim.codecs import Joint

    if isinstance(model.codec, Joint):
        return model.codec
    name = "none" if model.codec is None else f"the codec {model.codec.name}"
    seen = f"--together needs a codec that writes several into one file; the model has {name}"
    raise RequestError(seen, fix="leave it out")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SeriatimError(
            f"cannot write {path}: {error.strerror}", fix="choose another --out"
        ) from None


def _as_dict(index: int, result: "Result") -> dict[str, Any]:
    """The fields of `Result` that are JSON; `output` as `text`."""
    hidden = {"output", "samples"}
    facts = {name: value for name, value in vars(result).items() if name not in hidden}
    facts["files"] = None if result.files is None else [*map(asdict, result.files)]
    return {"sample": index, **facts, "usage": asdict(result.usage) | {"gain": result.usage.gain}}
