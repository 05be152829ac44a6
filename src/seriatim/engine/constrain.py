"""Guides: which ids may follow, by a grammar over the bytes of ids, or by a rule over ids.

Masks come from llguidance. Its matchers of one grammar share the automaton that they build as they
go: its cost, and its limit, at which a request would fail for what others have asked. So a matcher
at a limit is replaced by one of its own, brought to the same place with the least work there can
be, and only what fails there fails: that depends on the ids alone. (Of the work of one step it may
do 25 times as much, so that what is built already by others can not decide.)

    guide = GrammarGuide(Vocabulary(pieces, 257), Grammar("regex", "start: /[0-9]+/"), ends=(256,))
    guide.mask([])
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from seriatim.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

BYTES = 256

MOST_STATES = 50_000  # of one automaton: 10 MB, and half a second in all
MOST_ITEMS = 10_000  # of a parse at one place: about five for each property that may come
STEP_FUEL, OWN_FUEL = 200_000, 5_000_000  # of one step: 14 ms; of a matcher that is alone
KEPT = 16  # compiled grammars of a model

# Every way to cut a text into ids is allowed; else a text that is forced would be only as
# a tokenizer in Python cuts it, and be cut in the middle of a step.
FOOTER = '\n%llguidance {"no_forcing": true}\n'


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's form of Lark, and which option of a request it comes from."""

    option: str
    text: str


@dataclass(frozen=True)
class Words:
    """Tokens as llguidance takes them; it must not ask for anything but `tokens`."""

    tokens: list[bytes]
    eos_token_id: int
    bos_token_id: None = None
    special_token_ids: tuple[int, ...] = ()
    is_tokenizer_wrapper: bool = True

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError  # only for forced texts


class Vocabulary:
    """What the ids of a model stand for, prepared for grammars once.

    It keeps the grammars that were compiled last. After the model's ids come one for the end of a
    text and one for every byte, so that a matcher can be told of bytes that no id has.

    Args:
        pieces: the bytes of each id; b"" for those that stand for none, which are never allowed.
        size: the model's, if it has more ids than `pieces`.
        lead: what is dropped once from the front of a whole text.
    """

    def __init__(self, pieces: Sequence[bytes], size: int, lead: bytes = b"") -> None:
        self.size, self.lead = size, lead
        self.pieces = [*pieces, *[b""] * (size - len(pieces))][:size]
        self.end = size
        self.words = -(-size // 32)
        self._kept: OrderedDict[tuple[Grammar, bool], LLMatcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, grammar: Grammar, *, first: bool = False) -> "LLMatcher":
        """One at the start of a grammar, which shares its automaton with others.

        Raises:
            RequestError: it is no grammar, or too large.
        """
        with self._lock:
            kept = self._kept.pop((grammar, first), None)
        if kept is None:  # others do not wait for it
            kept = compiled(self.first if first else self.whole, grammar, STEP_FUEL)
        with self._lock:
            self._kept[grammar, first] = kept
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return kept.deep_copy()

    def alone(self, grammar: Grammar, *, first: bool = False) -> "LLMatcher":
        """One that shares nothing."""
        return compiled(self.first if first else self.whole, grammar, OWN_FUEL)

    def forget(self, grammar: Grammar) -> None:
        """Keep what has met its limit no longer."""
        with self._lock:
            for first in (False, True):
                self._kept.pop((grammar, first), None)

    @cached_property
    def whole(self) -> "LLTokenizer":
        """Of ids within a text."""
        return self._tokenizer(self.pieces)

    @cached_property
    def first(self) -> "LLTokenizer":
        """Of the id that a text begins with, its lead dropped."""
        return self._tokenizer([piece.removeprefix(self.lead) for piece in self.pieces])

    @cached_property
    def leads(self) -> list[int]:
        """Ids that are nothing but the lead."""
        return [id for id, piece in enumerate(self.pieces) if self.lead and piece == self.lead]

    def spelt(self, id: int) -> list[int]:
        """An id that begins a text as the ids of the bytes that are left of it."""
        return self.bytewise(self.pieces[id].removeprefix(self.lead))

    def bytewise(self, text: bytes) -> list[int]:
        """Ids that only matchers know, one for each byte."""
        return [self.end + 1 + byte for byte in text]

    def spells(self, id: int) -> bool:
        """Whether it stands for text."""
        if id < self.size:
            return id >= 0 and self.pieces[id] != b""
        return self.end < id <= self.end + BYTES

    def _tokenizer(self, pieces: list[bytes]) -> "LLTokenizer":
        from llguidance import LLTokenizer

        alone = [bytes((byte,)) for byte in range(BYTES)]
        return LLTokenizer(Words([*pieces, b"", *alone], self.end))  # pyright: ignore


def compiled(tokenizer: "LLTokenizer", grammar: Grammar, fuel: int) -> "LLMatcher":
    """The automaton of a grammar, at its start.

    Raises:
        RequestError: it is no grammar, or too large.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_lexer_states=MOST_STATES,
        max_items_in_row=MOST_ITEMS,
        step_lexer_fuel=fuel,
        verbose_errors=False,
    )
    text = LLMatcher.grammar_from_lark(grammar.text + FOOTER)
    made = LLMatcher(tokenizer, text, log_level=0, limits=limits)
    if made.is_error():
        raise RequestError(f"{grammar.option}: {reason(made.get_error())}")
    return made


def fault(grammar: str) -> str:
    """What is wrong with a grammar, or ""; nothing is kept of it."""
    from llguidance import LLMatcher

    return reason(LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)))


def reason(text: str) -> str:
    """What llguidance says is wrong, without the grammar and its own state."""
    text = text.split("<backtrace>")[0].split("<non-verbose/>")[0]
    text = text.split("failed to compile JSON schema: ")[-1].split(" (in regex): ")[-1]
    text = text.split("\n   1 | ")[0].split("while processing")[0]
    return f"{' '.join(text.split()).removeprefix('panic: '):.300}"


def allows(words: np.ndarray, id: int) -> bool:
    """Whether a mask has the bit of an id."""
    return bool(words[id >> 5] >> np.uint32(id & 31) & np.uint32(1))


def _set(words: np.ndarray, ids: Iterable[int], to: bool = True) -> None:
    for id in ids:
        bit = np.uint32(1 << (id & 31))
        words[id >> 5] = words[id >> 5] | bit if to else words[id >> 5] & ~bit


def _cut(words: np.ndarray, size: int) -> np.ndarray:
    """No bit beyond the vocabulary."""
    if size & 31:
        words[-1] &= np.uint32((1 << (size & 31)) - 1)
    return words


class GrammarGuide:
    """The ids whose bytes a grammar lets follow; end ids exactly where the text is whole.

    Keeps one matcher, which goes forward with each id and back where another prefix is asked about.

    Args:
        vocabulary: the model's.
        grammar: what the text must be.
        ends: the ids that end a text; none where ends are to be ignored.
        leading: whether the text begins here, so that its lead is dropped.
        minimum: how many ids there must be; fewer that are complete are an error.

    Raises:
        RequestError: it is no grammar, or too large.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        grammar: Grammar,
        *,
        ends: Iterable[int] = (),
        leading: bool = False,
        minimum: int = 0,
    ) -> None:
        self._vocabulary, self._grammar, self._minimum = vocabulary, grammar, minimum
        self._ends = tuple(ends)
        self._leading = leading and vocabulary.lead != b""
        self._start(vocabulary.matcher)

    def mask(self, ids: Sequence[int], /) -> np.ndarray:
        """uint32 words of the ids that may follow `ids`.

        Raises:
            RequestError: `ids` are not allowed themselves, nothing may follow them, or the grammar
                takes too much work here.
        """
        words = self._texts(ids)
        if self._matcher.is_accepting():
            _set(words, self._ends)
        if not words.any():
            self._start(self._vocabulary.matcher)  # one that has met an end stays at it
            raise RequestError(
                f"{self._grammar.option}: no id may follow the {len(ids)} generated",
                expected="a constraint that the vocabulary can spell, and end ids where it ends",
            )
        return words

    def empty(self) -> bool:
        """Whether no id may be the first: the only text there could be is the empty one."""
        return not self._texts([]).any()

    def complete(self, ids: Sequence[int], /) -> bool:
        """Whether `ids` is whole and nothing can follow.

        Raises:
            RequestError: it is, before there are as many ids as there must be; or as `mask`.
        """
        self._at(ids)
        over = self._matcher.is_stopped() and self._matcher.is_accepting()
        if over and len(ids) < self._minimum:
            raise RequestError(
                f"{self._grammar.option} is complete after {len(ids)} ids and min_tokens is "
                f"{self._minimum}",
                fix="lower min_tokens, or allow longer texts",
            )
        return over

    def _start(self, made: Callable[..., "LLMatcher"]) -> None:
        self._matcher = made(self._grammar)
        self._first = made(self._grammar, first=True) if self._leading else self._matcher
        self._ids: list[int] = []

    def _at(self, ids: Sequence[int], *, masked: bool = False) -> np.ndarray | None:
        """Bring the matcher to the end of `ids`; at a limit, another that begins there."""
        try:
            self._go(ids)
            return self._masked(ids) if masked else None
        except _Limit:
            self._vocabulary.forget(self._grammar)
            self._start(self._vocabulary.alone)
        try:
            self._go(ids)
            return self._masked(ids) if masked else None
        except _Limit as limit:
            self._start(self._vocabulary.matcher)
            raise RequestError(
                f"{self._grammar.option}: {limit} after {len(ids)} ids",
                fix="make the constraint simpler",
            ) from None

    def _texts(self, ids: Sequence[int]) -> np.ndarray:
        """The ids of more text."""
        words = self._at(ids, masked=True)
        assert words is not None
        return words

    def _masked(self, ids: Sequence[int]) -> np.ndarray:
        if ids or not self._leading:
            return self._computed(self._matcher)
        words = self._computed(self._first)
        if words.any():  # else nothing may follow a lead either
            _set(words, self._vocabulary.leads)
        return words

    def _computed(self, matcher: "LLMatcher") -> np.ndarray:
        """A mask, without what llguidance's own ids have there."""
        size, kept = self._vocabulary.size, self._vocabulary.words
        words = np.empty(-(-(size + 1 + BYTES) // 32), np.uint32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        _check(matcher)
        return _cut(words[:kept], size)

    def _go(self, ids: Sequence[int]) -> None:
        """Go on from where the matcher is, or back to where it left `ids`."""
        known = len(self._ids)
        if known > len(ids) or list(ids[:known]) != self._ids:
            pairs = enumerate(zip(self._ids, ids, strict=False))
            self._back(next((n for n, (a, b) in pairs if a != b), min(known, len(ids))))
        for id in ids[len(self._ids) :]:
            self._forward(id)

    def _back(self, count: int) -> None:
        """Forget all but the first `count` ids: one token each after the first."""
        if count:
            self._matcher.rollback(len(self._ids) - count)
        else:
            self._matcher.reset()
        del self._ids[count:]

    def _forward(self, id: int) -> None:
        known = self._vocabulary.spells(id)
        begins = self._leading and not self._ids and id < self._vocabulary.size
        tokens = self._vocabulary.spelt(id) if begins and known else [id]
        followed = self._matcher.try_consume_tokens(tokens) if known else 0
        _check(self._matcher)
        if followed < len(tokens) or not known:
            after = len(self._ids)
            self._start(self._vocabulary.matcher)
            raise RequestError(f"{self._grammar.option} does not allow id {id} after {after} ids")
        self._ids.append(id)


class _Limit(Exception):
    """llguidance gives up: its automaton is too large, or there is too much to parse."""


def _check(matcher: "LLMatcher") -> None:
    """Its word for "nothing follows" is no error here: the mask says that."""
    if matcher.is_error() and "NoExtension" not in (text := reason(matcher.get_error())):
        raise _Limit(text)


class RuleGuide:
    """The ids that a codec's own rule lets follow.

    Args:
        legal: from ids to uint32 words; bits beyond them are 0.
        size: of the model's vocabulary.
        ends: end ids of the rule; `others`, of the model, are allowed where one of them is.
        ignore: no end id is allowed.
    """

    def __init__(
        self,
        legal: Callable[[Sequence[int]], np.ndarray],
        size: int,
        *,
        ends: Sequence[int] = (),
        others: Sequence[int] = (),
        ignore: bool = False,
    ) -> None:
        self._legal, self._size, self._ignore = legal, size, ignore
        self._ends, self._others = tuple(ends), tuple(others)

    def mask(self, ids: Sequence[int], /) -> np.ndarray:
        """uint32 words of the ids that may follow `ids`.

        Raises:
            RequestError: the rule allows none.
        """
        given = self._legal(ids)
        words = np.zeros(-(-self._size // 32), np.uint32)
        words[: len(given)] = given[: len(words)]
        _cut(words, self._size)
        if self._ignore:
            _set(words, self._ends, False)
        elif any(allows(words, id) for id in self._ends):
            _set(words, self._others)
        if not words.any():
            raise RequestError(f"the codec allows no id after the {len(ids)} generated")
        return words

    def complete(self, ids: Sequence[int], /) -> bool:
        """Never: what is whole ends by an end id."""
        return False
