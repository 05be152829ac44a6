"""What a request gives back: whole results, pieces of a stream, scores. Made by `api.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from seriatim.codecs import Codec, Watch
from seriatim.engine.engine import Engine
from seriatim.engine.request import Request, Usage
from seriatim.scoring import Logprobs


@dataclass(frozen=True)
class Result:
    """What a request gave, accounted for.

    Attributes:
        ids: the new ids, the end id excluded; `prompt_ids` the given ones.
        output: the codec's object for `ids`, up to a stop string; None without a codec.
        text: `output` as text, U+FFFD where bytes form no character.
        finish_reason: "stop" or "length"; `stop` is the end id or stop string met, "max_tokens" or
            "context" (or "abort").
        logprobs: of each id, under the model itself; None unless asked for. `stop_logprob` is the
            end id's; `top_logprobs` the likeliest (id, logprob) at each place.
        prompt_logprobs: of each prompt id but the first (None); None unless asked for.
        usage: counts and milliseconds by phase.
        samples: all `n` results; the first is this one.
        reencodes: whether encoding `output` gives `ids` again.
    """

    ids: list[int]
    prompt_ids: list[int]
    output: Any
    text: str
    finish_reason: str
    stop: int | str
    seed: int
    usage: Usage
    logprobs: list[float] | None = None
    stop_logprob: float | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    prompt_logprobs: list[float | None] | None = None
    samples: list["Result"] = field(default_factory=list, repr=False)
    reencodes: bool | None = None


@dataclass(frozen=True)
class Piece:
    """What one step of a stream added: text that will not be taken back, and the new ids."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a sequence under the model.

    Attributes:
        ids: what was scored; start ids and what was `given` are context.
        logprobs: one for each of `ids`.
        nats: their negated sum.
        units: how many `unit`s (bytes of text) were scored.
        bits_per_unit: nats / ln 2 / units; None without a codec, or when no unit was scored.
        error: one standard error of bits_per_unit; None for fewer than 256 ids.
        unscored: 1 where the model has no start id and the first id stands without a context.
        windows: how many overlapping windows were needed (contracts.md, 26).
    """

    ids: list[int]
    logprobs: list[float]
    nats: float
    units: int | None
    unit: str | None
    bits_per_unit: float | None
    error: float | None
    unscored: int
    windows: int


class Stream:
    """A request under way."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        codec: Codec | None,
        watch: Watch | None,
        scores: Logprobs | None,
    ) -> None:
        self.engine, self.request, self.codec = engine, request, codec
        self._watch, self._scores, self._flushed = watch, scores, False

    def pieces(self) -> Iterator[Piece]:
        """What each step adds; closing the iterator aborts the request and frees its cache."""
        request, texts = self.request, 0
        shown = request.prompt
        try:
            while not request.done:
                self.engine.step()
                if request.done:
                    self._flush()
                ids, pieces = request.ids[shown:], request.pieces[texts:]
                if ids or any(pieces):
                    yield Piece("".join(pieces), ids)
                shown, texts = shown + len(ids), texts + len(pieces)
            if request.error is not None:
                raise request.error
        finally:
            self.engine.abort(request)

    def result(self) -> Result:
        """The whole answer, once it is done."""
        self._flush()
        r, codec = self.request, self.codec
        prompt, ids = r.ids[: r.prompt], r.ids[r.prompt :]
        text = "".join(r.pieces)
        asked = r.options.logprobs is not None
        assert r.stop is not None
        return Result(
            ids=ids,
            prompt_ids=prompt,
            output=None if codec is None else _output(codec, prompt, ids, text, r.stop),
            text=text,
            finish_reason="length" if r.stop in ("max_tokens", "context") else "stop",
            stop=r.stop,
            seed=r.options.seed,
            usage=r.usage,
            logprobs=[d.logprob for d in r.draws if d.logprob is not None] if asked else None,
            stop_logprob=r.ending.logprob if r.ending else None,
            top_logprobs=[list(d.top) for d in r.draws] if asked else None,
            prompt_logprobs=None if self._scores is None else self._scores.listed(),
            reencodes=None if codec is None else not codec.differs(ids),
        )

    def _flush(self) -> None:
        """Text held back at the end: it began a stop string or a character, and came to nothing."""
        if self._watch is not None and not self._flushed:
            self.request.pieces.append(self._watch.finish())
        self._flushed = True


def with_samples(samples: list[Result]) -> Result:
    """The first sample, holding them all."""
    samples[0].samples.extend(samples)
    return samples[0]


def _output(codec: Codec, prompt: list[int], ids: list[int], text: str, stop: int | str) -> Any:
    """The codec's object of the ids, up to the stop string if one was met."""
    raw = codec.decode(ids, after=prompt)
    if not isinstance(stop, str) or stop in ("max_tokens", "context", "abort"):
        return raw
    return raw[: raw.find(stop.encode())] if isinstance(raw, bytes) else text
