"""Beam search: the likeliest continuations, found step by step. Nothing is drawn.

Each step asks the engine for the logits after every live beam, in one batch; a beam starts from
what the prefix cache holds of its parent. What ends a beam is what ends any request
(`decoding.accept`). One group of beams is `transformers`' beam search; several are diverse beam
search (Vijayakumar et al., arXiv:1610.02424).
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from math import inf
from typing import Any, Protocol

import numpy as np

from seriatim import requesting
from seriatim.breakers import breaking_ids
from seriatim.codecs import Watch
from seriatim.constraints import constraining
from seriatim.engine.beams import Beam, Group, How, Next, ranked
from seriatim.engine.decoding import Bounds, accept
from seriatim.engine.options import Options, parse, whole
from seriatim.engine.request import Guide, Request
from seriatim.engine.sampling import Draw
from seriatim.errors import RequestError, did_you_mean, shown
from seriatim.requesting import Asked, Prompt, finish, several, stop_strings
from seriatim.results import Result, Stream, with_samples
from seriatim.search.candidates import Candidate, Choice

MOST_BEAMS = 128

# The options of a request that act on a search; the others say how to draw.
ACT = frozenset({
    "max_tokens", "min_tokens", "ignore_end", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_range",
    "dry_breakers", "logit_bias", "allowed_ids", "banned_ids", "processors", "loop_limit",
    "loop_length", "priority", "tenant",
}) | constraining.NAMES  # fmt: skip


class Searched(Asked, Protocol):
    """What a search needs of a model."""

    @property
    def ends(self) -> tuple[int, ...]: ...
    @property
    def context(self) -> int: ...


def beam(
    model: Searched,
    prompt: Prompt = None,
    *,
    beams: int = 4,
    n: int = 1,
    length_penalty: float = 1.0,
    early_finish: bool | str = False,
    groups: int = 1,
    diversity: float = 0.0,
    stop: str | Sequence[str] = (),
    guides: Sequence[Guide] = (),
    **options: Any,
) -> Any:
    """Search for the continuations of highest score, the same ones every time.

    The score of a candidate is the sum of its ids' log-probabilities (the end id's too), after
    penalties, biases and processors, which see log-probabilities here and no logits, over
    (number of ids) ** `length_penalty`. Equal scores go to the lower (beam, id).

    Args:
        prompt: as for `generate`; a list of prompts gives a list of choices.
        beams: how many continuations are followed, at most 128 and the vocabulary.
        n: how many of the best are in `.samples`; `.candidates` holds all that were finished.
        length_penalty: from -10 to 10; above 0 favours longer ones.
        early_finish: True ends as soon as `beams` are finished; False also waits while the best
            live beam would enter them if it ended now; "never" while it still could.
        groups: the beams search in this many groups, each avoiding what those before it chose.
        diversity: what an id loses for each beam of an earlier group that took it at this step.
        stop: strings that end a continuation.
        guides: say at each place which ids may come.
        options: max_tokens, min_tokens, ignore_end, repetition_penalty, presence_penalty,
            frequency_penalty, dry_multiplier and its like, logit_bias, allowed_ids, banned_ids,
            processors, loop_limit, loop_length, priority, tenant; regex, choices, json_schema or
            grammar.

    Returns:
        a `Choice`. Log-probabilities in it are the model's own; `seed` is 0, nothing is drawn.

    Raises:
        RequestError: anything that cannot be honoured whole, sampling options included.
        NumericError: the model's logits are not finite.

    Example:
        >>> import seriatim
        >>> model = seriatim.load("tales", threads=1)
        >>> choice = model.beam("Once upon a time", beams=3, n=2, max_tokens=8)
        >>> [c.score == max(d.score for d in choice.candidates) for c in choice.candidates][0]
        True
        >>> len(choice.samples), choice.output == choice.samples[0].output
        (2, True)
    """
    how = _checked(model, beams, groups, diversity, length_penalty, early_finish)
    count = whole("n", n, 1, how.beams)
    _refuse_idle(options)
    named = {name: value for name, value in options.items() if name not in constraining.NAMES}
    if "dry_breakers" in named:
        named["dry_breakers"] = breaking_ids(named["dry_breakers"], model.codec, model.vocab_size)
    parsed = parse({**named, "seed": 0, "logprobs": True}, model.vocab_size)
    stops = stop_strings(stop, model.codec)
    prompts = requesting.numbered(model, prompt if several(prompt) else [prompt])
    for ids in prompts:
        model.engine.refuse(tuple(ids), room=1)
    led = [(*guides, *model.constraints.guides(ids, options)) for ids in prompts]
    found = [
        _Search(model, ids, parsed, stops, own, how).run(count)
        for ids, own in zip(prompts, led, strict=True)
    ]
    return found if several(prompt) else found[0]


def _checked(
    model: Searched, beams: int, groups: int, diversity: float, penalty: float, early: bool | str
) -> How:
    beams = whole("beams", beams, 1, min(MOST_BEAMS, model.vocab_size))
    groups = whole("groups", groups, 1)
    if beams % groups:
        raise RequestError(
            f"groups is {groups} and beams is {beams}", expected="groups that divide the beams"
        )
    diversity = _real("diversity", diversity, 0, 1e6)
    if (groups > 1) != (diversity > 0):
        raise RequestError(
            f"groups is {groups} and diversity is {diversity}",
            expected="both, or neither: without diversity all groups find the same",
        )
    if not (isinstance(early, bool) or (isinstance(early, str) and early == "never")):
        raise RequestError(f"early_finish is {shown(early)}", expected="True, False or 'never'")
    return How(beams, groups, diversity, _real("length_penalty", penalty, -10, 10), early)


def _real(name: str, value: Any, low: float, high: float) -> float:
    known = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not known or not low <= value <= high:
        expected = f"a number in [{low:g}, {high:g}]"
        raise RequestError(f"{name} is {shown(value)}", expected=expected)
    return float(value)


def _refuse_idle(options: Mapping[str, Any]) -> None:
    """Options that could not act: a search draws nothing, and says all log-probabilities."""
    for name in options:
        if name in requesting.KNOWN - ACT:
            raise RequestError(
                f"beam search cannot honour {name}",
                expected=f"options that act on it: {', '.join(sorted(ACT))}",
                fix="leave it out",
            )
        if name not in ACT:
            raise RequestError(f"unknown option {name!r}", fix=did_you_mean(name, ACT))


class _Search:
    """One prompt's search: groups of beams that take their steps together."""

    def __init__(
        self,
        model: Searched,
        ids: list[int],
        options: Options,
        stops: list[str],
        guides: Sequence[Guide],
        how: How,
    ) -> None:
        self.model, self.stops, self.how = model, stops, how
        self.bounds = Bounds(frozenset(model.ends), model.context)
        reach = min(options.max_tokens or inf, model.context - len(ids))
        self.longest = len(ids) + reach
        root = Beam(Request(0, list(ids), options, guides=tuple(guides)), 0.0)
        self.groups = [Group(how, reach, [root]) for _ in range(how.groups)]

    def run(self, n: int) -> Choice:
        """All that were finished, the best first.

        Raises:
            RequestError: the constraints left no id before anything was finished.
        """
        while any(group.live for group in self.groups):
            self._step()
        found = [f for group in self.groups for f in group.finished]
        if not found:
            raise RequestError(
                "the constraints leave no beam an id, and none is finished", fix="allow more"
            )
        found.sort(key=lambda f: -f[0])
        candidates = [
            Candidate(self._result(beam.request), score, rank)
            for rank, (score, beam) in enumerate(found)
        ]
        best = with_samples([c.result for c in candidates[:n]])
        return Choice(best, candidates[0].score, candidates)

    def _step(self) -> None:
        """One more id for every live beam; groups choose in order, each seeing the earlier ones."""
        live = [beam for group in self.groups for beam in group.live]
        rows = {id(beam.request): Next(beam, self.model.ends) for beam in live}  # a root is shared
        self._compute(list(rows.values()))
        taken = np.zeros(self.model.vocab_size)
        for group in self.groups:
            if group.live:
                own = [rows[id(beam.request)] for beam in group.live]
                group.take(self._children(own, self.how.diversity * taken))
                np.add.at(taken, [beam.request.ids[-1] for beam in group.live], 1)

    def _compute(self, rows: list[Next]) -> None:
        """Logits after each beam: all in one batch, and whatever else the engine runs."""
        root, requests = rows[0].beam.request, []
        try:
            for row in rows:
                requests.append(self._asked(row))
            finish(self.model.engine, requests)
        finally:
            for request in requests:
                self.model.engine.abort(request)  # those that are done stay as they are
        if not root.generated:
            root.usage.cached = requests[0].usage.cached
            root.lap("prefill")

    def _asked(self, row: Next) -> Request:
        ids, options = row.beam.request.ids, row.beam.request.options
        return self.model.engine.add(
            ids,
            rows=row,
            rows_from=len(ids) - 1,
            generate=False,
            priority=options.priority,
            tenant=options.tenant,
            seed=0,
        )

    def _children(self, rows: list[Next], loss: np.ndarray) -> Iterator[Beam]:
        """What may come next in a group, by falling total."""
        totals = np.stack([row.totals for row in rows]) - loss  # [beam, id]
        last = len(rows[0].beam.request.ids) + 1 == self.longest  # then every child is finished
        for place in islice(ranked(totals.ravel()), self.how.width if last else None):
            row, id = divmod(place, totals.shape[1])
            drawn = Draw(id, float(rows[row].own[id]))
            yield Beam(self._child(rows[row].beam.request, drawn), float(totals[row, id]))

    def _child(self, parent: Request, drawn: Draw) -> Request:
        child = copy(parent)
        child.ids, child.draws = [*parent.ids], [*parent.draws]
        child.usage = replace(parent.usage)
        if self.stops:
            self._rewatch(child)
        accept(child, drawn, self.bounds)
        child.lap("decode")
        return child

    def _rewatch(self, request: Request) -> Watch | None:
        """A watch of its own, which has seen its ids: one that has seen some cannot be copied."""
        codec, prompt = self.model.codec, request.ids[: request.prompt]
        if codec is None:
            return None
        watch = Watch(codec.stream(after=prompt), self.stops, minimum=request.options.min_tokens)
        request.watch, request.pieces = watch, [watch.feed(id)[0] for id in request.answer]
        return watch

    def _result(self, request: Request) -> Result:
        watch = self._rewatch(request)
        return Stream(self.model.engine, request, self.model.codec, watch, None).result()
