"""What a sequence may be made of: options, symbols and what becomes of others, families."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seriatim.codecs._fasta import shown
from seriatim.errors import RequestError, SeriatimError

ALPHABETS = {"protein": "ACDEFGHIKLMNPQRSTVWYX", "dna": "ACGTN", "rna": "ACGUN"}  # unknown last
GAP = "-"
FORWARD, BACKWARD = "1", "2"  # marks of direction=both, as ProGen writes the two ends
MOST_FAMILIES, MOST_COLUMNS = 64, 1 << 14
LABEL = re.compile(r"[A-Za-z0-9_.-]{1,32}")
LOWER = {ord(c): c.upper() for c in map(chr, range(ord("a"), ord("z") + 1))}


@dataclass(frozen=True)
class Options:
    """What codec.json holds; the docstring of `protein.py` says what each is."""

    alphabet: Literal["protein", "dna", "rna"] = "protein"
    gaps: bool = False
    inserts: Literal["keep", "drop"] = "keep"
    direction: Literal["forward", "backward", "both"] = "forward"
    families: str = ""
    columns: str = ""
    consensus: str = ""
    errors: Literal["strict", "skip", "unknown"] = "strict"


class Odd(Exception):
    """A symbol outside the alphabet, by its index in a text."""

    def __init__(self, symbols: "Symbols", text: str, index: int) -> None:
        self.symbols, self.text, self.index = symbols, text, index

    def refused(self, place: str, kind: type[SeriatimError]) -> SeriatimError:
        """The error for it."""
        return kind(
            f"{place} is {shown(self.text[self.index])}",
            expected=f"one of {self.symbols.alphabet}",
            fix=f"errors=unknown makes it {self.symbols.unknown}, errors=skip leaves it out",
        )


class Symbols:
    """An alphabet, and what is made of other symbols.

    Attributes:
        alphabet: its letters, by id.
        unknown: the one that stands for any residue.
        unit: what one of them is.
    """

    def __init__(self, options: Options) -> None:
        letters = ALPHABETS[options.alphabet]
        self.alphabet, self.unknown = letters + GAP * options.gaps, letters[-1]
        residue = "residue" if options.alphabet == "protein" else "base"
        self.unit = "column" if options.gaps else residue
        self._errors, self._known = options.errors, frozenset(self.alphabet)
        dots = {ord("."): GAP} if options.gaps else {}
        drops = options.inserts == "drop"
        self._table = dict.fromkeys([*LOWER, ord(".")]) if drops else LOWER | dots

    def clean(self, text: str) -> tuple[str, int]:
        """Only symbols of the alphabet, and how many others there were.

        Raises:
            Odd: there is another, and errors=strict.
        """
        plain = text.translate(self._table)
        if self._known.issuperset(plain):
            return plain, 0
        others = set(plain) - self._known
        if self._errors == "strict":
            bad = {c for c in set(text) if not others.isdisjoint(c.translate(self._table))}
            raise Odd(self, text, next(at for at, c in enumerate(text) if c in bad))
        instead = None if self._errors == "skip" else self.unknown
        count = sum(map(plain.count, others))
        return plain.translate(dict.fromkeys(map(ord, others), instead)), count


class Families:
    """What options say of marks, and of the rows behind each.

    Attributes:
        marks: what an id in front may say: a direction, or a family.
        columns: how long a row with each mark is; 0 is any length.
        consensus: the likeliest row with each mark, where it is known.

    Raises:
        RequestError: the options contradict each other.
    """

    def __init__(self, options: Options) -> None:
        self.marks = _marks(options)
        keys = self.marks or ("",)
        self.columns = dict(zip(keys, _columns(options, len(keys)), strict=True))
        self.consensus = self._rows(options) if options.consensus else {}

    def _rows(self, options: Options) -> dict[str, str]:
        rows = options.consensus.split("+")
        rows *= 1 if options.families else len(self.columns)
        right = [
            0 < len(row) == most for row, most in zip(rows, self.columns.values(), strict=False)
        ]
        known = set("".join(rows)) <= {*Symbols(options).alphabet}
        if not known or not all(right) or len(rows) != len(self.columns):
            seen = f"protein:consensus is {options.consensus!r:.60}"
            raise RequestError(seen, expected="a row of each family")
        return dict(zip(self.columns, rows, strict=True))


class Profile:
    """How often each symbol stands in each column of the rows of a family."""

    def __init__(self, alphabet: str) -> None:
        self.alphabet, self.rows = alphabet, 0
        self._codes = np.zeros(128, np.intp)
        self._codes[[*alphabet.encode()]] = range(len(alphabet))
        self._counts = np.zeros((0, len(alphabet)), np.int64)  # [column, symbol]

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, row: str) -> None:
        """Counts a row, if it is as long as the first one was."""
        if not self.rows:
            self._counts = np.zeros((len(row), len(self.alphabet)), np.int64)
        if len(row) == len(self):
            codes = self._codes[np.frombuffer(row.encode(), np.uint8)]
            self._counts[np.arange(len(row)), codes] += 1
            self.rows += 1

    def consensus(self) -> str:
        """The commonest residue of each column, or a gap where most rows have one."""
        gap, unknown = self.alphabet.index(GAP), self.alphabet.index(GAP) - 1
        best = np.where(
            self._counts[:, gap] * 2 > self.rows, gap, self._counts[:, :unknown].argmax(1)
        )
        return "".join(self.alphabet[code] for code in best)


def _marks(options: Options) -> tuple[str, ...]:
    labels = tuple(options.families.split("+")) if options.families else ()
    if len(set(labels)) < len(labels) or not all(map(LABEL.fullmatch, labels[:MOST_FAMILIES])):
        expected = "labels such as PF00014+PF00595, each once"
        raise RequestError(f"protein:families is {options.families!r:.80}", expected=expected)
    if len(labels) > MOST_FAMILIES:
        seen = f"protein:families has {len(labels)} labels"
        raise RequestError(seen, expected=f"at most {MOST_FAMILIES}")
    if options.direction != "both":
        return labels
    if labels:
        raise RequestError("protein has families and direction=both", expected="one of them")
    return FORWARD, BACKWARD


def _columns(options: Options, marks: int) -> list[int]:
    if not options.columns:
        return [0] * marks
    texts = options.columns.split("+")
    if not options.families:
        texts *= marks
    right = all(re.fullmatch("[1-9][0-9]{0,4}", text) for text in texts)
    if not right or len(texts) != marks or max(map(int, texts)) > MOST_COLUMNS:
        expected = f"{marks} from 1 to {MOST_COLUMNS}" if options.families else "one number"
        raise RequestError(f"protein:columns is {options.columns!r:.80}", expected=expected)
    return [*map(int, texts)]
