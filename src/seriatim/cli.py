"""The command line: each command is a public function with its options spelt with dashes.

stdout carries the result and nothing else; errors are one line on stderr and an exit code: 0 done,
1 it failed, 2 you asked for something impossible, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

import seriatim
from seriatim.errors import RequestError, SeriatimError

if TYPE_CHECKING:
    from seriatim.api import Model
    from seriatim.results import Result, Score

DEFAULT = "tales"

app = typer.Typer(
    help="Trains, measures and runs autoregressive models over any sequence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

Name = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A shipped name, a path or a hub id. [default: tales]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Backend = Annotated[str, typer.Option(help="native or torch.")]
Device = Annotated[str | None, typer.Option(help="Of the torch backend: cpu, cuda, ...")]
Precision = Annotated[str, typer.Option(help="stored, f32, f16 or bf16.")]
Kv = Annotated[str | None, typer.Option(help="Keys and values: f32 or bf16.")]
Threads = Annotated[int | None, typer.Option(help="Workers. [default: one per processor]")]
Context = Annotated[int | None, typer.Option(help="The most ids of a sequence.")]
Isa = Annotated[str | None, typer.Option(help="avx512, avx2 or plain. [default: the best here]")]


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text, or - to read it from stdin.")] = None,
    *,
    model: Name = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file of the codec's kind.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Ids, such as 1,5,9.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="[default: a full context]")] = None,
    min_tokens: int = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: Annotated[int | None, typer.Option(help="[default: drawn, see --json]")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be repeated.")] = None,
    ignore_end: Annotated[bool, typer.Option("--ignore-end")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: how many alternatives.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the output here.")] = None,
    as_json: Json = False,
    backend: Backend = "native",
    device: Device = None,
    precision: Precision = "stored",
    kv: Kv = None,
    threads: Threads = None,
    context: Context = None,
    isa: Isa = None,
) -> None:
    """Continue a prompt, one id after another."""
    given = _prompt(prompt, prompt_file, prompt_ids)
    loaded = _load(
        model,
        backend=backend,
        device=device,
        precision=precision,
        kv=kv,
        threads=threads,
        context=context,
        isa=isa,
    )
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop": stop or [],
        "ignore_end": ignore_end,
    }
    if logprobs is not None:
        options["logprobs"] = logprobs
    if n > 1 or as_json or out is not None or loaded.codec is None:
        _show(loaded, loaded.generate(given, n=n, **options).samples, as_json, out)
    else:
        _stream(loaded, given, options)


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Files of the codec's kind.")],
    *,
    model: Name = None,
    as_json: Json = False,
    backend: Backend = "native",
    device: Device = None,
    precision: Precision = "stored",
    kv: Kv = None,
    threads: Threads = None,
    context: Context = None,
    isa: Isa = None,
) -> None:
    """Bits per unit of files under a model, with their standard error."""
    from seriatim.measure.score import total

    loaded = _load(
        model,
        backend=backend,
        device=device,
        precision=precision,
        kv=kv,
        threads=threads,
        context=context,
        isa=isa,
    )
    contents = [_read(loaded, path) for path in files]  # every file is checked before any work
    scores = []
    for path, raw in zip(files, contents, strict=True):
        with _spinner(f"scoring {path.name}"):
            scores.append(loaded.score(raw))
        _print_score(str(path), scores[-1], as_json)
    if len(files) > 1:
        _print_score("all", total(scores), as_json)


@app.command()
def train(
    data: Annotated[list[str], typer.Argument(help="Files, folders or patterns.")],
    *,
    size: Annotated[str, typer.Option(help="0.01M to 1B parameters: the one dial.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    out: Annotated[Path, typer.Option(help="The run folder; it becomes the model.")],
    codec: Annotated[str, typer.Option(help="text (a tokenizer is learned) or byte.")] = "text",
    vocab_size: int | None = None,
    context: int | None = None,
    batch: Annotated[int | None, typer.Option(help="Windows in a step.")] = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    ffn: int | None = None,
    optimizer: Annotated[str | None, typer.Option(help="muon or adamw.")] = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    schedule: Annotated[str, typer.Option(help="wsd or cosine.")] = "wsd",
    warmup: int | None = None,
    decay: Annotated[float, typer.Option(help="Share of the steps in which wsd falls.")] = 0.5,
    validation: Annotated[
        list[str] | None, typer.Option(help="Held-out files, or names among DATA; repeatable.")
    ] = None,
    save_every: int | None = None,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last save.")] = False,
    store: Annotated[str, typer.Option(help="Type of the weights written: f32 or bf16.")] = "f32",
    precision: Annotated[str, typer.Option(help="Of the products: f32 or bf16.")] = "f32",
    threads: int | None = None,
    device: str = "cpu",
    prompt: Annotated[str, typer.Option(help="What samples begin with.")] = "Once upon a time",
) -> None:
    """Train a model on files: a folder that `generate` and `transformers` load."""
    options = {name: value for name, value in locals().items() if name != "data"}
    _need_torch()
    from seriatim.progress import Bar

    with Bar() as bar:
        folder = seriatim.train(data, **options, report=bar)
    print(folder)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A name, path or hub id.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """What a model is, and what this machine runs it with."""
    from seriatim.measure.facts import machine, of

    facts = machine() if model is None else {**of(seriatim.load(model)), **machine()}
    _print_facts(facts, as_json)


@app.command()
def models(*, as_json: Json = False) -> None:
    """The models that ship."""
    from seriatim.measure.facts import shipped

    for name, facts in shipped().items():
        _print_row(name, facts, as_json)


@app.command()
def codecs(*, as_json: Json = False) -> None:
    """The codecs there are: what turns raw objects into ids."""
    from seriatim import registry

    for name in registry.names("seriatim.codecs"):
        module = registry.get("seriatim.codecs", name)
        _print_row(name, {"does": (module.__doc__ or "").strip().splitlines()[0]}, as_json)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"seriatim {seriatim.__version__}")
        raise typer.Exit


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; `--debug` anywhere keeps the traceback."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = typer.main.get_command(app).main(words, prog_name="seriatim", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except BrokenPipeError:
        _abandon_stdout()
        sys.exit(0)  # the reader has what it wanted
    except (KeyboardInterrupt, typer.Abort):
        _abandon_stdout()
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"seriatim: {_one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _one_line(error: Exception) -> str:
    if isinstance(error, TyperException):
        return " ".join(getattr(error, "format_message", error.__str__)().split())
    if isinstance(error, SeriatimError):
        return str(error)
    what = " ".join(str(error).split())
    return f"{type(error).__name__}: {what} (--debug shows where)"


def _abandon_stdout() -> None:
    """Nothing may write to a closed pipe at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load(name: str | None, **options: Any) -> "Model":
    if name is None:
        print(f"seriatim: using the model {DEFAULT!r} (--model chooses another)", file=sys.stderr)
    with _spinner(f"loading {name or DEFAULT}"):
        return seriatim.load(name or DEFAULT, **options)


def _prompt(text: str | None, path: Path | None, ids: str | None) -> Any:
    """The prompt, from the one of three ways that was used; none is the model's start id."""
    given = [
        name
        for name, v in (("PROMPT", text), ("--prompt-file", path), ("--prompt-ids", ids))
        if v is not None
    ]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are both given", expected="one of them")
    if path is not None:
        return path
    if ids is not None:
        return _ids(ids)
    return _stdin() if text == "-" else text


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise RequestError(
            f"--prompt-ids is {text!r:.80}", expected="numbers such as 1,5,9"
        ) from None


def _stdin() -> str:
    data = sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"stdin is not UTF-8: byte {error.start}", expected="UTF-8") from None


def _read(model: "Model", path: Path) -> Any:
    if model.codec is None:
        raise RequestError("the model has no codec to read files with", fix="give it a tokenizer")
    return model.codec.read(path)


def _stream(model: "Model", prompt: Any, options: dict[str, Any]) -> None:
    """Text as it comes; on a terminal the prompt stands in front of it, in grey, on stderr."""
    stream = model.open(prompt, **options)
    if isinstance(prompt, str) and sys.stdout.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{prompt}\x1b[0m")
        sys.stderr.flush()
    for piece in stream.pieces():
        _write(piece.text)
        sys.stdout.flush()
    _write("\n")


def _write(text: str) -> None:
    """UTF-8 whatever the locale says; a lone surrogate cannot come out of a codec."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


def _show(model: "Model", results: "list[Result]", as_json: bool, out: Path | None) -> None:
    for index, result in enumerate(results):
        if out is not None and model.codec is not None:
            path = out if len(results) == 1 else out.with_stem(f"{out.stem}-{index}")
            _save(model, result, path)
        if as_json:
            _write(json.dumps(_as_dict(index, result)) + "\n")
        elif out is None:
            text = " ".join(map(str, result.ids)) if model.codec is None else result.text
            _write(text + "\n")


def _save(model: "Model", result: "Result", path: Path) -> None:
    assert model.codec is not None
    try:
        model.codec.write(result.output, path)
    except OSError as error:
        raise SeriatimError(
            f"cannot write {path}: {error.strerror}", fix="choose another --out"
        ) from None


def _as_dict(index: int, result: "Result") -> dict[str, Any]:
    """The fields of `Result` that are JSON; `output` as `text`."""
    hidden = {"output", "samples"}
    facts = {name: value for name, value in vars(result).items() if name not in hidden}
    return {"sample": index, **facts, "usage": asdict(result.usage)}


def _print_score(name: str, score: "Score", as_json: bool) -> None:
    if as_json:
        hidden = {"ids", "logprobs"}
        facts = {key: value for key, value in vars(score).items() if key not in hidden}
        _write(json.dumps({"file": name, **facts, "scored": len(score.ids)}) + "\n")
        return
    bits = "-" if score.bits_per_unit is None else f"{score.bits_per_unit:.4f}"
    error = "" if score.error is None else f" ± {score.error:.4f}"
    _write(f"{name}\t{bits}{error} bits per {score.unit}\t{len(score.ids)} ids\n")


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _write(json.dumps(facts) + "\n")
        return
    for name, value in facts.items():
        values = value if isinstance(value, list | tuple) else [value]
        _write(f"{name}\t{', '.join(map(str, values)) or '-'}\n")


def _print_row(name: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _write(json.dumps({"name": name, **facts}) + "\n")
        return
    _write("\t".join([name, *map(str, facts.values())]) + "\n")


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise SeriatimError(
            "training needs torch, which is not installed", fix="pip install 'seriatim[train]'"
        )


@contextmanager
def _spinner(what: str):
    """A line on stderr while something long goes on; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
