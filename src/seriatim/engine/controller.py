"""How far to guess: as far as it brings the most ids a second, which may be not at all.

Each guess has a chance, learnt from those before it, and a price, measured on this machine. Both
change while a request runs; now and then a step is spent on what the figures advise against, so
that they do not go stale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

from seriatim.engine.costs import Costs, Measured
from seriatim.engine.drafting import Drafter, Drafts
from seriatim.engine.options import Options
from seriatim.engine.propose import (
    Guess,
    Index,
    Lookup,
    Ngram,
    Proposer,
    Rates,
    Suffix,
    expected,
)
from seriatim.engine.request import Request, Speculator

LONGEST = 16  # guesses for one request in one step, where nobody asked for another number
FIRST = 64  # steps until the figures are doubted, at first; twice as many each time in vain
LAST = 1024
WORTH = 0.25  # a guess less likely than that would not pay at any price


@dataclass
class Track:
    """What is known of one request.

    Attributes:
        proposer: where its guesses come from, if not from a draft model.
        agrees: how often the draft model was right.
        drafted: of its usage, when it was last looked at; likewise `accepted`.
        plain_ms: what its latest step would have taken without guesses; `spent_ms`: with them.
    """

    proposer: Proposer | None
    agrees: Rates
    drafted: int = 0
    accepted: int = 0
    plain_ms: float = 0.0
    spent_ms: float = 0.0


@dataclass
class Doubt:
    """Counts the steps since something was last done, and says when to do it again."""

    wait: int = FIRST
    steps: int = 0

    def due(self) -> bool:
        """One more step without it: whether it is time."""
        self.steps += 1
        if self.steps < self.wait:
            return False
        self.wait, self.steps = min(2 * self.wait, LAST), 0
        return True

    def done(self) -> None:
        """It was done for its own sake."""
        self.wait, self.steps = FIRST, 0


class Controller(Speculator):
    """Speculates for the requests of one engine as their options say.

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
        self._drafters: dict[int, Drafter] = {}
        self._off, self._on = Doubt(), Doubt()
        self._step = Step()

    def propose(self, asked: Asked, tokens: int) -> list[Sequence[int]]:
        tracks = [self._track(request) for request, _ in asked]
        self._step = Step(tokens, tracks)
        drafts = self._draft(asked, tokens)
        tokens += sum(map(len, drafts.values()))
        free: dict[Request, Guess] = {}
        for (request, most), track in zip(asked, tracks, strict=True):
            fixed = request.options.draft_tokens
            if track.proposer is not None:
                guess = track.proposer.guess(request.ids, min(most, fixed or LONGEST))
                if fixed is None:
                    free[request] = guess
                else:
                    drafts[request] = guess.ids
                    tokens += len(guess.ids)
        taken = self._doubted(lengths([g.chances for g in free.values()], tokens, self._costs))
        drafts |= {r: g.ids[:count] for (r, g), count in zip(free.items(), taken, strict=True)}
        return [drafts.get(request, ()) for request, _ in asked]

    def ran(self, tokens: int, seconds: float) -> None:
        step = self._step
        if step.tokens == len(step.tracks):  # each token with its logits, as they are measured
            self._costs.ran(tokens, seconds)
        plain = seconds * self._costs.step(step.tokens) / self._costs.step(tokens)
        for track in step.tracks:
            track.plain_ms, track.spent_ms = 1000 * plain, 1000 * (seconds + step.drafting)

    def release(self, request: Request) -> None:
        track = self._tracks.pop(request, None)
        if track is not None:
            settle(request, track)
        for drafter in self._drafters.values():
            drafter.release(request)

    def _track(self, request: Request) -> Track:
        track = self._tracks.get(request)
        if track is None:
            track = self._tracks[request] = Track(
                self._proposer(request.options), self._elders[Drafter].younger()
            )
        else:
            settle(request, track)
        return track

    def _proposer(self, how: Options) -> Proposer | None:
        if how.draft is not None:
            return None
        indices: list[Index] = [Ngram() if how.speculate == "ngram" else Suffix()]
        if how.draft_text is not None:
            indices.append(Lookup(how.draft_text))
        known = self._elders
        elders = (known.setdefault(type(i), expected(i.kinds)) for i in indices)
        return Proposer(*((i, elder.younger()) for i, elder in zip(indices, elders, strict=True)))
