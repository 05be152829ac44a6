"""GPT-2's own files: a vocabulary (JSON) and a list of merges, one pair a line, best first."""

from pathlib import Path
from typing import TYPE_CHECKING

from seriatim.codecs._files import read_text
from seriatim.errors import FileError
from seriatim.files.jsonfile import read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMES = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")]
END = "<|endoftext|>"


def tokenizer(vocabulary: Path, merges: Path) -> "Tokenizer":
    """The byte-level BPE of a vocabulary and its merges (Radford et al. 2019).

    Raises:
        FileError: a file is damaged, or a merge makes something that has no id.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids, pairs = _ids(vocabulary), _pairs(merges)
    for left, right in pairs:
        if unknown := [text for text in (left, right, left + right) if text not in ids]:
            raise FileError(f"{merges}: {unknown[0]!r} has no id in {vocabulary.name}")
    made = Tokenizer(models.BPE(ids, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if END in ids:
        made.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return made


def _ids(path: Path) -> dict[str, int]:
    ids = read_object(path)
    known = set(ids.values()) if all(type(id) is int for id in ids.values()) else set()
    if known != set(range(len(ids))):
        raise FileError(f"{path} does not number its tokens", expected=f"ids 0 to {len(ids) - 1}")
    return ids


def _pairs(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        match line.rstrip("\r").split(" "):
            case [left, right] if left and right:
                pairs.append((left, right))
            case _:
                raise FileError(f"{path}, line {number}: {line!r}", expected="two tokens")
    return pairs
