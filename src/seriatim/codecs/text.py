"""Text by a trained tokenizer: tokenizer.json, SentencePiece, GPT-2's and llama2.c's files.

The ids are those of the `tokenizers` library. Decoding is over bytes (`_pieces`), so that it can be
followed one id at a time. Nothing is truncated or padded, whatever a file asks for.

    codec = train(texts, vocab_size=4096)
    codec.save(folder)
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import numpy as np

from seriatim.codecs import _sources
from seriatim.codecs._files import named, read_text, write
from seriatim.codecs._pieces import BYTE_TOKENS, rule
from seriatim.codecs._safe import cuttable, last_cut
from seriatim.codecs._scored import build
from seriatim.codecs._utf8 import Utf8Stream
from seriatim.errors import FileError, ModelError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|end|>"  # starts and ends a text in the vocabularies that are trained here

LONG = 1 << 14  # characters: 15 ms, in which `tokenizers` would let no other thread run

# GPT-4's way to cut text before merging, as Llama 3 spells it: no token spans a word's border, and
# digits go by threes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

EXAMPLES = [
    "",
    " ",
    "\n",
    "\0",
    "Once upon a time",
    "  two  spaces\t\ttabs \r\n\r\n lines   ",
    "don't WON'T it's 1234567 3.14",
    "naïve café cafe\u0301 e\u0323\u0302 Å Å",
    "日本語のテキスト、中文。한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽",
    "مرحبا עברית हिन्दी ไทย",
    "▁ Ġ Ċ ## @@ <0x0A> \ufeff\u2028\u200b",
    "<s></s><unk><pad><|endoftext|><|end|>[INST]",
    "def f(x):\n    return {'a': [x ** 2]}  # ≥",
]


class TextCodec:
    """A `tokenizers.Tokenizer` behind the codec contract; its raw object is `str`.

    Args:
        tokenizer: it is changed so that it adds, cuts and pads nothing.
        ends: the ids that end a sequence.

    Raises:
        FileError: its decoder is of an unknown kind.
        ModelError: it would read plain text as a special id.
    """

    name, unit = "text", "byte"

    def __init__(self, tokenizer: "Tokenizer", *, ends: Sequence[int] = ()) -> None:
        self._tokenizer, self._rule = tokenizer, rule(tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
        self.size = max(vocabulary.values(), default=-1) + 1
        self.ends = tuple(dict.fromkeys(ends))
        self.added = {token.content: id for id, token in added.items()}
        self.specials = {token.content: id for id, token in added.items() if token.special}
        self._plain = {id: token.content for id, token in added.items() if not token.special}
        self._known: dict[int, bytes] = dict.fromkeys(self.specials.values(), b"")
        self._known |= {id: content.encode() for id, content in self._plain.items()}
        self.start = _leading(tokenizer)
        self._refuse_reachable_specials()
        self._woven: dict[frozenset[str], tuple[Tokenizer, dict[int, str], dict[int, int]]] = {}
        self._lossless = self._rule.complete(vocabulary) and all(map(self._keeps, EXAMPLES))

    def encode(self, raw: str, /) -> list[int]:
        """The ids of `raw`.

        Raises:
            RequestError: `raw` is no text, or holds what the vocabulary cannot express.
        """
        if not isinstance(raw, str):
            raise RequestError(f"{type(raw).__name__} given to codec text", expected="str")
        try:
            ids = self._ids(raw)
        except TypeError as error:
            raise _surrogate(raw) from error
        if not self._lossless and (seen := self.decode(ids)) != (meant := self.canonical(raw)):
            raise _inexpressible(seen, meant)
        return ids

    def cut(self, data: bytes, /) -> int:
        """Before the last word that begins after a word, if the rule for cutting text is known."""
        return last_cut(data) if self._cuttable else 0

    def encode_many(self, pieces: Sequence[bytes], /) -> list[np.ndarray]:
        """The ids of each piece of UTF-8, without the offsets that `tokenizers` also counts.

        Raises:
            RequestError: as `encode`.
            UnicodeDecodeError: a piece is not UTF-8.
        """
        texts = [piece.decode() for piece in pieces]
        if not self._lossless:
            return [np.array(self.encode(text), np.uint32) for text in texts]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in found]

    def weave(self, parts: Sequence[str | int], *, quoted: Collection[str] = ()) -> list[int]:
        """The ids of text with added ids between, as if their texts stood there and counted.

        Args:
            parts: text, and ids of `added`.
            quoted: added texts that are not special, and yet plain where they stand in a text.

        Raises:
            RequestError: an id that is not added, or text as for `encode`.
        """
        tokenizer, names, ids = self._aliased(frozenset(quoted))
        for part in parts:
            if isinstance(part, int) and part not in names:
                raise RequestError(f"{part} is no added id", expected="one of codec.added")
            if not isinstance(part, int) and not (self._lossless and _is_whole(part)):
                self.encode(part)  # refuses what cannot be expressed
        text = "".join(names[part] if isinstance(part, int) else part for part in parts)
        return [ids.get(id, id) for id in _encoded(tokenizer, text)]

    def prompt(self, raw: str, /) -> list[int]:
        """`start` and the ids of `raw`."""
        return [*self.start, *self.encode(raw)]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> str:
        """The text of `ids`; bytes that belong to no character are U+FFFD."""
        return self._bytes(ids, after).decode(errors="replace")

    def stream(self, *, after: Sequence[int] = ()) -> Utf8Stream:
        """Incremental decoding."""
        return Utf8Stream(self._piece, self.lead(after))

    def pieces(self) -> list[bytes]:
        """The bytes of every id; b"" for special ones."""
        return [*map(self._piece, range(self.size))]

    def lead(self, after: Sequence[int], /) -> bytes:
        """The space that a whole text loses, and one that goes on from another keeps."""
        return b"" if any(map(self._piece, after)) else self._rule.lead

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many bytes of text."""
        return len(self._bytes(ids, after))

    def canonical(self, raw: str, /) -> str:
        """What the tokenizer's own normalizer and splitter make of `raw`, spelt as text again."""
        parts = re.split(self._added, raw) if self._plain else [raw]
        spelt = (p.encode() if n % 2 else self._normal(p) for n, p in enumerate(parts))
        return b"".join(spelt).removeprefix(self._rule.lead).decode(errors="replace")

    def differs(self, ids: Sequence[int]) -> bool:
        """Whether encoding the decoded text gives other ids."""
        return self._ids(self.decode(ids)) != list(ids)

    def examples(self) -> list[str]:
        """Texts that tokenizers get wrong."""
        return list(EXAMPLES)

    def render(self, raw: str, /) -> dict[str, Any]:
        """The text."""
        return {"text/plain": raw}

    def read(self, path: Path, /) -> str:
        """The text of a UTF-8 file, to the letter.

        Raises:
            FileError: it is not UTF-8; the offset of the first bad byte is named.
        """
        return read_text(path)

    def write(self, raw: str, path: Path, /) -> None:
        """Writes UTF-8; no newline is translated."""
        path.write_bytes(raw.encode())

    def save(self, folder: Path, /) -> None:
        """Writes codec.json and the tokenizer files that give the same ids elsewhere."""
        write(folder, self, {"ends": list(self.ends)}, self._tokenizer.to_str())

    @cached_property
    def _cuttable(self) -> bool:
        return cuttable(self._tokenizer)

    @cached_property
    def _added(self) -> str:
        found = sorted(self._plain.values(), key=len, reverse=True)
        return f"({'|'.join(map(re.escape, found))})"

    def _aliased(
        self, quoted: frozenset[str]
    ) -> tuple["Tokenizer", dict[int, str], dict[int, int]]:
        """The tokenizer with a second name for each added id, read wherever it stands.

        Nobody can guess the names, which are new in every process; they take the whitespace that
        the added texts take. With it: names by added id, added ids by theirs.
        """
        if quoted in self._woven:
            return self._woven[quoted]
        from tokenizers import AddedToken, Tokenizer

        content = json.loads(self._tokenizer.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["special"] or token["content"] in quoted
        made, secret = Tokenizer.from_str(json.dumps(content)), token_hex(16)
        made.encode_special_tokens = True
        names, ids = {}, {}
        for id, token in self._tokenizer.get_added_tokens_decoder().items():
            names[id] = f"\ufdd0{secret}{id}\ufdd1"
            flags = {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "single_word")}
            made.add_tokens([AddedToken(names[id], normalized=False, special=False, **flags)])
            ids[made.token_to_id(names[id])] = id
        self._woven = {quoted: (made, names, ids)}
        return self._woven[quoted]

    def _normal(self, text: str) -> bytes:
        if (normalizer := self._tokenizer.normalizer) is not None:
            text = normalizer.normalize_str(text)
        if (splitter := self._tokenizer.pre_tokenizer) is None:
            return self._rule.text(text)
        return b"".join(self._rule.text(part) for part, _ in splitter.pre_tokenize_str(text))

    def _ids(self, text: str) -> list[int]:
        return _encoded(self._tokenizer, text)

    def _keeps(self, text: str) -> bool:
        return self.decode(self._ids(text)) == self.canonical(text)

    def _piece(self, id: int) -> bytes:
        if (piece := self._known.get(id)) is None:
            token = self._tokenizer.id_to_token(id) if 0 <= id < self.size else None
            piece = self._known[id] = b"" if token is None else self._rule.token(token)
        return piece

    def _bytes(self, ids: Sequence[int], after: Sequence[int]) -> bytes:
        return b"".join(map(self._piece, ids)).removeprefix(self.lead(after))

    def _refuse_reachable_specials(self) -> None:
        for text, id in self.specials.items():
            for plain in {text, self._rule.token(text).decode(errors="replace")}:
                if id in self._ids(plain):
                    raise ModelError(
                        f"the tokenizer reads the plain text {plain!r} as the special id {id}",
                        expected="a vocabulary in which no text gives a special id",
                    )


def train(
    texts: Iterable[str], vocab_size: int, *, marks: Sequence[str] = (), split: str = SPLIT
) -> TextCodec:
    """A byte-level BPE of at most `vocab_size` ids, the same from the same texts every time.

    Every byte is in it, so it can express any text; id 0 starts and ends a text.

    Args:
        texts: to learn from.
        vocab_size: ids in all.
        marks: texts of further special ids, which come last.
        split: a regular expression for what no token goes beyond.

    Raises:
        RequestError: `vocab_size` has no room for the bytes and the special ids.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < (least := 257 + len(marks)):
        expected = f"at least {least}"
        raise RequestError(f"vocab_size is {vocab_size}", expected=expected, fix="codec byte")
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), level]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks),
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=[END, "$A"], pair=[END, "$A", "$B:1"], special_tokens=[(END, 0)]
    )
    made.add_special_tokens(list(marks))
    return TextCodec(made, ends=(0,))


def load(folder: Path, options: dict[str, Any]) -> TextCodec | None:
    """The codec of a folder's tokenizer files, or None if there are none.

    Raises:
        FileError: a file is damaged or asks for what cannot be honoured whole, or `options` holds
            anything but "ends", a list of ids.
        ModelError: the tokenizer would read plain text as a special id.
    """
    if unknown := sorted(options.keys() - {"ends"}):
        raise FileError(f"codec text has the option {unknown[0]!r}", expected="ends, a list of ids")
    if (source := _sources.find(folder)) is None:
        return None
    codec = _of(replace(source, ends=options.get("ends", source.ends)))
    for id in (*codec.start, *codec.ends):
        if type(id) is not int or not 0 <= id < codec.size:
            raise FileError(f"{source.path}: special id {id!r}", expected=f"ids below {codec.size}")
    return codec


def from_llama2c(path: Path) -> TextCodec:
    """The codec of llama2.c's tok*.bin.

    Raises:
        FileError: the file is damaged, or its first ids are not the special and the byte ones.
    """
    return _of(_sources.from_llama2c(path))


def specimens() -> list[TextCodec]:
    """Codecs for the law tests: one as trained here, one as Llama's, with bytes to fall back on."""
    words = ["\u2581", *"abcdé", "\u2581a", "ab", "\u2581\u2581", "日"]
    llama = build(
        ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *words],
        {word: -float(n) for n, word in enumerate(words)},
        space="\u2581",
        prefix=True,
        specials=["<unk>", "<s>", "</s>"],
        start="<s>",
    )
    return [train(EXAMPLES, 300), TextCodec(llama, ends=(2,))]


def _of(source: _sources.Source) -> TextCodec:
    with named(source.path):
        return TextCodec(source.tokenizer, ends=source.ends)


def _leading(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """The ids that the post-processor puts in front."""
    framed = tokenizer.encode("a")
    return tuple(framed.ids[: [*framed.special_tokens_mask, 0].index(0)])


def _encoded(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The ids of a text; while a long one is encoded, other threads run."""
    if len(text) < LONG:
        return tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _is_whole(raw: Any) -> bool:
    """Whether it is text without half a surrogate pair."""
    try:
        return isinstance(raw, str) and raw.encode() is not None
    except UnicodeEncodeError:
        return False


def _surrogate(raw: str) -> RequestError:
    at = next(n for n, letter in enumerate(raw) if "\ud800" <= letter <= "\udfff")
    seen = f"character {at} of the text is half a surrogate pair"
    return RequestError(seen, expected="text that UTF-8 can hold")


def _inexpressible(seen: str, meant: str) -> RequestError:
    pairs = enumerate(zip(f"{seen}\0", meant, strict=False))
    at = next((n for n, (got, letter) in pairs if got != letter), len(meant))
    what = f"the tokenizer has no ids for {meant[at : at + 1]!r} at character {at} of the text"
    return RequestError(what, expected="letters of its vocabulary")
