"""Which of a model folder's files say what its ids mean, read into a `tokenizers.Tokenizer`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seriatim.codecs import _gpt2, _sentencepiece
from seriatim.codecs._checks import check
from seriatim.codecs._files import named, read_text
from seriatim.codecs._pieces import BYTE_TOKENS
from seriatim.codecs._scored import build
from seriatim.errors import FileError
from seriatim.files.jsonfile import read_object
from seriatim.files.llama2c_vocab import read_vocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GPT2_CLASSES = {"GPT2Tokenizer", "GPT2TokenizerFast", None}


@dataclass(frozen=True)
class Source:
    """A tokenizer, the file it came from, and the ids that end a sequence."""

    path: Path
    tokenizer: "Tokenizer"
    ends: tuple[int, ...]


def find(folder: Path) -> Source | None:
    """The tokenizer of a folder: tokenizer.json, else a .model, else GPT-2's two files, else None.

    Raises:
        FileError: a file is damaged, or would be reproduced only in part.
    """
    if (path := folder / "tokenizer.json").exists():
        tokenizer = parse(path)
        return Source(path, tokenizer, _ends(folder, tokenizer))
    models = sorted(folder.glob("*.model"))
    pairs = [(folder / ids, folder / merges) for ids, merges in _gpt2.NAMES]
    pair = next((pair for pair in pairs if pair[0].exists() and pair[1].exists()), None)
    if (path := folder / "added_tokens.json").exists() and (models or pair):
        raise FileError(f"{path} changes the ids of other files", fix="give tokenizer.json instead")
    if models:
        return _from_model(folder, models)
    return _from_gpt2(folder, *pair) if pair else None


def parse(path: Path) -> "Tokenizer":
    """A tokenizer.json.

    Raises:
        FileError: it is not one that `tokenizers` can read.
    """
    from tokenizers import Tokenizer

    with named(path):
        check(read_object(path))
        try:
            return Tokenizer.from_str(read_text(path))
        except BaseException as error:  # a panic of `tokenizers` is no Exception
            if isinstance(error, FileError | KeyboardInterrupt):
                raise
            raise FileError(f"no tokenizer: {error}", expected="tokenizer.json") from error


def from_llama2c(path: Path) -> Source:
    """The tokenizer of llama2.c's tok*.bin: 1 starts a text, and `run.c` ends one at 1 or 2.

    Raises:
        FileError: the file is damaged, or its first ids are not the special and the byte ones.
    """
    pieces, scores = read_vocab(path)
    if pieces[3:259] != BYTE_TOKENS:
        raise FileError(f"{path}: ids 3 to 258 are not <0x00> to <0xFF>", expected="a tok*.bin")
    mergeable = dict(zip(pieces[259:], scores[259:], strict=True))
    special, start = pieces[:3], pieces[1]
    with named(path):
        made = build(pieces, mergeable, space=" ", prefix=True, specials=special, start=start)
    return Source(path, made, (1, 2))


def _from_model(folder: Path, models: list[Path]) -> Source:
    path = folder / "tokenizer.model" if len(models) > 1 else models[0]
    add_start = _config(folder).get("add_bos_token", True)
    with named(path):
        return Source(path, *_sentencepiece.tokenizer(path, add_start=bool(add_start)))


def _from_gpt2(folder: Path, ids: Path, merges: Path) -> Source:
    if (named := _config(folder).get("tokenizer_class")) not in _GPT2_CLASSES:
        fix = "give tokenizer.json, which says how text is cut"
        raise FileError(f"{folder} is for {named}", expected="GPT-2's tokenizer", fix=fix)
    tokenizer = _gpt2.tokenizer(ids, merges)
    end = tokenizer.token_to_id(_gpt2.END)
    return Source(ids, tokenizer, () if end is None else (end,))


def _ends(folder: Path, tokenizer: "Tokenizer") -> tuple[int, ...]:
    match _config(folder).get("eos_token"):
        case str(text) | {"content": str(text)}:
            id = tokenizer.token_to_id(text)
            return () if id is None else (id,)
    return ()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.exists() else {}
