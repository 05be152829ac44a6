"""From a prompt and options to requests of an engine, and to their results. Used by `api.py`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seriatim.breakers import breaking_ids
from seriatim.codecs import Codec, Spelt, Watch
from seriatim.codecs import Stream as Decoding
from seriatim.codecs._repository import Shown
from seriatim.codecs._until import RULES, Rule
from seriatim.constraints import constraining
from seriatim.constraints.constraining import Constraints
from seriatim.engine.engine import Engine
from seriatim.engine.options import NAMES, logprobs, token_ids
from seriatim.engine.request import Guide, Request
from seriatim.errors import RequestError, SeriatimError, did_you_mean, shown
from seriatim.results import Result, Stream, with_samples
from seriatim.scoring import Logprobs
from seriatim.speculating import Drafting

MOST_SAMPLES, MOST_STOPS, LONGEST_STOP = 128, 16, 256
# What may be asked of a request.
KNOWN = NAMES | constraining.NAMES | {"n", "stop", "until", "prompt_logprobs"}

Prompt = Any  # the codec's object, a pathlib.Path to a file of it, a list of ids, or None


@dataclass(frozen=True)
class Extras:
    """What a request needs beside its options.

    Attributes:
        shown: special ids that show as text, by that text.
        guides: made anew for each sample.
        ends: ids that end it beside the model's own.
        before: the text that it goes on from; default: what its prompt says.
        files: how much its prompt shows of other files, if there are any.
    """

    shown: Mapping[int, str] = field(default_factory=dict)
    guides: Sequence[Callable[[], Guide]] = ()
    ends: Sequence[int] = ()
    before: str | None = None
    files: Sequence[Shown] | None = None


class Visible:
    """A stream of text in which some special ids show."""

    def __init__(self, stream: Decoding, shown: Mapping[int, str]) -> None:
        self._stream, self._shown = stream, shown

    def feed(self, id: int, /) -> str:
        """The text that `id` completes."""
        return self._stream.feed(id) + self._shown.get(id, "")

    def finish(self) -> str:
        """What is left."""
        return self._stream.finish()


NOTHING = Extras()


class Asked(Protocol):
    """What is asked of a model here."""

    @property
    def engine(self) -> Engine: ...
    @property
    def codec(self) -> Codec | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def start(self) -> tuple[int, ...]: ...
    @property
    def drafting(self) -> Drafting: ...
    @property
    def constraints(self) -> Constraints: ...


# ---- prompts -----------------------------------------------------------------------------------


def prompt_ids(model: Asked, prompt: Prompt) -> list[int]:
    """What is conditioned on: the prompt's ids and what the model puts in front."""
    if is_empty(prompt):
        return start_alone(model)
    ids = content(model, prompt)
    start = () if model.codec is None or is_ids(prompt) else model.codec.start
    return [*start, *ids] or start_alone(model)


def content(model: Asked, raw: Prompt) -> list[int]:
    """The ids of an object, a file or a list of ids; nothing added."""
    if isinstance(raw, Path):
        raw = codec_of(model, "a file").read(raw)
    if is_ids(raw) or isinstance(raw, list | tuple):  # what is no id in it is named
        return list(token_ids("prompt", raw, model.vocab_size))
    return codec_of(model, f"a {type(raw).__name__}").encode(raw)


def start_alone(model: Asked) -> list[int]:
    """What an empty prompt becomes."""
    if not model.start:
        raise RequestError(
            "the prompt is empty and the model has no start id",
            expected="a prompt of at least one id",
        )
    return list(model.start)


def codec_of(model: Asked, what: str) -> Codec:
    """The model's codec, which `what` needs."""
    if model.codec is None:
        raise RequestError(
            f"{what} needs a codec, and the model has none",
            expected="a tokenizer or codec.json beside its weights",
            fix="give and take lists of ids",
        )
    return model.codec


def is_empty(prompt: Prompt) -> bool:
    return prompt is None or (isinstance(prompt, str | bytes) and not prompt)


def is_ids(prompt: Prompt) -> bool:
    """A list, tuple or array of whole numbers (anything else is the codec's or an error)."""
    if isinstance(prompt, np.ndarray):
        return True
    return isinstance(prompt, list | tuple) and not any(
        isinstance(p, str | bytes | list | tuple | np.ndarray | Path) for p in prompt
    )


def several(prompt: Prompt) -> bool:
    """Whether it is a list of prompts; a list of ids is one prompt."""
    return isinstance(prompt, list | tuple) and bool(prompt) and not is_ids(prompt)


def numbered(model: Asked, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The ids of each prompt; an error says which one it is about."""
    return [_numbered(model, place, prompts) for place in range(len(prompts))]


def _numbered(model: Asked, place: int, prompts: Sequence[Prompt]) -> list[int]:
    try:
        return prompt_ids(model, prompts[place])
    except SeriatimError as error:
        if len(prompts) == 1:
            raise
        seen = f"prompt {place} of {len(prompts)} (from 0): {error.seen}"
        raise type(error)(seen, expected=error.expected, fix=error.fix) from error


# ---- requests ----------------------------------------------------------------------------------


def run(
    model: Asked,
    prompts: Sequence[list[int]],
    n: int,
    stop: Any,
    options: Mapping[str, Any],
    extras: Extras = NOTHING,
) -> list[Result]:
    """Every prompt is checked before any work; then all run together."""
    streams = open_all(model, prompts, n, stop, options, extras)
    try:
        finish(model.engine, [s.request for some in streams for s in some])
    finally:
        abandon(s for some in streams for s in some)
    return [with_samples([s.result() for s in some]) for some in streams]


def open_all(
    model: Asked,
    prompts: Sequence[list[int]],
    n: int,
    stop: Any,
    options: Mapping[str, Any],
    extras: Extras = NOTHING,
    *,
    generate: bool = True,
) -> list[list[Stream]]:
    """A request for each of `n` samples of each prompt, queued; or, after an error, none."""
    streams: list[list[Stream]] = []
    how: dict[str, Any] = {"extras": extras, "generate": generate}
    try:
        for ids in prompts:
            streams.append([open_stream(model, ids, stop, options, **how)])
            same = {**options, "seed": streams[-1][0].request.options.seed}
            streams[-1] += (
                open_stream(model, ids, stop, same, sample=i, **how) for i in range(1, n)
            )
    except BaseException:
        abandon(s for some in streams for s in some)
        raise
    return streams


def abandon(streams: Iterable[Stream]) -> None:
    """Abort the requests of these; those that are done stay as they are."""
    for stream in streams:
        stream.engine.abort(stream.request)


def open_stream(
    model: Asked,
    ids: list[int],
    stop: Any,
    options: Mapping[str, Any],
    *,
    sample: int = 0,
    extras: Extras = NOTHING,
    generate: bool = True,
) -> Stream:
    """One request, queued; it may end where the first id would be sampled."""
    named = model.drafting.resolved(model, _named(model, options), partial(content, model))
    watch, stops = None, stop_strings(stop, model.codec)
    rule = _rule(model, named.pop("until", None), ids, extras.before)
    if model.codec is not None:
        minimum = named.get("min_tokens", 0)
        decoding = Visible(model.codec.stream(after=ids), extras.shown)
        watch = Watch(decoding, stops, minimum=minimum, rule=rule)
    guides = [*model.constraints.guides(ids, named), *(make() for make in extras.guides)]
    named = {name: value for name, value in named.items() if name not in constraining.NAMES}
    top = logprobs("prompt_logprobs", named.pop("prompt_logprobs", False))
    scores = None if top is None else Logprobs(ids, top=top)
    request = model.engine.add(
        ids,
        sample=sample,
        watch=watch,
        rows=scores,
        guides=guides,
        ends=extras.ends,
        generate=generate,
        **named,
    )
    return Stream(model.engine, request, model.codec, watch, scores, extras.files)


def finish(engine: Engine, requests: Sequence[Request]) -> None:
    """Step until all are done.

    Raises:
        SeriatimError: the first of their errors.
    """
    try:
        for request in requests:
            while not request.done:
                engine.advance(lambda r=request: r.done)
    finally:
        for request in requests:
            engine.abort(request)  # those that are done stay as they are
    for request in requests:
        if request.error is not None:
            raise request.error


def _named(model: Asked, options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in KNOWN:
            raise RequestError(f"unknown option {name!r}", fix=did_you_mean(name, KNOWN))
    named = dict(options)
    if "dry_breakers" in named:
        given = named["dry_breakers"]
        named["dry_breakers"] = breaking_ids(given, model.codec, model.vocab_size)
    return named


def _rule(model: Asked, until: Any, ids: Sequence[int], before: str | None) -> Rule | None:
    """What ends a piece of code that goes on from a prompt."""
    if until is None:
        return None
    if not isinstance(until, str) or until not in RULES:
        expected = " or ".join(map(repr, RULES))
        raise RequestError(f"until is {shown(until)}", expected=expected)
    codec = codec_of(model, "until")
    if not isinstance(codec, Spelt):
        raise RequestError(f"until needs a codec of text, and the model's is {codec.name}")
    said = codec.decode(ids) if before is None else before
    return RULES[until](said.decode(errors="replace") if isinstance(said, bytes) else said)


def stop_strings(stop: Any, codec: Codec | None) -> list[str]:
    """The strings that end a text, checked."""
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f"stop is {shown(stop)}", expected="strings that are not empty")
    if len(stops) > MOST_STOPS or any(len(s) > LONGEST_STOP for s in stops):
        raise RequestError(
            f"stop has {len(stops)} strings, the longest of {max(map(len, stops))} characters",
            expected=f"at most {MOST_STOPS} of at most {LONGEST_STOP}",
        )
    if stops and codec is None:
        raise RequestError(
            "stop strings need a codec, and the model has none", fix="leave stop out"
        )
    return list(stops)
