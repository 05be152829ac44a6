"""The tokenizer in a GGUF file's metadata, as a codec.

Two of the format's kinds are read: "gpt2", byte-level BPE, and "llama", SentencePiece's. What a
file leaves unsaid is what llama.cpp takes it to be; what would change ids unseen is refused.

    codec = from_gguf(metadata)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seriatim.codecs._cuts import CUTS, Cut
from seriatim.codecs._scored import build
from seriatim.codecs.text import TextCodec
from seriatim.errors import FileError, did_you_mean, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # values of tokenizer.ggml.token_type
SPACE = "▁"
ROLES = {"start": "bos_token_id", "end": "eos_token_id"}
ALSO_ENDS = ("eot_token_id", "eom_token_id")

# Texts that end a turn wherever a vocabulary has them as more than ordinary tokens: a file names
# one end id where a model may have several. Source: llama.cpp, `llama-vocab.cpp`.
_ENDS = """</s> <eos> [EOS] <EOT> _<EOT> [EOT] <|eot_id|> <|eom_id|> <|im_end|> <|end|>
<end_of_turn> <|endoftext|> <|end_of_text|> <end_of_utterance> <｜end▁of▁sentence｜>"""
ENDS = frozenset(_ENDS.split())


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its ids.

    Attributes:
        tokens: their texts.
        types: their types.
        start, end: the file's own start and end id, if any.
        ends: all ids that end a text, the file's own first.
        special: ids that no text gives, and that stand for no text.
    """

    tokens: list[str]
    types: list[int]
    start: int | None
    end: int | None
    ends: tuple[int, ...]
    special: list[int]

    def texts(self, kind: int) -> list[str]:
        """Tokens of one type that are not special."""
        special = set(self.special)
        pairs = enumerate(zip(self.tokens, self.types, strict=True))
        return [text for id, (text, type_) in pairs if type_ == kind and id not in special]


def from_gguf(metadata: Mapping[str, Any]) -> TextCodec | None:
    """The codec of a GGUF file's metadata, or None if it says that the file has no tokenizer.

    Ids of the type control or unknown, and those that start or end a text, never come from text;
    user-defined tokens do, and are cut out before all else.

    Args:
        metadata: values by key; arrays are sequences or numpy arrays.

    Raises:
        FileError: a value that is missing or cannot be; a kind of tokenizer, a rule for cutting
            text or an option that is not reproduced to the id.
        ModelError: the tokenizer would read plain text as a special id.
    """
    makers = {"gpt2": _bytelevel, "llama": _sentencepiece}
    kind = metadata.get(KEY + "model")
    if kind is None or (isinstance(kind, str) and kind in ("none", "no_vocab")):
        return None
    if not isinstance(kind, str) or kind not in makers:
        raise _refuse("model", kind, f"one of {', '.join(makers)}")
    vocabulary = _vocabulary(metadata, (1, 2) if kind == "llama" else (None, None))
    tokenizer, starts = makers[kind](metadata, vocabulary)
    _add(tokenizer, vocabulary)
    _frame(tokenizer, metadata, vocabulary, starts=starts)
    return TextCodec(tokenizer, ends=vocabulary.ends)


def _bytelevel(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple["Tokenizer", bool]:
    """The tokenizer, and whether a prompt begins with the start id where the file does not say."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    cut = _cut(metadata)
    if _flag(metadata, "add_space_prefix", default=False):
        raise _refuse("add_space_prefix", True, "false beside byte-level BPE")
    ids = {text: id for id, text in enumerate(vocabulary.tokens)}
    pairs = _pairs(_array(metadata, "merges", str), ids)
    made = Tokenizer(models.BPE(ids, pairs, ignore_merges=cut.whole))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    made.decoder = decoders.ByteLevel()
    return made, cut.start


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple["Tokenizer", bool]:
    """The tokenizer, and that a prompt begins with the start id where the file does not say."""
    if _flag(metadata, "remove_extra_whitespaces", default=False):
        raise _refuse("remove_extra_whitespaces", True, "false: spaces are kept as they are")
    if KEY + "precompiled_charsmap" in metadata:
        raise _refuse("precompiled_charsmap", "given", "none: text is kept as it is")
    values = _array(metadata, "scores", float, len(vocabulary.tokens))
    scores = dict(zip(vocabulary.tokens, values, strict=True))
    mergeable = {text: scores[text] for text in vocabulary.texts(NORMAL)}
    unused = [
        t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNUSED
    ]
    if made := [text for text in unused if _is_union(text, mergeable)]:
        raise _refuse("token_type", UNUSED, f"{NORMAL} for {made[0]!r:.80}, which merging makes")
    made = build(
        vocabulary.tokens,
        mergeable,
        space=SPACE,
        prefix=_flag(metadata, "add_space_prefix", default=True),
        specials=[vocabulary.tokens[id] for id in vocabulary.special],
        start=None,
    )
    return made, True


def _is_union(text: str, pieces: Mapping[str, float]) -> bool:
    return any(text[:cut] in pieces and text[cut:] in pieces for cut in range(1, len(text)))


def _cut(metadata: Mapping[str, Any]) -> Cut:
    name = metadata.get(KEY + "pre")
    if not isinstance(name, str):
        raise _refuse("pre", name, "the name of the rule that cuts text", "convert the model again")
    if name not in CUTS:
        raise _refuse("pre", name, "a rule that is known here", did_you_mean(name, CUTS))
    return CUTS[name]


def _pairs(merges: Sequence[str], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Each merge cut in two, its parts and what they make being tokens."""
    pairs = []
    for merge in merges:  # up to 280,000
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            unknown = next(text for text in (left, right, left + right) if text not in ids)
            expected = f"two tokens whose union is one: {unknown!r:.80} is none"
            raise _refuse("merges", merge, expected)
        pairs.append((left, right))
    return pairs


def _add(tokenizer: "Tokenizer", vocabulary: Vocabulary) -> None:
    """Tokens that stand beside the merging: special ones, and those cut out of every text."""
    from tokenizers import AddedToken

    special = [vocabulary.tokens[id] for id in vocabulary.special]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in vocabulary.texts(USER)])


def _frame(
    tokenizer: "Tokenizer", metadata: Mapping[str, Any], vocabulary: Vocabulary, *, starts: bool
) -> None:
    """What goes around a prompt."""
    from tokenizers import processors

    given = {"start": vocabulary.start, "end": vocabulary.end}
    flags = {
        "start": _flag(metadata, "add_bos_token", default=starts),
        "end": _flag(metadata, "add_eos_token", default=False),
    }
    used = {role: id for role, id in given.items() if flags[role]}
    for role, id in used.items():
        if id is None:
            raise _refuse(ROLES[role], None, f"the id that is to {role} a prompt")
    if not used:
        return
    first, last = (["start"] if "start" in used else []), (["end"] if "end" in used else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B:1", *last],
        special_tokens=[
            {"id": role, "ids": [id], "tokens": [vocabulary.tokens[id]]}
            for role, id in used.items()
            if id is not None
        ],
    )


def _vocabulary(metadata: Mapping[str, Any], default: tuple[int | None, int | None]) -> Vocabulary:
    """The tokens of a file; an empty one, or one that says no more than its id, stands for nothing.

    Args:
        metadata: of the file.
        default: its start and end id where it does not say.
    """
    texts = _array(metadata, "tokens", str)
    tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(texts)]
    untyped = KEY + "token_type" not in metadata
    types = [NORMAL] * len(tokens)
    if not untyped:
        types = _array(metadata, "token_type", int, len(tokens))
    _check(tokens, types)
    start, end = (
        _id(metadata, key, len(tokens), absent)
        for key, absent in zip(ROLES.values(), default, strict=True)
    )
    others = [_id(metadata, key, len(tokens), None) for key in ALSO_ENDS]
    pairs = list(enumerate(zip(tokens, types, strict=True)))
    known = [id for id, (text, kind) in pairs if text in ENDS and kind != NORMAL]
    ends = tuple(dict.fromkeys(id for id in (end, *others, *known) if id is not None))
    special = {id for id, (_, kind) in pairs if kind in (UNKNOWN, CONTROL, UNUSED)}
    special |= {id for id, text in enumerate(texts) if text in ("", f"[PAD{id}]")}
    special |= {id for id in (start, *ends) if id is not None and (untyped or types[id] != NORMAL)}
    return Vocabulary(tokens, types, start, end, ends, sorted(special))


def _check(tokens: Sequence[str], types: Sequence[int]) -> None:
    """Texts are distinct, and types known."""
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        for id, text in enumerate(tokens):
            if first.setdefault(text, id) != id:
                raise FileError(f"tokens {first[text]} and {id} are both {shown(text)}")
    if odd := set(types) - {*range(NORMAL, BYTE + 1)}:
        raise _refuse("token_type", min(odd), f"{NORMAL} to {BYTE}")


def _id(metadata: Mapping[str, Any], key: str, size: int, default: int | None) -> int | None:
    id = metadata.get(KEY + key, default)
    if id is not None and (type(id) is not int or not 0 <= id < size):
        raise _refuse(key, id, f"an id below {size}")
    return id


def _flag(metadata: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = metadata.get(KEY + key, default)
    if not isinstance(value, bool):
        raise _refuse(key, value, "true or false")
    return value


def _array(
    metadata: Mapping[str, Any], key: str, kind: type, length: int | None = None
) -> list[Any]:
    """The values of an array, all of them `kind`."""
    value = metadata.get(KEY + key)
    values = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise _refuse(key, value, f"an array of {kind.__name__}")
    if set(map(type, values)) - {kind}:
        odd = next(item for item in values if type(item) is not kind)
        raise _refuse(key, odd, f"only {kind.__name__}")
    if kind is float and not all(map(math.isfinite, values)):
        raise _refuse(key, "not finite", "finite numbers")
    if length is not None and len(values) != length:
        raise FileError(f"{KEY}{key} has {len(values)} values", expected=f"{length}, one a token")
    return list(values)


def _refuse(key: str, value: object, expected: str, fix: str = "") -> FileError:
    what = "is missing" if value is None else f"is {shown(value)}"
    return FileError(f"{KEY}{key} {what}", expected=expected, fix=fix)
