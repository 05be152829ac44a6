"""Commands about how weights are stored: `quantize`, `export`, and `compare` of two models."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import seriatim
from seriatim.arguments import loads
from seriatim.errors import FileError
from seriatim.terminal import check_out, plain, print_facts, spinner, tell, write

if TYPE_CHECKING:
    from seriatim.api import Model

Text = Annotated[
    Path | None, typer.Option(help="To compare on.", show_default="drawn from the model")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def quantize(
    model: Annotated[str, typer.Argument(help="A shipped name, path or hub id.")],
    *,
    to: Annotated[str, typer.Option(help="int8 or int4.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="round, search or feedback.", show_default="feedback for int4, search for int8"
        ),
    ] = None,
    importance: Annotated[
        Path | None, typer.Option(help="A text whose outputs feedback keeps.")
    ] = None,
    text: Text = None,
    report: Annotated[bool, typer.Option(help="Compare the result with the original.")] = True,
    as_json: Json = False,
) -> None:
    """Write a model with its weights in int8 or int4 blocks, and say what that costs."""
    from seriatim.quantising import quantize as run

    _check_text(text)
    with spinner(f"quantising {model}"):
        done = run(model, to=to, out=out, method=method, importance=importance)
    facts: dict[str, Any] = {"bytes": [done.bytes_before, done.bytes_after]}
    if report:
        kinds = {"model": {}, "kv int8": {"kv": "int8"}}
        facts |= _compared(model, str(out), text, kinds)
    if as_json:
        write(json.dumps({"folder": str(out), **facts, "tensors": _rows(done.tensors)}) + "\n")
        return
    for tensor in done.tensors:
        write(f"{plain(tensor.name)}\t{tensor.kind}\t{tensor.error:.5f}\n")
    _print(facts)
    tell(f"{out}: written")


@loads
def compare(
    a: Annotated[str, typer.Argument(help="The reference; it is computed in f32.")],
    b: Annotated[str, typer.Argument(help="The other; the options are for it.")],
    *,
    text: Text = None,
    as_json: Json = False,
    loading: dict[str, Any],
) -> None:
    """How far the predictions of one model are from another's."""
    _check_text(text)
    facts = _compared(a, b, text, {"model": loading})
    if as_json:
        write(json.dumps({"a": a, "b": b, **facts}) + "\n")
        return
    _print(facts)


def export(
    model: Annotated[str, typer.Argument(help="A shipped name, path or hub id.")],
    *,
    out: Annotated[Path, typer.Option(help="The file to make; none is overwritten.")],
    to: Annotated[str, typer.Option(help="gguf, which llama.cpp runs.")] = "gguf",
    type: Annotated[str, typer.Option(help="f32, f16, bf16, q8_0 or q4_0.")] = "f16",
    as_json: Json = False,
) -> None:
    """Write a model as a file for other programs."""
    from seriatim.exporting import export

    check_out(out)
    with spinner(f"exporting {model}"):
        made = export(model, out, to=to, type=type)
    print_facts({**vars(made), "path": str(made.path)}, as_json)


def _compared(a: str, b: str, text: Path | None, ways: dict[str, Any]) -> dict[str, Any]:
    """Of B, loaded in each of several ways, to A computed in f32: its weights, nothing rounded."""
    from seriatim.measure.compare import compare, windows

    with spinner("comparing"):
        exact = seriatim.load(a, precision="f32", kv="f32")
        found: dict[str, Any] = {}
        for name, options in ways.items():
            other = seriatim.load(b, **options)
            length = min(exact.context, other.context)
            ids = windows(exact, text, length=length)
            found[name] = asdict(compare(exact, other, ids))
            found.setdefault("bytes", [_stored(exact), other.weight_bytes])
    return found


def _stored(model: "Model") -> int:
    return sum(weight.nbytes for weight in model.checkpoint.weights.values())


def _check_text(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise FileError(f"--text {path} does not exist", expected="a file of the codec's kind")


def _rows(tensors: Any) -> list[dict[str, Any]]:
    return [tensor._asdict() for tensor in tensors]


def _print(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name == "bytes":
            write(f"bytes\t{value[0]:,}\t{value[1]:,}\n")
        else:
            _print_comparison(name, value)


def _print_comparison(name: str, c: dict[str, Any]) -> None:
    write(f"{name}: KL\t{c['kl']:.3e}{_error(c['kl_error'], '.1e')}\t{c['positions']} positions\n")
    write(f"{name}: KL 99th percentile, worst\t{c['kl_99']:.3e}\t{c['kl_worst']:.3e}\n")
    write(f"{name}: same top id\t{c['same_top']:.4f}\n")
    both = zip(c["perplexity"], c["perplexity_error"], strict=True)
    shown = [f"{value:.4f}{_error(error, '.4f')}" for value, error in both]
    write(f"{name}: perplexity\t" + "\t".join(shown) + "\n")


def _error(value: float | None, form: str) -> str:
    return "" if value is None else f" ± {value:{form}}"
