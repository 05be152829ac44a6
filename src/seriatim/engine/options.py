"""The options of a request: their names, their ranges, and the errors for everything else."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from operator import index
from secrets import randbits
from typing import Any

from seriatim.engine.lookup import Text
from seriatim.engine.sampling import FILTERS, Sampling
from seriatim.errors import RequestError, did_you_mean, shown

MOST_LOGPROBS = 20
MOST_DRAFTS = 32
SPECULATORS = ("ngram", "suffix")


@dataclass(frozen=True)
class Options:
    """A validated request: what is sampled, how long, and what is reported."""

    seed: int
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_end: bool = False
    logprobs: int | None = None  # None: none; else how many alternatives beside the chosen
    forced_ids: tuple[int, ...] = ()
    loop_limit: int = 0  # so often may the last ids repeat; 0: as often as they like
    loop_length: int = 64  # the longest that counts as one repetition
    priority: int = 0  # higher is served first
    tenant: str = ""
    speculate: str | None = None  # one of SPECULATORS
    draft: Any = None  # a model of the same vocabulary that guesses
    draft_text: Text | None = None  # guesses are taken from it too
    draft_tokens: int | None = None  # guesses in a step; None: as many as pay

    @property
    def speculates(self) -> bool:
        """Whether anything guesses what follows."""
        return self.draft_tokens != 0 and (self.speculate or self.draft) is not None


def parse(given: Mapping[str, Any], vocab_size: int) -> Options:
    """Check request options by name, type and range.

    Raises:
        RequestError: the first option that cannot be honoured, and what would be.
    """
    for name in given:
        if name not in _CHECKS:
            raise RequestError(f"unknown option {name!r}", fix=did_you_mean(name, _CHECKS))
    values = {name: _CHECKS[name](name, value, vocab_size) for name, value in given.items()}
    drawn = values.pop("seed", None)
    sampling = Sampling(**{k: v for k, v in values.items() if k in _SAMPLING})
    rest = {k: v for k, v in values.items() if k not in _SAMPLING}
    options = Options(randbits(64) if drawn is None else drawn, sampling, **rest)
    return _consistent(options, vocab_size)


def silent(options: Options) -> Options:
    """The same request, generating nothing."""
    return replace(options, max_tokens=0)


def whole(name: str, value: Any, low: float, high: float = float("inf")) -> int:
    """An integer within [low, high]; a bool or a float is none."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        upper = f" to {high}" if isfinite(high) else " or more"
        raise RequestError(f"{name} is {shown(value)}", expected=f"a whole number, {low}{upper}")
    return number


def logprobs(name: str, value: Any) -> int | None:
    """False: none. True: the chosen id's. k: also the k likeliest."""
    if isinstance(value, bool):
        return 0 if value else None
    return whole(name, value, 0, MOST_LOGPROBS)


def token_ids(name: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    """Ids within the vocabulary, from any sequence of whole numbers."""
    try:
        given = None if isinstance(value, str | bytes | Mapping) else list(value)
    except TypeError:
        given = None
    if given is None:
        raise RequestError(f"{name} is {shown(value)}", expected="a list of ids")
    ids = tuple(map(_number, given))
    wrong = next((place for place, id in enumerate(ids) if not 0 <= id < vocab_size), None)
    if wrong is not None:
        raise RequestError(
            f"{name}[{wrong}] is {shown(given[wrong])}",
            expected=f"an id from 0 to {vocab_size - 1} (the vocabulary has {vocab_size})",
        )
    return ids


def _number(value: Any) -> int:
    """-1 for what is no whole number: a bool, a float."""
    try:
        return -1 if isinstance(value, bool) else index(value)
    except TypeError:
        return -1


def _consistent(options: Options, vocab_size: int) -> Options:
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise RequestError(
            f"min_tokens is {options.min_tokens} and max_tokens is {options.max_tokens}",
            expected="min_tokens <= max_tokens",
        )
    if options.max_tokens is not None and len(options.forced_ids) > options.max_tokens:
        raise RequestError(
            f"forced_ids has {len(options.forced_ids)} ids and max_tokens is {options.max_tokens}",
            expected="no more forced ids than max_tokens",
        )
    _speculation(options)
    _consistent_ids(options, vocab_size)
    _consistent_filters(options.sampling)
    return options


def _consistent_ids(options: Options, vocab_size: int) -> None:
    allowed, banned = options.sampling.allowed_ids, set(options.sampling.banned_ids)
    left = None if allowed is None else set(allowed) - banned
    if len(banned) == vocab_size or (left is not None and not left):
        raise RequestError("allowed_ids and banned_ids leave no id", fix="allow at least one")
    for place, id in enumerate(options.forced_ids):
        if id in banned or (left is not None and id not in left):
            raise RequestError(
                f"forced_ids[{place}] is {id}, which allowed_ids or banned_ids forbid",
                fix="force other ids, or allow it",
            )


def check_ends(options: Options, ends: Collection[int]) -> None:
    """Refuse a forced id that would end the request before `min_tokens`.

    Raises:
        RequestError: there is one.
    """
    early = () if options.ignore_end else options.forced_ids[: options.min_tokens]
    for place, id in enumerate(early):
        if id in ends:
            raise RequestError(
                f"forced_ids[{place}] is {id}, which ends the request, and min_tokens is "
                f"{options.min_tokens}",
                fix="force another id, lower min_tokens, or give ignore_end=True",
            )


def _consistent_filters(how: Sampling) -> None:
    if how.dynatemp_range > how.temperature:
        raise RequestError(
            f"dynatemp_range is {how.dynatemp_range:g} and temperature is {how.temperature:g}",
            expected="dynatemp_range <= temperature: none is below 0",
        )
    missing = sorted(set(replace(how, filters=FILTERS).order) - {*how.filters, "temperature"})
    if missing:
        raise RequestError(
            f"{missing[0]} is on and not among the filters {', '.join(how.filters) or '(none)'}",
            fix="add it where it is to act",
        )


def _speculation(options: Options) -> None:
    source = options.speculate or options.draft
    if options.speculate is not None and options.draft is not None:
        raise RequestError(
            f"speculate is {options.speculate!r} and draft is given", expected="one of them"
        )
    if options.draft_tokens is not None and source is None:
        raise RequestError(
            f"draft_tokens is {options.draft_tokens} and nothing drafts",
            fix="give speculate or draft",
        )
    if options.draft_text is not None and options.speculate != "suffix":
        raise RequestError(
            f"draft_text is given and speculate is {options.speculate!r}", expected="'suffix'"
        )


def _speculator(name: str, value: Any, _: int) -> str:
    if not isinstance(value, str) or value not in SPECULATORS:
        expected = " or ".join(map(repr, SPECULATORS))
        raise RequestError(f"{name} is {shown(value)}", expected=expected)
    return value


def _drafting(name: str, value: Any, vocab_size: int) -> Any:
    size = getattr(value, "vocab_size", None)
    if size is None:
        raise RequestError(f"{name} is {shown(value)}", expected="a loaded model")
    if size != vocab_size:
        raise RequestError(
            f"the draft model has {size} ids and the model {vocab_size}",
            expected="the same vocabulary",
        )
    return value


def _draft_text(name: str, value: Any, vocab_size: int) -> Text:
    return value if isinstance(value, Text) else Text(token_ids(name, value, vocab_size))


def _whole(low: int, high: float = float("inf")) -> Callable:
    return lambda name, value, _: whole(name, value, low, high)


def _optional(check: Callable) -> Callable:
    return lambda name, value, vocab: None if value is None else check(name, value, vocab)


def real(low: float, high: float, *, open_low: bool = False) -> Callable:
    def check(name: str, value: Any, _: int) -> float:
        try:
            number = float("nan" if isinstance(value, bool | str | bytes) else value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not (low < number if open_low else low <= number) or not number <= high:
            left, right = "(" if open_low else "[", "]" if isfinite(high) else ")"
            expected = f"a number in {left}{low:g}, {high:g}{right}"
            raise RequestError(f"{name} is {shown(value)}", expected=expected)
        if not isfinite(number):
            raise RequestError(f"{name} is {shown(value)}", expected="a finite number")
        return number

    return check


def _flag(name: str, value: Any, _: int) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {shown(value)}", expected="True or False")
    return value


def _text(name: str, value: Any, _: int) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} is {shown(value)}", expected="a string")
    return value


def _bias(name: str, value: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {shown(value)}", expected="a mapping from id to number")
    ids = token_ids(name, value.keys(), vocab_size)
    within = real(-1e6, 1e6)
    biases = (
        within(f"{name}[{i}]", b, vocab_size) for i, b in zip(ids, value.values(), strict=True)
    )
    return tuple(zip(ids, biases, strict=True))


def _filters(name: str, value: Any, _: int) -> tuple[str, ...]:
    """Names in the order in which they act, each at most once."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RequestError(f"{name} is {shown(value)}", expected=f"a list of {', '.join(FILTERS)}")
    for place, filter in enumerate(value):
        if not isinstance(filter, str) or filter not in FILTERS:
            fix = did_you_mean(filter, FILTERS) if isinstance(filter, str) else ""
            seen = f"{name}[{place}] is {shown(filter)}"
            raise RequestError(seen, expected=f"one of {', '.join(FILTERS)}", fix=fix)
        if filter in value[:place]:
            raise RequestError(f"{name} has {filter!r} twice", fix="leave one of them out")
    return tuple(value)


def _limit(name: str, value: Any, _: int) -> int:
    """0, or at least 2: one occurrence repeats nothing."""
    number = whole(name, value, 0)
    if number == 1:
        raise RequestError(f"{name} is 1", expected="0 (off), or 2 or more")
    return number


def _processors(name: str, value: Any, _: int) -> tuple:
    if not isinstance(value, Sequence) or not all(callable(f) for f in value):
        expected = "a list of functions (ids, logits)"
        raise RequestError(f"{name} is {shown(value)}", expected=expected)
    return tuple(value)


_CHECKS: dict[str, Callable[[str, Any, int], Any]] = {
    "max_tokens": _optional(_whole(1)),
    "min_tokens": _whole(0),
    "temperature": real(0, float("inf")),
    "dynatemp_range": real(0, float("inf")),
    "dynatemp_exponent": real(0, 1e6),
    "top_k": _whole(0),
    "typical_p": real(0, 1, open_low=True),
    "top_p": real(0, 1, open_low=True),
    "min_p": real(0, 1),
    "xtc_probability": real(0, 1),
    "xtc_threshold": real(0, 1),
    "filters": _filters,
    "repetition_penalty": real(1e-6, 1e6),
    "presence_penalty": real(-1e6, 1e6),
    "frequency_penalty": real(-1e6, 1e6),
    "dry_multiplier": real(0, 1e6),
    "dry_base": real(1, 1e6),
    "dry_allowed_length": _whole(1, 2**31),
    "dry_range": _whole(0, 2**31),
    "dry_breakers": token_ids,
    "logit_bias": _bias,
    "allowed_ids": _optional(token_ids),
    "banned_ids": token_ids,
    "processors": _processors,
    "seed": _optional(_whole(0, 2**64 - 1)),
    "ignore_end": _flag,
    "logprobs": lambda name, value, _: logprobs(name, value),
    "forced_ids": token_ids,
    "loop_limit": _limit,
    "loop_length": _whole(1, 4096),
    "priority": _whole(-(2**31), 2**31),
    "tenant": _text,
    "speculate": _optional(_speculator),
    "draft": _optional(_drafting),
    "draft_text": _optional(_draft_text),
    "draft_tokens": _optional(_whole(0, MOST_DRAFTS)),
}
_SAMPLING = {f.name for f in fields(Sampling)}
NAMES = frozenset(_CHECKS)
