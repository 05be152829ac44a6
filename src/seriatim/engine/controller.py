"""How far to guess: as far as it brings the most ids a second, which may be not at all.

Each guess has a chance, learnt from those before it, and a price, measured on this machine. Both
change while requests run, so now and then a step does the contrary of what the figures advise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from time import perf_counter

from seriatim.engine.costs import Costs, Measured
from seriatim.engine.drafting import Drafter, Drafts, idle
from seriatim.engine.lookup import Lookup
from seriatim.engine.options import Options
from seriatim.engine.propose import Guess, Index, Ngram, Proposer, Rates, Suffix, expected
from seriatim.engine.request import Request, Speculator

LONGEST = 16  # guesses for one request in one step, where nobody asked for another number
FIRST, LAST = 64, 1024  # steps until the figures are doubted: twice as many each time
WORTH = 0.25  # a guess less likely than that pays at no price
TRIAL = 2  # guesses of a draft model that is tried again
AGREES = 0.7  # of a draft model's guesses, before any was computed

Asked = Sequence[tuple[Request, int]]


@dataclass
class Track:
    """What is known of one request.

    Attributes:
        proposer: where its guesses come from, if not from a draft model.
        agrees: how often the draft model was right.
        drafted: of its usage, when it was last looked at; likewise `accepted`.
        plain: what its latest step would have taken without guesses, in ms; `spent`: with them.
    """

    proposer: Proposer | None
    agrees: Rates
    drafted: int = 0
    accepted: int = 0
    plain: float = 0.0
    spent: float = 0.0


@dataclass
class Step:
    """The step under way: its tokens without guesses, who was asked about, and the time it took
    draft models."""

    tokens: int = 0
    tracks: list[Track] = field(default_factory=list)
    drafting: float = 0.0


class Doubt:
    """Says now and then to do the contrary of what was done for many steps."""

    def __init__(self) -> None:
        self._guessed, self._wait, self._steps = False, FIRST, 0

    def __call__(self, guesses: bool) -> bool:
        if guesses != self._guessed:
            self._guessed, self._wait, self._steps = guesses, FIRST, 0
        self._steps += 1
        if self._steps < self._wait:
            return False
        self._wait, self._steps = min(2 * self._wait, LAST), 0
        return True


class Controller(Speculator):
    """Speculates for the requests of one engine, as their options say.

    Args:
        costs: of the model's steps.
        ends: where its requests end.
        measure: gives the costs of a draft model.
    """

    def __init__(
        self,
        costs: Costs,
        ends: frozenset[int] = frozenset(),
        measure: Callable[[Drafts], Costs] = Measured,
    ) -> None:
        self._costs, self._ends, self._measure = costs, ends, measure
        self._tracks: dict[Request, Track] = {}
        self._elders: dict[type, Rates] = {Drafter: Rates([AGREES], memory=256)}
        self._drafters: dict[int, Drafter] = {}  # by the model's identity
        self._doubt, self._draft_doubt = Doubt(), Doubt()
        self._step = Step()

    def propose(self, asked: Asked, tokens: int) -> list[Sequence[int]]:
        """What follows, from wherever each request's options say."""
        self._costs.step(tokens)  # measures at first: now, while no logits wait to be read
        self._step = Step(tokens, [self._track(request) for request, _ in asked])
        drafts = self._drafted(asked, tokens)
        free: dict[Request, Guess] = {}
        for (request, most), track in zip(asked, self._step.tracks, strict=True):
            if track.proposer is not None:
                fixed = request.options.draft_tokens
                guess = track.proposer.guess(request.ids, min(most, fixed or LONGEST))
                if fixed is None:
                    free[request] = guess
                else:
                    drafts[request] = guess.ids
        tokens += sum(map(len, drafts.values()))
        counts = self._counts([guess.chances for guess in free.values()], tokens)
        for (request, guess), count in zip(free.items(), counts, strict=True):
            drafts[request] = guess.ids[:count]
        return [drafts.get(request, ()) for request, _ in asked]

    def ran(self, tokens: int, seconds: float) -> None:
        """Learn what a step costs, and what it would have cost without guesses."""
        step = self._step
        if step.tokens == len(step.tracks):  # each token has logits, as in what is measured
            self._costs.ran(tokens, seconds)
        share = self._costs.step(step.tokens) / self._costs.step(tokens)
        for track in step.tracks:
            track.plain, track.spent = 1e3 * seconds * share, 1e3 * (seconds + step.drafting)

    def release(self, request: Request) -> None:
        """Count what its last guesses brought, and forget it."""
        if request in self._tracks:
            settle(request, self._tracks.pop(request))
        for drafter in self._drafters.values():
            drafter.release(request)

    def _track(self, request: Request) -> Track:
        if (track := self._tracks.get(request)) is not None:
            settle(request, track)
            return track
        proposer = None if request.options.draft is not None else self._proposer(request.options)
        return self._tracks.setdefault(request, Track(proposer, self._elders[Drafter].younger()))

    def _proposer(self, how: Options) -> Proposer:
        indices: list[Index] = [Ngram() if how.speculate == "ngram" else Suffix()]
        indices += [] if how.draft_text is None else [Lookup(how.draft_text)]
        for index in indices:
            self._elders.setdefault(type(index), expected(index.kinds))
        return Proposer(*((index, self._elders[type(index)].younger()) for index in indices))

    def _counts(self, chances: Sequence[Sequence[float]], tokens: int) -> list[int]:
        """How many guesses of each request are computed."""
        counts = lengths(chances, tokens, self._costs)
        if not self._doubt(any(counts)):
            return counts
        best = max(range(len(chances)), key=lambda i: [*chances[i][:1]], default=None)
        tried = not any(counts) and best is not None and [*chances[best], 0.0][0] >= WORTH
        return [int(tried and i == best) for i in range(len(chances))]

    def _drafted(self, asked: Asked, tokens: int) -> dict[Request, Sequence[int]]:
        """What draft models guess; each is asked once."""
        groups: dict[int, list[tuple[Request, int]]] = {}
        for request, most in asked:
            if request.options.draft is not None:
                groups.setdefault(id(request.options.draft), []).append((request, most))
        drafts: dict[Request, Sequence[int]] = {}
        for group in groups.values():
            with idle(model := group[0][0].options.draft) as free:
                if free and not model.pool.turn.read:  # a step of its own has called for this one
                    drafts |= self._guessed(model, group, tokens)
        return drafts

    def _guessed(self, model: Drafts, group: Asked, tokens: int) -> dict[Request, Sequence[int]]:
        began = perf_counter()
        drafter = self._drafter(model)
        wanted = self._wanted(drafter, group, tokens)
        guesses: Sequence[Sequence[int]] = drafter.draft(wanted)
        self._step.drafting += perf_counter() - began
        return dict(zip((request for request, _ in wanted), guesses, strict=True))

    def _drafter(self, model: Drafts) -> Drafter:
        if id(model) not in self._drafters:
            costs = self._measure(model)
            costs.step(1)  # measures
            self._drafters[id(model)] = Drafter(model, self._ends, costs)
        return self._drafters[id(model)]

    def _wanted(self, drafter: Drafter, group: Asked, tokens: int) -> list[tuple[Request, int]]:
        """Those to draft for, and how far."""
        free = [r for r, _ in group if r.options.draft_tokens is None]
        shares = [self._tracks[request].agrees.shares[0] for request in free]
        count = depth(shares, tokens, self._costs, drafter.costs) if free else 0
        if free and self._draft_doubt(count > 0):
            count = 0 if count else TRIAL
        fixed = {r: r.options.draft_tokens for r, _ in group}
        wanted = ((r, min(most, count if (n := fixed[r]) is None else n)) for r, most in group)
        return [(request, most) for request, most in wanted if most > 0]


def settle(request: Request, track: Track) -> None:
    """Learn from a request's latest step what its guesses were worth."""
    usage = request.usage
    drafted, accepted = usage.drafted - track.drafted, usage.accepted - track.accepted
    track.drafted, track.accepted = usage.drafted, usage.accepted
    if drafted == 0:
        return
    usage.saved_ms += (1 + accepted) * track.plain - track.spent
    if track.proposer is None:
        for right in [True] * accepted + [False] * (accepted < drafted and not request.done):
            track.agrees.learn(0, right)


def lengths(chances: Sequence[Sequence[float]], tokens: int, costs: Costs) -> list[int]:
    """How many guesses of each request bring the most ids a second.

    Args:
        chances: of each request's guesses, each if those before it are right.
        tokens: of the step without them; each request gets one id from it.
        costs: of steps.

    Example:
        >>> class Flat:
        ...     def step(self, tokens): return 1 + tokens / 10
        >>> lengths([[0.9, 0.9, 0.1], [0.05], []], 3, Flat())
        [2, 0, 0]
    """
    gains = [(g, i) for i, some in enumerate(chances) for g in accumulate(some, mul)]
    gains.sort(reverse=True)  # a request's own gains fall, so its first guesses come first
    ids, best, taken = float(len(chances)), 0.0, 0
    for count in range(len(gains) + 1):
        ids += gains[count - 1][0] if count else 0.0
        if (rate := ids / costs.step(tokens + count)) > best:
            best, taken = rate, count
    counts = [0] * len(chances)
    for _, i in gains[:taken]:
        counts[i] += 1
    return counts


def depth(shares: Sequence[float], tokens: int, costs: Costs, draft: Costs) -> int:
    """How many ids of each request a draft model should guess; its own steps are paid for too.

    Args:
        shares: how often its guesses for each are right.
        tokens: of the step without guesses.
        costs: of the model's steps; `draft`: of the draft model's.
    """
    many = len(shares)

    def rate(count: int) -> float:
        ids = sum(share**n for share in shares for n in range(count + 1))
        return ids / (costs.step(tokens + count * many) + count * draft.step(many))

    return max(range(LONGEST + 1), key=rate)
