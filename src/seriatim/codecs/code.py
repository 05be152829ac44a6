"""Code with a gap to fill, as the families of code models write it.

A prompt shows what comes before and after the gap, in the order prefix, suffix, middle or suffix,
prefix, middle (Bavarian et al. 2022, arXiv:2207.14255), and the model writes the middle. The ids
around the parts are the tokenizer's own added ones; the parts are plain text, whatever they say.

Other files of a repository stand before the gap: behind the family's own marks of files, or else
in its prefix, each behind a comment with its path.

    code.infill(codec, code.of(codec), "def f(x):\n    return ", "\n")
    codec = code.train(texts, vocab_size=4096)  # with StarCoder's ids
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from seriatim.codecs import Codec, text
from seriatim.codecs._cuts import CUTS
from seriatim.codecs._files import write_json
from seriatim.codecs._options import parse
from seriatim.codecs._repository import Repository, Shown, comment, fitted
from seriatim.errors import FileError, RequestError, shown
from seriatim.files.jsonfile import read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREFIX, SUFFIX = "prefix", "suffix"  # the places of the two texts in an order
ORDERS = ("psm", "spm")
(SPLIT,) = CUTS["qwen2"].patterns  # how the vocabularies that are trained here cut text


@dataclass(frozen=True)
class Family:
    """How one family of models writes a gap.

    Attributes:
        name: of the models.
        psm, spm: the texts of the ids around PREFIX and SUFFIX; no `spm`: none was published.
        file, repository: the texts before a file's and a repository's name.
        ends: texts whose ids end the middle, beside those of `psm`, `file` and `repository`.
        tight: a suffix begins without the space that the tokenizer puts in front of a text.
        outside: the name of the file with the gap, and that of the repository, end with a newline
            before the ids of the gap; else the first begins the prefix.
        between: the text of `file` stands between files, and not before the first.
    """

    name: str
    psm: tuple[str, ...]
    spm: tuple[str, ...] = ()
    file: str = ""
    repository: str = ""
    ends: tuple[str, ...] = ()
    tight: bool = False
    outside: bool = False
    between: bool = False

    @property
    def marks(self) -> set[str]:
        """The texts without which a vocabulary is of another family."""
        return {*self.psm, self.file, self.repository} - {PREFIX, SUFFIX, ""}


def _family(name: str, begin: str, suffix: str, middle: str, **rest: Any) -> Family:
    """One whose orders are those of SantaCoder: the second is "variant 2" of the paper."""
    psm = (begin, PREFIX, suffix, SUFFIX, middle)
    return Family(name, psm, (begin, suffix, SUFFIX, middle, PREFIX), **rest)


_STAR = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
_QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_PADS = ("<fim_pad>", "<|endoftext|>")

# From the models' cards, papers and tokenizers; the first whose marks are all there is meant.
FAMILIES = (
    _family("StarCoder2", *_STAR, file="<file_sep>", repository="<repo_name>", ends=_PADS),
    _family("StarCoder", *_STAR, file="<filename>", repository="<reponame>", ends=_PADS),
    _family("others with StarCoder's", *_STAR, ends=_PADS),
    _family(
        "SantaCoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>",
        ends=("<fim-pad>", "<|endoftext|>"),
    ),
    _family(
        "CodeLlama", "▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",), tight=True
    ),
    Family(
        "Qwen2.5-Coder", (_QWEN[0], PREFIX, _QWEN[1], SUFFIX, _QWEN[2]),
        file="<|file_sep|>", repository="<|repo_name|>",
        ends=("<|fim_pad|>", "<|endoftext|>", "<|im_end|>"), outside=True,
    ),
    Family(
        "CodeGemma", (_QWEN[0], PREFIX, _QWEN[1], SUFFIX, _QWEN[2]),
        file="<|file_separator|>", outside=True, between=True,
    ),
    Family(
        "DeepSeek-Coder",
        ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),
        ends=("<|EOT|>", "<｜end▁of▁sentence｜>"),
    ),
)  # fmt: skip


def of(codec: Codec) -> Family:
    """The family whose ids a codec has.

    Raises:
        RequestError: it has none that mark a gap.
    """
    found = next((f for f in FAMILIES if f.marks <= codec.added.keys()), None)
    if found is None:
        names = ", ".join(family.name for family in FAMILIES)
        raise RequestError(
            "the model cannot fill a gap: its vocabulary has no ids that mark one",
            expected=f"added ids such as {', '.join(_STAR)}: those of {names}",
            fix="use a model that was trained to infill, or give a prompt",
        )
    return found


def infill(codec: Codec, family: Family, prefix: Any, suffix: Any, order: str = "psm") -> list[int]:
    """The ids that ask for what lies between two texts; the start id is not among them.

    Args:
        codec: of the model.
        family: how it writes a gap.
        prefix: what comes before the gap.
        suffix: what comes after it.
        order: "psm" or "spm": which of the two is shown first.

    Raises:
        RequestError: an order that is none, or that the family does not have; a text that the
            vocabulary cannot express.
    """
    after = _piece(codec, family, suffix, first=False)
    return framed(codec, family, part(codec, family, prefix), after, order)


def surrounded(
    codec: Codec, family: Family, prefix: str, suffix: str, around: Repository, order: str = "psm"
) -> tuple[list[int], list[Shown]]:
    """The ids of `infill` with other files before them, and how much of these is shown.

    Args:
        codec: of the model.
        family: how it writes a gap, and files.
        prefix, suffix: what is around the gap in its own file.
        around: the other files, names, and the budget of ids.
        order: "psm" or "spm".

    Raises:
        RequestError: as `infill`; a name that the family has no place for; files that nothing
            would tell from the prefix.
    """
    if around.name and not family.repository:
        seen = f"repository is {shown(around.name)} and {family.name} has no mark for its name"
        raise RequestError(seen, fix="leave it out")
    if around.files and not (family.file or around.file):
        seen = f"files are given and {family.name} has no mark between files"
        raise RequestError(seen, expected="file, the path of the one with the gap")
    files, account = _files(codec, family, around)
    if not family.file:
        own = comment(around.file) if around.file else ""
        before = [*files, *_piece(codec, family, own + prefix, first=not files)]
        after = _piece(codec, family, suffix, first=False)
        return framed(codec, family, before, after, order), account
    own = f"{around.file}\n" if around.file else ""
    mark = [] if family.between and not files else [codec.added[family.file]]
    lead = [*_repository(codec, family, around.name), *files, *mark]
    if family.outside:
        lead, own = [*lead, *part(codec, family, own)], ""
    return [*lead, *infill(codec, family, own + prefix, suffix, order)], account


def _repository(codec: Codec, family: Family, name: str) -> list[int]:
    """The ids of a repository's name."""
    if not name:
        return []
    text = f"{name}\n" if family.outside else name
    return [codec.added[family.repository], *part(codec, family, text)]


def _files(codec: Codec, family: Family, around: Repository) -> tuple[list[int], list[Shown]]:
    """The ids of the files that fit the budget, and an account of all."""
    ways = (True, False) if family.tight else (True,)

    def cost(path: str, text: str) -> int:
        return max(len(_file(codec, family, path, text, first)) for first in ways)

    ids: list[int] = []
    account = []
    for path, kept, lines, total in fitted(around, cost):
        own = [] if kept is None else _file(codec, family, path, kept, not ids)
        own = own[1:] if family.between and not ids else own
        account.append(Shown(path, lines, total, len(own)))
        ids += own
    return ids, account


def _file(codec: Codec, family: Family, path: str, text: str, first: bool) -> list[int]:
    """The ids of a file: its mark and path, or a comment; its last line ends."""
    text += "" if not text or text.endswith("\n") else "\n"
    if not family.file:
        return _piece(codec, family, comment(path) + text, first)
    return [codec.added[family.file], *part(codec, family, f"{path}\n{text}")]


def _piece(codec: Codec, family: Family, text: str, first: bool) -> list[int]:
    """The ids of a text that begins a prefix, or goes on from another."""
    tight = family.tight and not first
    return _tight(codec, family, text) if tight else part(codec, family, text)


def part(codec: Codec, family: Family, raw: Any) -> list[int]:
    """The ids of one part, which is plain text whatever it says."""
    return codec.weave([raw], quoted=_quoted(family))


def framed(
    codec: Codec, family: Family, prefix: Sequence[int], suffix: Sequence[int], order: str
) -> list[int]:
    """The ids of two parts in an order, with the ids that mark them: the middle follows.

    Raises:
        RequestError: an order that is none, or that the family does not have.
    """
    if order not in ORDERS:
        raise RequestError(f"fim_order is {shown(order)}", expected="'psm' or 'spm'")
    if order == "spm" and not family.spm:
        raise RequestError(
            f"fim_order is 'spm' and {family.name} has no such order", fix="use 'psm'"
        )
    parts = {PREFIX: prefix, SUFFIX: suffix}
    places = family.spm if order == "spm" else family.psm
    found = (parts[place] if place in parts else [codec.added[place]] for place in places)
    return [id for ids in found for id in ids]


def ends(codec: Codec, family: Family) -> tuple[int, ...]:
    """The ids that end a middle: what belongs to no text of a file."""
    texts = sorted(_quoted(family))
    return tuple(codec.added[text] for text in texts if text in codec.added)


@dataclass(frozen=True)
class Options:
    """What may be asked of the codec by its name: "code:order=spm".

    Attributes:
        order: of the two texts around a gap, where a request names none.
    """

    order: Literal["psm", "spm"] = "psm"


class CodeCodec(text.TextCodec):
    """Code by a tokenizer that can mark gaps.

    Raises:
        RequestError: it has no ids that mark a gap.
    """

    name = "code"

    def __init__(
        self, tokenizer: "Tokenizer", *, ends: Sequence[int] = (), order: str = "psm"
    ) -> None:
        super().__init__(tokenizer, ends=ends)
        self.family, self.order = of(self), order

    @classmethod
    def over(cls, base: text.TextCodec, order: str = "psm") -> "CodeCodec":
        """The same ids as those of a codec of text."""
        return cls(base._tokenizer, ends=base.ends, order=order)

    def infill(self, prefix: Any, suffix: Any, order: str | None = None) -> list[int]:
        """The ids that ask for what lies between two texts."""
        return infill(self, self.family, prefix, suffix, order or self.order)

    def save(self, folder: Path, /) -> None:
        """Writes codec.json and the tokenizer files that give the same ids elsewhere."""
        super().save(folder)
        if self.order != "psm":
            said = read_object(path := folder / "codec.json")
            write_json(path, said | {"options": said["options"] | {"order": self.order}})


def order_of(codec: Codec) -> str:
    """The order of the two texts around a gap, where a request names none."""
    return codec.order if isinstance(codec, CodeCodec) else "psm"


def train(
    texts: Iterable[str], vocab_size: int, options: Mapping[str, str] = MappingProxyType({})
) -> CodeCodec:
    """A byte-level BPE of at most `vocab_size` ids that can mark gaps, as StarCoder does.

    Digits stand alone; runs of spaces, and signs with the ends of their lines, are tokens: the rule
    is that of Qwen2.5-Coder (`_cuts`), so that other programs know it.

    Raises:
        RequestError: `vocab_size` has no room for the bytes and the special ids, or an option that
            there is not.
    """
    chosen = parse(Options, options, "code")
    return CodeCodec.over(text.train(texts, vocab_size, marks=_STAR, split=SPLIT), chosen.order)


def load(folder: Path, options: dict[str, Any]) -> CodeCodec | None:
    """The codec of a folder with tokenizer files.

    Raises:
        FileError: a file is damaged, `options` holds what the text codec does not know, or the
            vocabulary has no ids that mark a gap.
    """
    own = {name: value for name, value in options.items() if name == "order"}
    if (base := text.load(folder, {n: v for n, v in options.items() if n not in own})) is None:
        return None
    try:
        return CodeCodec.over(base, parse(Options, own, "code").order)
    except RequestError as error:
        raise FileError(f"{folder}: {error.seen}", expected=error.expected) from error


def specimens() -> list[CodeCodec]:
    """Codecs for the law tests."""
    more = [*_STAR, "<file_sep>", "<repo_name>"]
    return [
        CodeCodec.over(text.train(text.EXAMPLES, 305, marks=more)),
        train(text.EXAMPLES, 300, {"order": "spm"}),
    ]


def _quoted(family: Family) -> set[str]:
    return {*family.marks, *family.ends}


def _tight(codec: Codec, family: Family, suffix: str) -> list[int]:
    """A text without the space in front: CodeLlama's `encode_infilling`, face and all."""
    face = codec.weave(["☺"])
    ids = codec.weave(["☺" + suffix], quoted=_quoted(family))
    if ids[: len(face)] != face:
        raise RequestError(f"the tokenizer joins '☺' to {suffix!r:.40}", fix="use another suffix")
    return ids[len(face) :]
