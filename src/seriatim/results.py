"""What a request gives back: whole results, pieces of a stream, scores. Made by `api.py`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Self

from seriatim.codecs import Codec, Watch
from seriatim.codecs._repository import Shown
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
        finish_reason: "stop", "length" or, of a closed stream, "abort"; `stop` is the end id or
            stop string met, "line", "block" or "braces" (`until`), "complete" (nothing may follow
            by a constraint), "loop", "max_tokens", "context" or "abort".
        logprobs: of each id, under the model itself; None unless asked for. `stop_logprob` is the
            end id's; `top_logprobs` the likeliest (id, logprob) at each place.
        prompt_logprobs: of each prompt id but the first (None); None unless asked for.
            `prompt_top_logprobs` the likeliest (id, logprob) at each of these places.
        usage: counts and milliseconds by phase.
        samples: all `n` results; the first says what this one says.
        reencodes: whether encoding `output` gives `ids` again.
        files: of a gap with other files: how much of each the prompt shows.
        message: of a chat: role, content and, where it was reasoned, reasoning_content.
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
    prompt_top_logprobs: list[list[tuple[int, float]] | None] | None = None
    samples: list["Result"] = field(default_factory=list, repr=False)
    reencodes: bool | None = None
    files: list[Shown] | None = None
    message: dict[str, Any] | None = None


@dataclass(frozen=True)
class Piece:
    """What one step of a stream added: text that will not be taken back, and the new ids.

    Of a chat, `text` is the answer's, and `reasoning` what was thought before it.
    """

    text: str
    ids: list[int]
    reasoning: str = ""


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
    """A request under way: an iterator over its pieces. To close or drop it ends the request.

    `async for` gives the same pieces without blocking the event loop: the engine then runs in a
    thread of its own.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        codec: Codec | None,
        watch: Watch | None,
        scores: Logprobs | None,
        files: Sequence[Shown] | None = None,
    ) -> None:
        self.engine, self.request, self.codec, self.files = engine, request, codec, files
        self._watch, self.scores = watch, scores  # of the prompt
        self._shown, self._texts, self._over = request.prompt, 0, False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        """What the next steps add. A step for another stream may have added to this one."""
        try:
            while (piece := self.take()) is None and not self._over:
                self.engine.advance(self._moved)
        except BaseException:
            self.close()
            raise
        if piece is not None:
            return piece
        if self.request.error is not None:
            raise self.request.error
        raise StopIteration

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with aclosing(self.engine.follow(self.request)) as steps:
            async for _ in steps:
                if (piece := self.take()) is not None:
                    yield piece
        if (piece := self.take()) is not None:  # what was held back
            yield piece

    def close(self) -> None:
        """Abort the request and free its cache."""
        self.engine.abort(self.request)
        while not self.request.done:  # another thread's step is under way
            self.engine.advance(lambda: self.request.done)
        self._finish()

    def __del__(self) -> None:
        self.engine.abort(self.request)

    def result(self) -> Result:
        """The whole answer: what the pieces fold into.

        Raises:
            NumericError, RequestError: what ended the request.
        """
        for _ in self:
            pass
        r, codec = self.request, self.codec
        prompt, ids = r.ids[: r.prompt], r.ids[r.prompt :]
        text = "".join(r.pieces)
        asked = r.options.logprobs is not None
        assert r.stop is not None  # it is over, and without an error
        return Result(
            ids=ids,
            prompt_ids=prompt,
            output=None if codec is None else _output(codec, ids, prompt, text, r),
            text=text,
            finish_reason=r.reason,
            stop=r.stop,
            seed=r.options.seed,
            usage=r.usage,
            logprobs=[d.logprob for d in r.draws if d.logprob is not None] if asked else None,
            stop_logprob=r.ending.logprob if r.ending else None,
            top_logprobs=[list(d.top) for d in r.draws] if asked else None,
            prompt_logprobs=None if self.scores is None else self.scores.listed(),
            prompt_top_logprobs=None if self.scores is None else self.scores.likeliest(),
            reencodes=None if codec is None else not codec.differs(ids),
            files=None if self.files is None else list(self.files),
        )

    def take(self) -> Piece | None:
        """What has come since the last piece; None for nothing yet, or nothing more. No step."""
        if self.request.done:  # asked before what came last is read: a thread may still add to it
            self._finish()
        texts = self.request.pieces[self._texts :]
        end = self._shown + len(texts) if self._watch else None  # a text follows its id
        ids = self.request.ids[self._shown : end]
        self._shown, self._texts = self._shown + len(ids), self._texts + len(texts)
        return Piece("".join(texts), ids) if ids or any(texts) else None

    def _moved(self) -> bool:
        return self.request.done or self._shown < len(self.request.ids)

    def _finish(self) -> None:
        """Nothing more will come: shows what was held back, since it begins no stop string."""
        if not self._over and self._watch is not None:
            self.request.pieces.append(self._watch.finish())
        self._over = True


def with_samples(samples: list[Result]) -> Result:
    """The first sample, holding them all."""
    return replace(samples[0], samples=samples)


def _output(codec: Codec, ids: list[int], prompt: list[int], text: str, request: Request) -> Any:
    """The codec's object of all ids, up to the stop string if one was met."""
    raw = codec.decode(ids, after=prompt)
    if request.reason != "stop" or not isinstance(request.stop, str):
        return raw
    if isinstance(raw, str):
        return text
    if isinstance(raw, bytes):
        return _before(raw, text)
    return codec.decode(_shown(codec, ids, prompt, text), after=prompt)


def _shown(codec: Codec, ids: list[int], prompt: list[int], text: str) -> list[int]:
    """The first of `ids`, whose text is `text`; of an object that is no text, whole ids count."""
    stream, size = codec.stream(after=prompt), 0
    for count, id in enumerate(ids):
        size += len(stream.feed(id))
        if size > len(text):
            return ids[:count]
    return ids


def _before(raw: bytes, text: str) -> bytes:
    """The beginning of `raw` that reads as `text`: bytes that are no text stay as they are."""
    ends = range(len(raw), -1, -1)
    return next((raw[:n] for n in ends if raw[:n].decode(errors="replace") == text), raw)
