"""`load` and `Model`: where a codec meets an engine.

Everything here is a fold over `Engine.step()`: one request is a batch of one, a score is a request
that generates nothing, the whole answer is the end of the stream.
"""

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.codecs import Codec, Watch
from seriatim.engine.cache import BlockPool
from seriatim.engine.engine import Engine
from seriatim.engine.options import NAMES, token_ids, whole
from seriatim.engine.request import Request
from seriatim.errors import RequestError, SeriatimError, did_you_mean, shown
from seriatim.kernels.ops import BLOCK, Runtime
from seriatim.models.checkpoint import Checkpoint
from seriatim.results import Result, Score, Stream, with_samples
from seriatim.scoring import Logprobs, Window, standard_error, windows

MOST_SAMPLES = 128
MOST_STOPS, LONGEST_STOP = 16, 256

Prompt = Any  # the codec's object, a pathlib.Path to a file of it, a list of ids, or None


class Model:
    """A loaded model: ids in and out, and its codec's objects in and out.

    Made by `seriatim.load`. `print(model)` says what it is.
    """

    def __init__(
        self,
        source: Checkpoint,
        codec: Codec | None,
        run: Runtime,
        *,
        blocks: int,
        weight_bytes: int,
        facts: str,
    ) -> None:
        self.checkpoint, self.codec, self.runtime = source, codec, run
        self.weight_bytes = weight_bytes  # as loaded: precision may differ from what is stored
        self.pool = BlockPool(blocks, run.resize)
        self.vocab_size = source.spec.vocab_size
        self.context = min(source.spec.context, blocks * BLOCK)
        self.ends = tuple(sorted({*source.ends, *(codec.ends if codec else ())}))
        own = () if source.start is None else (source.start,)
        self.start = (codec.start if codec else ()) or own  # what an empty prompt becomes
        self.facts = facts
        self.engine = Engine(self)  # every call of this model shares it

    def __repr__(self) -> str:
        return f"<seriatim.Model {self.facts}>"

    def generate(
        self,
        prompt: Prompt = None,
        *,
        n: int = 1,
        stop: str | Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Continue a prompt, one id at a time, until a stop or a full context.

        Args:
            prompt: the codec's object (a `str` is always its literal form), a `Path` to a file of
                it, a list of ids, or nothing for the model's start id. A list of prompts gives a
                list of results, computed together and equal to one by one.
            n: how many samples, in `.samples`; the sample index is part of the noise.
            stop: strings that end the text; `output` ends before the one that is met.
            options: max_tokens (default: until the context is full), min_tokens, temperature
                (default 1.0; 0 is greedy), top_k, top_p, min_p, repetition_penalty,
                presence_penalty, frequency_penalty, logit_bias, allowed_ids, banned_ids, seed
                (default: drawn, and returned), ignore_end, logprobs (True, or how many
                alternatives, at most 20), prompt_logprobs, forced_ids, processors, priority,
                tenant.

        Raises:
            RequestError: anything that cannot be honoured whole, before any work.
            NumericError: the model's logits are not finite.

        Example:
            >>> import seriatim
            >>> model = seriatim.load("tales", threads=1)
            >>> model.generate("Once upon a time", max_tokens=8, seed=1).finish_reason
            'length'
        """
        count = whole("n", n, 1, MOST_SAMPLES)
        if _several(prompt):
            return self._all(prompt, count, stop, options)
        return self._all([prompt], count, stop, options)[0]

    def stream(
        self, prompt: Prompt = None, *, stop: str | Sequence[str] = (), **options: Any
    ) -> Stream:
        """The pieces of `generate`'s answer as they come, then its `.result()`.

        Closing the iterator, or dropping it, ends the request and frees its cache.

        Raises:
            RequestError, NumericError: as `generate`; options are checked before the first piece.
        """
        if _several(prompt) or "n" in options:
            raise RequestError(
                f"stream was given {'n' if 'n' in options else 'a list of prompts'}",
                expected="one prompt, and one sample of it",
                fix="use generate",
            )
        return self._open(self.prompt_ids(prompt), stop, options)

    def score(self, raw: Prompt, *, given: Prompt = None) -> Score:
        """Log-likelihood of an object or of ids, the same numbers as the training loss.

        Args:
            raw: the codec's object, a `Path` to a file of it, or a list of ids, used as given.
            given: what comes before it: conditioned on, not scored.

        Raises:
            RequestError: nothing to score, or ids outside the vocabulary.

        Example:
            >>> import seriatim
            >>> score = seriatim.load("tales", threads=1).score("Once upon a time")
            >>> len(score.logprobs) == len(score.ids)
            True
        """
        ids, first = self._to_score(raw, given)
        if len(ids) <= first:
            raise RequestError("there is nothing to score", expected="at least one id to predict")
        cuts = list(windows(len(ids), context=self.context, lead=self._lead(ids), first=first))
        logprobs = np.concatenate(self._window_logprobs(ids, cuts))
        nats, codec = -float(logprobs.sum()), self.codec
        units = None if codec is None else codec.units(ids[first:], after=ids[:first])
        return Score(
            ids=ids[first:],
            logprobs=logprobs.tolist(),
            nats=nats,
            units=units,
            unit=None if codec is None else codec.unit,
            bits_per_unit=nats / log(2) / units if units else None,
            error=None if codec is None else standard_error(ids, logprobs, codec),
            unscored=int(given is None and not self._lead(ids)),
            windows=len(cuts),
        )

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each of `ids`: float32 [len(ids), vocab_size].

        Raises:
            RequestError: ids outside the vocabulary, none of them, or more than the context.
        """
        ids = token_ids("ids", ids, self.vocab_size)
        most = min(len(ids), self.context)  # `add` refuses more
        logits = np.empty((most, self.vocab_size), np.float32)

        def keep(position: int, rows: np.ndarray) -> None:
            logits[position : position + len(rows)] = rows

        self._finish([self.engine.add(ids, rows=keep, generate=False)])
        return logits

    def encode(self, raw: Any) -> list[int]:
        """The ids of the codec's object; nothing is added."""
        return self._codec("encode").encode(raw)

    def decode(self, ids: Sequence[int]) -> Any:
        """The codec's object of ids."""
        codec = self._codec("decode")
        return codec.decode(token_ids("ids", ids, self.vocab_size))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What `generate` conditions on: the prompt's ids and what the model puts in front."""
        if _empty(prompt):
            return self._start_alone()
        content = self._content(prompt)
        start = () if self.codec is None or _is_ids(prompt) else self.codec.start
        return [*start, *content] or self._start_alone()

    # ---------------------------------------------------------------- the fold over Engine.step()

    def _all(
        self, prompts: Sequence[Prompt], n: int, stop: Any, options: Mapping[str, Any]
    ) -> list[Result]:
        """Every prompt is checked before any work; then all run together."""
        checked = [self._numbered(place, prompts) for place in range(len(prompts))]
        streams: list[list[Stream]] = []
        try:
            for ids in checked:
                streams.append([self._open(ids, stop, options)])
                same = {**options, "seed": streams[-1][0].request.options.seed}
                streams[-1] += (self._open(ids, stop, same, sample=i) for i in range(1, n))
            self._finish([s.request for some in streams for s in some])
        finally:
            for stream in (s for some in streams for s in some):
                self.engine.abort(stream.request)  # those that are done stay as they are
        return [with_samples([s.result() for s in some]) for some in streams]

    def _numbered(self, place: int, prompts: Sequence[Prompt]) -> list[int]:
        """The ids of one prompt of several; an error says which one it is."""
        try:
            return self.prompt_ids(prompts[place])
        except SeriatimError as error:
            if len(prompts) == 1:
                raise
            seen = f"prompt {place} of {len(prompts)} (from 0): {error.seen}"
            raise type(error)(seen, expected=error.expected, fix=error.fix) from error

    def _open(
        self, ids: list[int], stop: Any, options: Mapping[str, Any], sample: int = 0
    ) -> Stream:
        named = _named(options)
        minimum = named.get("min_tokens", 0)
        stops = _stops(stop, self.codec)
        watch = None
        if self.codec is not None:
            watch = Watch(self.codec.stream(after=ids), stops, minimum=minimum)
        scores = Logprobs(ids) if named.pop("prompt_logprobs", False) is True else None
        request = self.engine.add(ids, sample=sample, watch=watch, rows=scores, **named)
        return Stream(self.engine, request, self.codec, watch, scores)

    def _finish(self, requests: Sequence[Request]) -> None:
        try:
            while any(not r.done for r in requests):
                self.engine.step()
        finally:
            for request in requests:
                self.engine.abort(request)  # those that are done stay as they are
        for request in requests:
            if request.error is not None:
                raise request.error

    # ---------------------------------------------------------------- scoring

    def _to_score(self, raw: Prompt, given: Prompt) -> tuple[list[int], int]:
        """All ids, and how many of them are only context."""
        if given is None:
            ids = self.prompt_ids(raw)
            return ids, self._lead(ids) or 1
        before = self.prompt_ids(given)
        return before + self._content(raw), len(before)

    def _window_logprobs(self, ids: list[int], cuts: list[Window]) -> list[np.ndarray]:
        """log p of the ids that each window scores."""
        sinks = [Logprobs([*ids[: w.lead], *ids[w.start : w.end]], w.first) for w in cuts]
        requests = [self.engine.add(s.ids, rows=s, generate=False, seed=0) for s in sinks]
        self._finish(requests)
        return [sink.values[sink.first :] for sink in sinks]

    def _content(self, raw: Prompt) -> list[int]:
        """The ids of an object, a file or a list of ids; nothing added."""
        if isinstance(raw, Path):
            raw = self._codec("a file").read(raw)
        if _is_ids(raw) or isinstance(raw, list | tuple):  # what is no id in it is named
            return list(token_ids("prompt", raw, self.vocab_size))
        return self._codec(f"a {type(raw).__name__}").encode(raw)

    def _lead(self, ids: Sequence[int]) -> int:
        """How many start ids stand in front of `ids`."""
        start = list(self.codec.start if self.codec else self.start)
        return len(start) if list(ids[: len(start)]) == start else 0

    def _start_alone(self) -> list[int]:
        if not self.start:
            raise RequestError(
                "the prompt is empty and the model has no start id",
                expected="a prompt of at least one id",
            )
        return list(self.start)

    def _codec(self, what: str) -> Codec:
        if self.codec is None:
            raise RequestError(
                f"{what} needs a codec, and the model has none",
                expected="a tokenizer or codec.json beside its weights",
                fix="give and take lists of ids",
            )
        return self.codec


def _empty(prompt: Prompt) -> bool:
    return prompt is None or (isinstance(prompt, str | bytes) and not prompt)


def _is_ids(prompt: Prompt) -> bool:
    """A list, tuple or array of whole numbers (anything else is the codec's or an error)."""
    if isinstance(prompt, np.ndarray):
        return True
    return isinstance(prompt, list | tuple) and not any(
        isinstance(p, str | bytes | list | tuple | np.ndarray | Path) for p in prompt
    )


def _several(prompt: Prompt) -> bool:
    """Whether it is a list of prompts; a list of ids is one prompt."""
    return isinstance(prompt, list | tuple) and bool(prompt) and not _is_ids(prompt)


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    known = NAMES | {"n", "stop", "prompt_logprobs"}
    for name in options:
        if name not in known:
            raise RequestError(f"unknown option {name!r}", fix=did_you_mean(name, known))
    asked = options.get("prompt_logprobs", False)
    if not isinstance(asked, bool):
        raise RequestError(f"prompt_logprobs is {shown(asked)}", expected="True or False")
    return dict(options)


def _stops(stop: Any, codec: Codec | None) -> list[str]:
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
