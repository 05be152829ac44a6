"""A text codec as the metadata of a GGUF file: the way back from `_gguf.from_gguf`.

Only what the format can say is written: byte-level BPE that cuts text by a rule with a name there,
and merges that are ordered by the score of what they make.

    metadata_of(codec, size=codec.size)["tokenizer.ggml.tokens"]
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from seriatim.codecs import Codec
from seriatim.codecs._cuts import CUTS
from seriatim.codecs._gguf import (
    ALSO_ENDS,
    BYTE,
    CONTROL,
    ENDS,
    KEY,
    NORMAL,
    ROLES,
    SPACE,
    UNUSED,
    USER,
)
from seriatim.codecs._pieces import BYTE_TOKENS, Rule
from seriatim.codecs._scored import merges
from seriatim.codecs.text import TextCodec
from seriatim.errors import ModelError

Say = Callable[[str], None]
Tokens = dict[int, tuple[str, int]]  # text and type of each id

_DIGITS = {True: r"\p{N}", False: r"\p{N}+"}
_WORDS = CUTS["gpt-2"].patterns[0]  # what ByteLevel cuts by of itself


def metadata_of(
    codec: Codec | None,
    *,
    size: int,
    ends: Iterable[int] = (),
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The tokenizer of a model as GGUF metadata: values by key, arrays as lists.

    Args:
        codec: the model's, or None for a file without a tokenizer.
        size: the model's vocabulary; ids that the codec does not have are filled up.
        ends: ids that end a text besides the codec's own.
        say: told of what the format has no place for.

    Raises:
        ModelError: the codec is of a kind, or has a rule, that the format cannot say.
    """
    if codec is None:
        return {KEY + "model": "no_vocab"}
    if not isinstance(codec, TextCodec):
        raise _unsayable(f"the codec {codec.name}", "text, or no codec")
    state = json.loads(codec._tokenizer.to_str())
    write = _bytelevel if codec._rule.alphabet else _scored
    values, tokens = write(state, codec._rule, say)
    _fill(tokens, state["added_tokens"], size)
    values |= {
        "tokens": [tokens[id][0] for id in range(size)],
        "token_type": [tokens[id][1] for id in range(size)],
    }
    if "scores" in values:
        values["scores"] = [values["scores"].get(text, 0.0) for text in values["tokens"]]
    values |= _roles(codec, [*codec.ends, *ends], values["tokens"], say)
    return {KEY + name: value for name, value in values.items()}


def _bytelevel(state: Mapping[str, Any], rule: Rule, say: Say) -> tuple[dict[str, Any], Tokens]:
    model, patterns = state["model"], _patterns(state["pre_tokenizer"])
    whole = bool(model.get("ignore_merges"))
    same = (name for name, cut in CUTS.items() if (cut.patterns, cut.whole) == (patterns, whole))
    if (name := next(same, None)) is None:
        raise _unsayable(f"the rule {patterns} for cutting text", "one that llama.cpp names")
    match state["normalizer"]:
        case None:
            pass
        case {"type": "NFC"}:
            say("text is not normalised (NFC) there: a letter in parts has other ids")
        case other:
            raise _unsayable(f"the normalizer {json.dumps(other)}", "none")
    pairs = [f"{left} {right}" for left, right in _pairs(model)]
    if not pairs:
        raise _unsayable("a vocabulary without merges", "at least one")
    tokens = {id: (text, NORMAL) for text, id in model["vocab"].items()}
    return {"model": "gpt2", "pre": name, "merges": pairs}, tokens


def _scored(state: Mapping[str, Any], rule: Rule, say: Say) -> tuple[dict[str, Any], Tokens]:
    space, prefix = _spaces(state)
    swaps = ((SPACE, " "),) if space == SPACE else ()
    if rule != Rule(swaps=swaps, fallback=True, lead=b" " * prefix):
        raise _unsayable("its way to spell spaces and bytes", "SentencePiece's")
    if space != SPACE:
        say(f"the letter {SPACE} in a text is a space there")
    vocabulary = state["model"]["vocab"]
    beside = {token["content"] for token in state["added_tokens"]} | set(BYTE_TOKENS)
    scores = _scores(_pairs(state["model"]), [text for text in vocabulary if text not in beside])
    tokens: Tokens = {}
    for text, id in vocabulary.items():
        spelt = text if text in beside else text.replace(space, SPACE)
        tokens[id] = spelt, BYTE if text in BYTE_TOKENS else NORMAL
    spelt = {text.replace(space, SPACE): score for text, score in scores.items()}
    return {
        "model": "llama",
        "pre": "default",
        "scores": spelt,
        "add_space_prefix": prefix,
    }, tokens


def _patterns(splitter: Mapping[str, Any]) -> tuple[str, ...]:
    """What a byte-level pre-tokenizer cuts by, in order."""
    *steps, last = _steps(splitter, "pretokenizers")
    patterns: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "invert": False}:
                if step["behavior"] != "Isolated":
                    raise _unsayable(f"the behavior {step['behavior']!r} of a Split", "Isolated")
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": bool(each)}:
                patterns.append(_DIGITS[each])
            case _:
                raise _unsayable(f"the step {json.dumps(step)}", "Split or Digits")
    match last:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (*patterns, *[_WORDS] * last.get("use_regex", True))
    raise _unsayable(f"the step {json.dumps(last)}", "ByteLevel without a prefix")


def _spaces(state: Mapping[str, Any]) -> tuple[str, bool]:
    """How a space is spelt, and whether one goes in front of a text."""
    match state:
        case {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "split": False, **rest}}:
            if rest["replacement"] == SPACE:
                return SPACE, rest["prepend_scheme"] != "never"
        case {"normalizer": dict(normalizer), "pre_tokenizer": None}:
            match _steps(normalizer, "normalizers"):
                case [{"type": "Prepend", "prepend": " "}]:
                    return " ", True
                case [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace"} as swap]:
                    if (swap["pattern"], swap["content"]) == ({"String": " "}, SPACE):
                        return SPACE, True
                case [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]:
                    return SPACE, False
    raise _unsayable("its normalizer and pre-tokenizer", "SentencePiece's")


def _scores(pairs: Sequence[tuple[str, str]], pieces: Sequence[str]) -> dict[str, float]:
    """A score for each piece that gives these merges, best first.

    A piece's cuts stand together; where runs of one letter alternate, which is how equal scores
    look (Llama's runs of spaces), they are given equal ones.
    """
    runs = [piece for piece, _ in groupby(left + right for left, right in pairs)]
    last = {piece: place for place, piece in enumerate(runs)}
    scores, level, until = dict.fromkeys(pieces, -float(len(runs))), 0, -1
    for place, piece in enumerate(runs):
        if place > until:
            level = place
        until = max(until, last[piece])
        if until > level and len(set(piece)) > 1:
            raise _unsayable(f"merges of {piece!r} that stand apart", "an order by scores")
        scores[piece] = -float(level)
    if set(merges(scores)) != set(pairs) or len(scores) > len(pieces):
        raise _unsayable("merges that do not follow from scores", "every cut of every piece")
    return scores


def _fill(tokens: Tokens, added: Iterable[Mapping[str, Any]], size: int) -> None:
    """Puts tokens beside the merging among the others, and something at ids that have none."""
    for token in added:
        tokens[token["id"]] = token["content"], CONTROL if token["special"] else USER
        strips = [name for name in ("lstrip", "rstrip", "single_word") if token[name]]
        if strips and not token["special"]:
            raise _unsayable(f"{strips[0]} of the token {token['content']!r}", "none")
    if (most := max(tokens, default=-1)) >= size:
        raise ModelError(f"the codec has the id {most}", expected=f"ids below the model's {size}")
    for id in range(size):
        tokens.setdefault(id, (f"[PAD{id}]", UNUSED))
    seen: dict[str, int] = {}
    for id, (text, _) in tokens.items():
        if (first := seen.setdefault(text, id)) != id:
            raise _unsayable(f"ids {first} and {id} that are both {text!r}", "distinct texts")


def _roles(
    codec: TextCodec, ends: Sequence[int], tokens: Sequence[str], say: Say
) -> dict[str, Any]:
    """The ids with a role; the format has room for one start id and three ends."""
    if len(codec.start) > 1:
        raise _unsayable(f"the {len(codec.start)} ids {codec.start} before a prompt", "one at most")
    ends = list(dict.fromkeys(ends))
    keys = (ROLES["end"], *ALSO_ENDS)
    for id in ends[len(keys) :]:
        if tokens[id] not in ENDS:
            say(f"the end id {id} has no place there, and a text that llama.cpp does not know")
    if not ends:
        say("there is no end id: llama.cpp takes one of its own choice")
    framed = codec._tokenizer.encode("a")
    closes = framed.special_tokens_mask[-1:] == [1]
    return {
        "add_bos_token": bool(codec.start),
        "add_eos_token": closes and framed.ids[-1:] == ends[:1],
        **dict(zip([ROLES["start"]], codec.start, strict=False)),
        **dict(zip(keys, ends, strict=False)),
    }


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    if model["type"] != "BPE":
        raise _unsayable(f"the tokenizer model {model['type']}", "BPE")
    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in split]


def _steps(state: Mapping[str, Any], parts: str) -> list[Any]:
    return state[parts] if state["type"] == "Sequence" else [state]


def _unsayable(what: str, expected: str) -> ModelError:
    return ModelError(f"GGUF cannot say {what}", expected=expected)
