"""Proteins, DNA and RNA: one id for each residue, from and to FASTA; rows of aligned families too.

Options, as in "protein:gaps=true,direction=both":

    alphabet   protein (20 residues and X), dna (ACGT and N) or rna (ACGU and N)
    gaps       true: rows of an alignment, in which "-" is a symbol and "." means it
    inserts    keep, or drop: lower case and "." are insertions (A3M, Stockholm) and left out
    direction  forward (N to C, or 5' to 3'), backward, or both: an id in front, "1" or "2", says it
    families   labels such as PF00014+PF00595: an id in front says which family follows
    columns    how long every row is, one number or one for each family: 53+82
    consensus  the likeliest row, likewise; training fills both in from its files
    errors     strict, skip (other symbols are left out, and counted) or unknown (made X or N)

    codec = codecs.made("protein")
    codec.decode(codec.encode("MKV")).sequence  # "MKV"
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.codecs import _fasta
from seriatim.codecs._base import Base, refused, words
from seriatim.codecs._files import named
from seriatim.codecs._options import parse
from seriatim.codecs._residues import BACKWARD, FORWARD, Families, Odd, Options, Profile, Symbols
from seriatim.errors import FileError, RequestError, SeriatimError, did_you_mean

END_TEXT = "<|end|>"
_MARKED = re.compile(r"(?:(.*) )?mark=(\S+)")  # at the end of a FASTA name


@dataclass(frozen=True)
class Record:
    """A sequence, always from N to C (5' to 3'), whichever way its ids go.

    Attributes:
        sequence: residues in upper case; in aligned families with gaps.
        name: what FASTA calls it; a model does not see it.
        mark: the id in front, where the codec has such: "1", "2" or a family.
        changed: how many symbols the option `errors` left out or made unknown.
    """

    sequence: str
    name: str = ""
    mark: str = ""
    changed: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.sequence

    def __len__(self) -> int:
        return len(self.sequence)


class ProteinCodec(Base):
    """Ids of symbols, then of marks, then the one that starts and ends a sequence.

    Its raw object is a `Record`. A plain `str` is its literal form: a sequence, with its mark
    before a colon ("2:MKV", "PF00014:-CLD"), or a FASTA text of one record.
    """

    name = "protein"
    suffixes = (".fasta", ".fa", ".faa", ".fna", ".a3m", ".gz")

    def __init__(self, options: Options) -> None:
        self.options, self.how = asdict(options), options
        self.symbols, families = Symbols(options), Families(options)
        self.alphabet, self.unit = self.symbols.alphabet, self.symbols.unit
        self.marks, self.columns = families.marks, families.columns
        self.consensus = families.consensus
        self.size = len(self.alphabet) + len(self.marks) + 1
        self.start = self.ends = (self.size - 1,)
        self.specials = {END_TEXT: self.size - 1}
        self._codes = bytes.maketrans(self.alphabet.encode(), bytes(range(len(self.alphabet))))

    # ---------------------------------------------------------------- raw objects

    def canonical(self, raw: "Record | str", /) -> Record:
        """The record in upper case, with its mark and without its name.

        Raises:
            RequestError: no record, a symbol outside the alphabet, a mark that there is not, or
                more symbols than the family has columns.
        """
        record = self._parsed(raw)
        try:
            sequence, changed = self.symbols.clean(record.sequence.strip())
        except Odd as odd:
            raise odd.refused(f"position {odd.index + 1} of the sequence", RequestError) from None
        record = Record(sequence, "", self.mark_of(record.mark), record.changed + changed)
        if (most := self.columns.get(record.mark)) and len(record) > most:
            family = f" of {record.mark}" * bool(record.mark)
            seen = f"the row{family} has {len(record)} symbols"
            raise RequestError(seen, expected=f"at most {most}, its columns")
        return record

    def backward(self, mark: str) -> bool:
        """Whether what has this mark goes from C to N."""
        both = self.how.direction == "both"
        return mark == BACKWARD if both else self.how.direction == "backward"

    def turned(self, letters: str, mark: str) -> str:
        """From the order of ids to that of a record, and back."""
        return letters[::-1] if self.backward(mark) else letters

    def encode(self, raw: "Record | str", /) -> list[int]:
        """Its mark, if the codec has such, and an id for each symbol."""
        record = self.canonical(raw)
        letters = self.turned(record.sequence, record.mark).encode().translate(self._codes)
        return [*([self.mark_id(record.mark)] if record.mark else []), *letters]

    def mark_id(self, mark: str) -> int:
        """The id of a mark."""
        return len(self.alphabet) + self.marks.index(mark)

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> Record:
        """The record of `ids`; its mark is the first in front of them."""
        mark = self._first_mark([*after, *ids])
        return Record(self.turned("".join(map(self.shown, ids)), mark), "", mark)

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many symbols."""
        return sum(id < len(self.alphabet) for id in ids)

    def differs(self, ids: Sequence[int]) -> bool:
        """Whether `ids` are anything but symbols, behind a mark or in the middle of a sequence."""
        return any(id >= len(self.alphabet) for id in ids[int(self._is_mark(ids[:1])) :])

    def shown(self, id: int) -> str:
        """A symbol; marks and the end are none."""
        return self.alphabet[id] if 0 <= id < len(self.alphabet) else ""

    def pieces(self) -> list[bytes]:
        """A symbol's byte for each id, none for marks and the end."""
        return [self.shown(id).encode() for id in range(self.size)]

    def lead(self, after: Sequence[int], /) -> bytes:
        """Nothing is dropped."""
        return b""

    def legal(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> np.ndarray:
        """A mark first, then symbols, as many as the family has columns, then the end."""
        whole = [*after, *ids]
        end, symbols = self.ends[0], len(self.alphabet)
        begun = whole[len(whole) - whole[::-1].index(end) :] if end in whole else whole
        if self.marks and not begun:
            return words(self._bits(range(symbols, end)))
        count, most = self.units(begun), self.columns.get(self._first_mark(begun), 0)
        more = range(symbols) if not most or count < most else ()
        over = (end,) if count and (not most or count >= most) else ()
        return words(self._bits([*more, *over]))

    # ---------------------------------------------------------------- files

    def read(self, path: Path, /) -> Record:
        """The record of a FASTA file that holds one.

        Raises:
            FileError: it is no FASTA, holds several, or one that is refused.
        """
        with named(path):
            return self._only(_fasta.entries(path), path)

    def records(self, path: Path, /) -> Iterator[tuple[str, Record | SeriatimError]]:
        """The records of a FASTA file, one at a time, each with the line of its header.

        With direction=both, half of them go backward: those whose sequence has an odd hash.
        """
        for entry in _fasta.entries(path):
            try:
                record = self._made(entry, path)
            except FileError as error:
                yield f"line {entry.line}", error
                continue
            if self.how.direction == "both" and not self._named_mark(entry.name)[1]:
                odd = hashlib.sha256(record.sequence.encode()).digest()[0] & 1
                record = replace(record, mark=BACKWARD if odd else FORWARD)
            yield f"line {entry.line}", record

    def write(self, raw: "Record | str", path: Path, /) -> None:
        """Writes FASTA, 60 symbols to a line, gzipped where the name ends in .gz."""
        record = self._parsed(raw)
        plain = self.canonical(record)
        marked = f" mark={plain.mark}" if plain.mark else ""
        _fasta.write(path, f"{record.name}{marked}".strip(), plain.sequence)

    def fitted(self, files: Sequence[Path], /) -> "ProteinCodec":
        """Of aligned families: this codec with their columns and consensus, from their first rows.

        How long the first row of a family is, every row must be; the consensus is the commonest
        residue of each column, or a gap where most rows have one.
        """
        if not self.how.gaps or self.how.consensus:
            return self
        several = self.how.families != ""
        profiles = {label: Profile(self.alphabet) for label in (self.marks if several else ("",))}
        for path in files:
            for _, record in self.records(path):
                if isinstance(record, Record):
                    profiles[record.mark if several else ""].add(record.sequence)
        columns, consensus = [], []
        for label, profile in profiles.items():
            if not profile.rows:
                raise RequestError(f"no row of {label or 'the alignment'} is in the files")
            columns.append(str(len(profile)))
            consensus.append(profile.consensus())
        found = {"columns": "+".join(columns), "consensus": "+".join(consensus)}
        return ProteinCodec(replace(self.how, **found))

    def examples(self) -> list[Record]:
        """All symbols, in every mark there is."""
        letters = self.alphabet * 2
        rows = [
            Record(self._sized(letters[at:], mark), f"example {at}", mark)
            for mark in self.marks or ("",)
            for at in (0, 3)
        ]
        return [*rows, Record(self._sized("A", rows[0].mark), "", rows[0].mark)]

    def render(self, raw: "Record | str", /) -> dict[str, Any]:
        """The symbols in the order of the ids, and FASTA."""
        record = raw if isinstance(raw, Record) else self.canonical(raw)
        fasta = f">{record.name}\n{record.sequence}\n"
        return {"text/plain": self.turned(record.sequence, record.mark), "text/x-fasta": fasta}

    # ---------------------------------------------------------------- parts

    def _parsed(self, raw: Any) -> Record:
        """A record, or the one that text stands for."""
        if isinstance(raw, Record):
            return raw
        if not isinstance(raw, str):
            raise refused(self.name, raw, "a Record, or text")
        if raw.startswith(">"):
            return self._only(_fasta.parsed(BytesIO(raw.encode(errors="surrogatepass"))), None)
        mark, colon, rest = raw.partition(":")
        return Record(rest, "", mark.strip()) if colon and self.marks else Record(raw)

    def mark_of(self, mark: str) -> str:
        """A mark as it is, or the one that goes without saying.

        Raises:
            RequestError: there is no such mark, or there are several and none is given.
        """
        if mark in self.marks or not (mark or self.marks):
            return mark
        if not mark and (self.how.direction == "both" or len(self.marks) == 1):
            return self.marks[0]
        fix = did_you_mean(mark, self.marks) if self.marks else "leave it out"
        expected = "MARK:SEQUENCE" if self.marks else "none: the codec has no marks"
        raise RequestError(f"the mark is {mark!r:.40}", expected=expected, fix=fix)

    def _only(self, found: Iterator[_fasta.Entry], path: Path | None) -> Record:
        record = self._made(next(found), path)
        if (other := next(found, None)) is not None:
            fix = "give one; score reads several"
            raise FileError(f"line {other.line} begins a second record", expected="one", fix=fix)
        return record

    def _made(self, entry: _fasta.Entry, path: Path | None) -> Record:
        """A whole record of a file.

        Raises:
            FileError: it is none, at this line and column.
        """
        if entry.fault:
            raise FileError(entry.fault)
        try:
            sequence, changed = self.symbols.clean("".join(entry.lines))
            name, mark = self._named_mark(entry.name)
            mark = self.mark_of(mark or self._family(path))
        except Odd as odd:
            raise odd.refused(entry.where(odd.index), FileError) from None
        except RequestError as error:
            seen = f"line {entry.line}: {error.seen}"
            fix = "name the file after its family, or end each header with mark=FAMILY"
            raise FileError(seen, expected=error.expected, fix=fix) from None
        count = self.columns.get(mark, 0)
        if not sequence or (count and len(sequence) != count):
            seen = f"line {entry.line}: the record has {len(sequence)} symbols"
            fix = "inserts=drop leaves lower case and . out" if count else ""
            raise FileError(seen, expected=str(count or "at least one"), fix=fix)
        return Record(sequence, name, mark, changed)

    def _named_mark(self, name: str) -> tuple[str, str]:
        """A name in FASTA, and the mark that it ends with."""
        match = _MARKED.fullmatch(name) if self.marks else None
        return (match[1] or "", match[2]) if match else (name, "")

    def _family(self, path: Path | None) -> str:
        """The longest label that a file's name begins with."""
        name = "" if path is None or not self.how.families else path.name.casefold()
        return max((m for m in self.marks if name.startswith(m.casefold())), key=len, default="")

    def _bits(self, ids: Iterable[int]) -> np.ndarray:
        bits = np.zeros(self.size, bool)
        bits[[*ids]] = True
        return bits

    def _is_mark(self, ids: Sequence[int]) -> bool:
        return any(len(self.alphabet) <= id < self.ends[0] for id in ids)

    def _first_mark(self, ids: Sequence[int]) -> str:
        if not self.marks:
            return ""
        first = next((id for id in ids if self._is_mark([id])), None)
        return "" if first is None else self.marks[first - len(self.alphabet)]

    def _sized(self, letters: str, mark: str) -> str:
        """As many as the columns of a mark."""
        count = self.columns.get(mark, 0)
        return (letters * (count // len(letters) + 1))[:count] if count else letters


def make(options: Mapping[str, Any]) -> ProteinCodec:
    """The codec of that name.

    Raises:
        RequestError: an option that it does not have.
    """
    return ProteinCodec(parse(Options, options, "protein"))


def load(folder: Path, options: dict[str, Any]) -> ProteinCodec:
    """The codec of a folder whose codec.json names it.

    Raises:
        FileError: an option that it does not have.
    """
    try:
        return make(options)
    except RequestError as error:
        path = folder / "codec.json"
        raise FileError(f"{path}: {error.seen}", expected=error.expected, fix=error.fix) from error


def specimens() -> list[ProteinCodec]:
    """Codecs for the law tests."""
    consensus = "AC-DE+ACDEFG-"
    return [
        ProteinCodec(Options()),
        ProteinCodec(Options(alphabet="dna", direction="backward", errors="unknown")),
        ProteinCodec(Options(alphabet="rna", direction="both", errors="skip")),
        ProteinCodec(Options(gaps=True, columns="9")),
        ProteinCodec(Options(gaps=True, families="A1+B", columns="5+7", consensus=consensus)),
    ]
