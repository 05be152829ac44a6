"""Variants of a sequence beside its wild type: log-likelihood ratios, as a table and a heat map.

A ratio is log p(variant) - log p(wild type) in nats under the whole sequence, the end id left out;
under a codec of both directions the mean of the two. Where a model's family is aligned, the wild
type is first mapped to its columns (`Frame`); what lies in no column is not scored, and said.

    wild = "MKVLAAG"
    rows = [*ratios(model, wild, [parse("K2R:L4V", wild)])]

`heatmap.py` draws them.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from seriatim.codecs import Codec, _fasta
from seriatim.codecs._files import named, read_text
from seriatim.codecs._residues import BACKWARD, FORWARD, GAP, Options
from seriatim.codecs.protein import ProteinCodec, Record
from seriatim.errors import FileError, RequestError, SeriatimError, did_you_mean
from seriatim.requesting import codec_of

if TYPE_CHECKING:
    from seriatim.api import Model

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
SUBSTITUTION = re.compile(r"([A-Z])([0-9]{1,9})([A-Z-])")
FIELDS = ("variant", "log_ratio", "log_likelihood", "wild_log_likelihood", "unscored")


@dataclass(frozen=True)
class Change:
    """A substitution: as it was given, the index in the wild type, and what stands there now."""

    name: str
    index: int
    new: str


@dataclass(frozen=True)
class Variant:
    """A sequence that differs from the wild type.

    Attributes:
        name: as it was given.
        sequence: all residues.
        changes: of a whole sequence from a file, none.
    """

    name: str
    sequence: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """What a model says of a variant.

    Attributes:
        variant: which one.
        log_ratio: nats; None where none of its changes is in a column of the family.
        log_likelihood, wild_log_likelihood: the two totals, whose difference it is.
        unscored: names of the changes that are in no column.
    """

    variant: Variant
    log_ratio: float | None
    log_likelihood: float | None
    wild_log_likelihood: float
    unscored: tuple[str, ...] = ()


def parse(text: str, wild: str, *, offset: int = 0) -> Variant:
    """A variant from its changes, such as "A24G" or "A24G:K30R"; "WT" is the wild type.

    Args:
        wild: the whole sequence.
        offset: how many residues of the numbering stand before its first.

    Raises:
        RequestError: no such change, another residue or none at that position, or two at one.
    """
    if text.upper() == "WT":
        return Variant(text, wild)
    letters, changes = list(wild), []
    for change in re.split(r"[:;,/+ ]+", text.strip()):
        match = SUBSTITUTION.fullmatch(change)
        if match is None:
            raise RequestError(f"{change!r:.40} is no substitution", expected="such as A24G:K30R")
        index = int(match[2]) - 1 - offset
        if not 0 <= index < len(wild):
            expected = f"a position from {offset + 1} to {offset + len(wild)}"
            raise RequestError(f"{change} is outside the wild type", expected=expected)
        if wild[index] != match[1]:
            seen = f"{change}: the wild type has {wild[index]} at {match[2]}"
            raise RequestError(seen, expected=match[1], fix="check the numbering: offset shifts it")
        changes.append(Change(change, index, match[3]))
        letters[index] = match[3]
    if len({change.index for change in changes}) < len(changes):
        raise RequestError(f"{text:.80} changes one position twice", expected="each once")
    return Variant(text, "".join(letters), tuple(changes))


def singles(wild: str, *, offset: int = 0, residues: str = RESIDUES) -> list[Variant]:
    """Every substitution of one residue, position by position."""
    return [
        parse(f"{old}{index + 1 + offset}{new}", wild, offset=offset)
        for index, old in enumerate(wild)
        for new in residues
        if new != old
    ]


def read(path: Path, wild: str, *, offset: int = 0, column: str = "mutant") -> list[Variant]:
    """Variants from FASTA, from a column of .csv or .tsv, or from the lines of another file.

    Raises:
        FileError: a row that is none, by its number.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        found = _cells(path, column)
    elif path.suffix.lower() in ProteinCodec.suffixes:
        return _sequences(path)
    else:
        lines = enumerate(read_text(path).splitlines(), 1)
        found = [(f"line {number}", line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise FileError(f"{path} holds no variant", expected="at least one")
    return [_at(path, place, text, wild, offset) for place, text in found]


def ratios(
    model: "Model",
    wild: str,
    asked: Sequence[Variant],
    *,
    family: str = "",
    template: str = "{}",
    width: int = 0,
) -> Iterator[Ratio]:
    """The ratio of each variant, in order; equal sequences are computed once.

    Args:
        model: of the codec `protein`, or of text, such as ProtGPT2 and ProGen2.
        wild: the whole sequence; with gaps, a row of the family.
        asked: from `parse`, `singles` or `read`.
        family: which one, where the model knows several.
        template: of a text model, what a sequence stands in, such as "1{}2".
        width: of a text model, symbols to a line; 0 is one line.

    Raises:
        RequestError: the model has no codec, what it has cannot hold the sequences, or an option
            is for models of another kind.
    """
    codec = codec_of(model, "a variant")
    _check(codec, family=family, template=template, width=width)
    frame = Frame(codec, wild, family) if isinstance(codec, ProteinCodec) else None
    known: dict[str, float] = {}

    def likelihood(sequence: str) -> float:
        row = frame.row(sequence) if frame else _lines(sequence, width)
        if row not in known:
            raws = frame.records(row) if frame else [template.replace("{}", row)]
            known[row] = -sum(model.score(raw).nats for raw in raws) / len(raws)
        return known[row]

    wild = wild.replace(GAP, "")
    base = likelihood(wild)
    for variant in asked:
        lost = [c for c in variant.changes if frame and not frame.scored(c.index)]
        names = tuple(change.name for change in lost)
        if lost and len(lost) == len(variant.changes):
            yield Ratio(variant, None, None, base, names)
            continue
        with named(variant.name):
            value = likelihood(variant.sequence)
        yield Ratio(variant, value - base, value, base, names)


def _check(codec: Codec, *, family: str, template: str, width: int) -> None:
    """Refuse what would have no effect."""
    if not isinstance(codec, ProteinCodec):
        if family:
            seen = f"family is {family!r:.40}, and the codec is {codec.name}"
            raise RequestError(seen, fix="leave it out")
        if "{}" not in template or width < 0:
            seen = f"template is {template!r:.80}, width {width}"
            raise RequestError(seen, expected="{} in the template, and a width of 0 or more")
    elif template != "{}" or width:
        seen = "template and width are given, and the codec is protein"
        raise RequestError(seen, fix="leave them out: they are for models of text")


class Frame:
    """How sequences become what a codec encodes: as they are, or as rows of a family's columns.

    The wild type is aligned to the family's consensus once (`aligned`), and its variants keep that
    alignment. Residues that are in no column are left out of every row; columns without a residue
    are gaps.

    Args:
        codec: of the model.
        wild: residues; with gaps it is a row already.
        family: which one; needed where the codec knows several.

    Raises:
        RequestError: the wild type cannot be aligned, or there is no such family.
    """

    def __init__(self, codec: ProteinCodec, wild: str, family: str = "") -> None:
        self.codec, self.mark = codec, codec.mark_of(family)
        self.size = len(wild.replace(GAP, ""))
        self.columns = self._columns(wild)

    def row(self, sequence: str) -> str:
        """What is encoded of a sequence.

        Raises:
            RequestError: it is longer or shorter than the wild type, and the columns are fixed.
        """
        if self.columns is None or (GAP in sequence and len(sequence) == len(self.columns)):
            return sequence
        if len(sequence) != self.size:
            seen = f"the sequence has {len(sequence)} residues"
            raise RequestError(seen, expected=f"{self.size}, as the wild type in its columns")
        return "".join(GAP if index is None else sequence[index] for index in self.columns)

    def records(self, row: str) -> list[Record]:
        """What is scored: in both directions, where the codec has both."""
        both = self.codec.how.direction == "both"
        return [Record(row, "", mark) for mark in ((FORWARD, BACKWARD) if both else (self.mark,))]

    def scored(self, index: int) -> bool:
        """Whether a residue of the wild type is in a column."""
        return self.columns is None or index in self.columns

    def _columns(self, wild: str) -> list[int | None] | None:
        """For each column the index of a residue; None where sequences stay as they are."""
        count, consensus = self.codec.columns[self.mark], self.codec.consensus.get(self.mark)
        if GAP in wild and count and len(wild) != count:
            seen = f"the wild type has gaps and {len(wild)} symbols"
            raise RequestError(seen, expected=f"a row of {count} columns, or no gaps")
        if GAP in wild or (count and len(wild) == count):
            residue = iter(range(len(wild)))
            return [None if letter == GAP else next(residue) for letter in wild]
        if count and consensus is None:
            seen = f"the wild type has {len(wild)} residues, and the model knows no consensus"
            raise RequestError(seen, expected=f"a row of its {count} columns, with gaps")
        protein = self.codec.how.alphabet == "protein"
        return aligned(wild, consensus, protein=protein) if consensus else None


def aligned(wild: str, consensus: str, *, protein: bool = True) -> list[int | None]:
    """For each column of a family the index of the wild type's residue, or None.

    A local alignment by Biopython's `PairwiseAligner` to the consensus without its gaps: BLOSUM62
    with -11 and -1 for gaps (as BLAST), or for DNA and RNA 2, -3 and gaps of -5 and -2. Its ends
    are prolonged without gaps as far as both go: a family's outer columns are seldom conserved.

    Raises:
        RequestError: Biopython is not installed, or nothing aligns.
    """
    try:
        from Bio.Align import PairwiseAligner, substitution_matrices
    except ImportError:
        seen = "to map a wild type to columns needs Biopython"
        raise RequestError(seen, fix='pip install "seriatim[protein]"') from None
    if protein:
        matrix = substitution_matrices.load("BLOSUM62")
        how = {"substitution_matrix": matrix, "open_gap_score": -11.0, "extend_gap_score": -1.0}
    else:
        how = {"match_score": 2.0, "mismatch_score": -3.0}
        how |= {"open_gap_score": -5.0, "extend_gap_score": -2.0}
    aligner = PairwiseAligner(mode="local", **how)
    kept = [at for at, letter in enumerate(consensus) if letter != GAP]
    plain = "".join(consensus[at] for at in kept)
    if aligner.score(wild, plain) <= 0:
        raise RequestError("the wild type aligns with none of the family", fix="check the family")
    (spans, others) = aligner.align(wild, plain)[0].aligned
    pairs = [
        (int(first) + step, int(start) + step)
        for (start, end), (first, _) in zip(spans, others, strict=True)
        for step in range(end - start)
    ]
    (first, start), (last, end) = pairs[0], pairs[-1]
    before, after = min(first, start), min(len(plain) - last, len(wild) - end)
    pairs += [(first - n, start - n) for n in range(1, before + 1)]
    pairs += [(last + n, end + n) for n in range(1, after)]
    columns: list[int | None] = [None] * len(consensus)
    for column, index in pairs:
        columns[kept[column]] = index
    return columns


def table(rows: Sequence[Ratio]) -> str:
    """CSV: a line for each variant, nats to six places; empty where nothing is scored."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in rows:
        values = (row.log_ratio, row.log_likelihood, row.wild_log_likelihood)
        numbers = ["" if value is None else f"{value:.6f}" for value in values]
        writer.writerow([row.variant.name, *numbers, " ".join(row.unscored)])
    return text.getvalue()


def _lines(sequence: str, width: int) -> str:
    rows = [sequence[at : at + width] for at in range(0, len(sequence), width)] if width else []
    return "\n".join(rows) if width else sequence


def _cells(path: Path, column: str) -> list[tuple[str, str]]:
    """A column of a table, with the line of each cell."""
    reader = csv.DictReader(
        StringIO(read_text(path)), delimiter="\t" if path.suffix.lower() == ".tsv" else ","
    )
    try:
        if column not in (names := reader.fieldnames or []):
            fix = did_you_mean(column, [*names])
            raise FileError(f"{path} has no column {column!r}", fix=fix)
        return [(f"line {reader.line_num}", (row[column] or "").strip()) for row in reader]
    except csv.Error as error:
        raise FileError(f"{path} line {reader.line_num}: {error}") from error


def _sequences(path: Path) -> list[Variant]:
    """Whole sequences; the codec looks at their symbols."""
    found = []
    for entry in _fasta.entries(path):
        if entry.fault:
            raise FileError(f"{path}: {entry.fault}")
        sequence = "".join(entry.lines).upper()
        found.append(Variant(entry.name or f"line {entry.line}", sequence))
    return found


def _at(path: Path, place: str, text: str, wild: str, offset: int) -> Variant:
    try:
        return parse(text, wild, offset=offset)
    except SeriatimError as error:
        seen = f"{path} {place}: {error.seen}"
        raise FileError(seen, expected=error.expected, fix=error.fix) from error


def wild_type(codec: Codec, given: str | Path) -> Record:
    """The wild type: a sequence, or the record of a FASTA file; it need not be as long as columns.

    Raises:
        RequestError, FileError: a symbol outside the alphabet, or another number of records.
    """
    options = codec.how if isinstance(codec, ProteinCodec) else Options()
    reader = ProteinCodec(Options(alphabet=options.alphabet, gaps=options.gaps))
    return reader.read(given) if isinstance(given, Path) else reader.canonical(given)


def residues(codec: Codec) -> str:
    """What may stand at a position: the alphabet without the unknown symbol and gaps."""
    if not isinstance(codec, ProteinCodec):
        return RESIDUES
    return codec.alphabet.rstrip(GAP).rstrip(codec.symbols.unknown)
