"""Commands that ask a model how likely something is: `score` and `variants`."""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import seriatim
from seriatim.arguments import loads
from seriatim.errors import RequestError, ResourceError
from seriatim.files.regular import is_file
from seriatim.requesting import codec_of
from seriatim.terminal import check_out, plain, spinner, stdin_text, tell, typed, write

if TYPE_CHECKING:
    from seriatim.api import Model

DEFAULT = "tales"
SUFFIXES = (".fasta", ".fa", ".faa", ".fna", ".a3m", ".gz")  # no sequence ends so

Name = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A shipped name, path or hub id.", show_default=DEFAULT),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@loads
def score(
    files: Annotated[list[Path], typer.Argument(help="Files of the codec's kind; - is stdin.")],
    *,
    model: Name = None,
    as_json: Json = False,
    loading: dict[str, Any],
) -> None:
    """Bits per unit of files, and of each record of several, with their standard error."""
    from seriatim.codecs._files import named
    from seriatim.measure.score import Tally, objects

    loaded = _load(model, loading)
    contents = [_checked(loaded, path) for path in files]  # every one before any work
    every = Tally()
    for path, content in zip(files, contents, strict=True):
        whole = Tally()
        for name, raw in content or objects(codec_of(loaded, "a file"), path):
            with spinner(f"scoring {path.name} {name}"), named(path):
                one = loaded.score(raw)
            if not every.count:
                _say(loaded, model is None)
            whole.add(one)
            every.add(one)
            if content is None:
                _print_score(str(path), name, Tally().add(one).facts, as_json)
        _print_score(str(path), "", whole.facts, as_json)
    if len(files) > 1:
        _print_score("all", "", every.facts, as_json)


@loads
def variants(
    mutations: Annotated[
        Path | None,
        typer.Argument(
            help="A24G or A24G:K30R on each line, a table (.csv, .tsv), or FASTA.",
            show_default="every substitution",
        ),
    ] = None,
    *,
    wild: Annotated[str, typer.Option(help="The wild type: a sequence, or a FASTA file.")],
    model: Name = None,
    family: Annotated[str, typer.Option(help="Of a model that knows several.")] = "",
    offset: Annotated[int, typer.Option(help="Residues before the first, in the numbering.")] = 0,
    column: Annotated[str, typer.Option(help="Of a table.")] = "mutant",
    template: Annotated[str, typer.Option(help="Of a text model: what {} stands in.")] = "{}",
    width: Annotated[int, typer.Option(help="Likewise: residues to a line; 0 is one line.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A CSV file.", show_default="to the screen")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="A heat map to draw, a PNG.")] = None,
    loading: dict[str, Any],
) -> None:
    """Log-likelihood ratios of a sequence's variants to its wild type, in nats, as CSV."""
    from seriatim.measure import variants as measure

    for option, path in (("--out", out), ("--picture", picture)):
        if path is not None:
            check_out(path, option)
    if picture is not None and picture.suffix.lower() != ".png":
        raise RequestError(f"--picture is {picture}", expected="a name that ends in .png")
    loaded = _load(model, loading)
    codec = codec_of(loaded, "a variant")
    given = typed("--wild", wild)
    sequence = measure.wild_type(codec, Path(given) if _is_path(given) else given).sequence
    residues = sequence.replace("-", "")
    asked = (
        measure.singles(residues, offset=offset, residues=measure.residues(codec))
        if mutations is None
        else measure.read(mutations, residues, offset=offset, column=column)
    )
    how = {"family": family, "template": template.replace("\\n", "\n"), "width": width}
    with spinner(f"scoring {len(asked)} variants"):
        rows = [*measure.ratios(loaded, sequence, asked, **how)]
    _say(loaded, model is None)
    if lost := sum(row.log_ratio is None for row in rows):
        tell(f"{lost} of {len(rows)} variants change no column of the family and are not scored")
    _save(measure.table(rows), out)
    if picture is not None:
        from seriatim.measure import heatmap

        heatmap.draw(rows, sequence, picture, offset=offset, residues=measure.residues(codec))


def _load(name: str | None, loading: dict[str, Any]) -> "Model":
    with spinner(f"loading {name or DEFAULT}"):
        return seriatim.load(name or DEFAULT, **loading)


def _say(model: "Model", default: bool) -> None:
    """What runs: said once nothing can be refused any more."""
    tell(model.facts + " (--model chooses another)" * default)


def _checked(model: "Model", path: Path) -> list[tuple[str, Any]] | None:
    """The object of a file; None where it holds several, to be read again one at a time.

    Raises:
        SeriatimError: the file, or one of its objects, is refused.
    """
    from seriatim.measure.score import objects

    if (codec := model.codec) is None:
        raise RequestError("the model has no codec to read files with", fix="give it a tokenizer")
    if str(path) == "-":
        return [("", stdin_text())]
    found = objects(codec, path)
    first, others = [*islice(found, 1)], sum(1 for _ in found)
    return None if others else first


def _is_path(given: str) -> bool:
    """Whether it is a file, or looks like the name of one."""
    path = Path(given)
    return path.suffix.lower() in SUFFIXES or is_file(path)


def _print_score(file: str, record: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        named = {"file": file} | ({"record": record} if record else {})
        write(json.dumps(named | facts) + "\n")
        return
    name, rate, error = f"{file} {record}".strip(), facts["bits_per_unit"], facts["error"]
    bits = "-" if rate is None else f"{rate:.4f}"
    more = "" if error is None else f" ± {error:.4f}"
    write(f"{plain(name)}\t{bits}{more} bits per {facts['unit']}\t{facts['scored']} ids\n")


def _save(text: str, path: Path | None) -> None:
    if path is None:
        write(text)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise ResourceError(f"{path} was not written: {error.strerror}") from error
