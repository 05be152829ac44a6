"""Propose: asks speculators what follows, and lays their guesses behind a step's work.

Guesses change how fast ids come, never which: `decoding.py` verifies each. So a speculator's fault
is no fault of its request: it is switched off there, and the usage says why.
"""

from collections.abc import Sequence
from typing import Protocol

from seriatim.engine.options import token_ids
from seriatim.engine.request import Request, Speculator
from seriatim.engine.scheduler import Work
from seriatim.errors import RequestError

Asked = Sequence[tuple[Request, int]]  # each with the most ids that may be guessed


class Extends(Protocol):
    """Gives an item as many of its drafts as fit: the scheduler."""

    def extend(self, item: Work, drafts: Sequence[int]) -> Work: ...


class Proposals:
    """Lets each step's work guess ahead.

    Args:
        scheduler: grants drafts their share of the step.
        context: no id is guessed beyond it.
        vocab_size: nor one outside it.
    """

    def __init__(self, scheduler: Extends, *, context: int, vocab_size: int) -> None:
        self._scheduler, self._context, self._vocab = scheduler, context, vocab_size
        self._heard: list[tuple[Speculator, Asked]] = []  # of this step

    def extend(self, work: list[Work]) -> list[Work]:
        """The same work, with the ids guessed to follow where the next id is due."""
        groups: dict[int, list[tuple[Request, int]]] = {}
        for item in work:
            if item.request.speculator is not None and _due(item):
                asked = (item.request, self._room(item.request))
                groups.setdefault(id(item.request.speculator), []).append(asked)
        self._heard = [
            (s, some) for some in groups.values() if (s := some[0][0].speculator) is not None
        ]
        if not groups:
            return work
        tokens = sum(item.count for item in work)
        drafts: dict[int, Sequence[int]] = {}
        for speculator, asked in self._heard:
            proposed = self._ask(speculator, asked, tokens)
            drafts |= {r.number: ids for (r, _), ids in zip(asked, proposed, strict=True)}
        return [
            self._scheduler.extend(item, ids) if (ids := drafts.get(item.request.number)) else item
            for item in work
        ]

    def ran(self, tokens: int, seconds: float) -> None:
        """How long the step of that work took the runtime, its drafts included."""
        for speculator, asked in self._heard:
            try:
                speculator.ran(tokens, seconds)
            except Exception as error:
                for request, _ in asked:
                    switch_off(request, error)

    def _room(self, request: Request) -> int:
        """How many may follow, so that the id sampled after them is still wanted."""
        most = request.options.max_tokens
        left = self._context - len(request.ids)
        return (left if most is None else min(left, most - request.generated)) - 1

    def _ask(self, speculator: Speculator, asked: Asked, tokens: int) -> list[Sequence[int]]:
        """What is guessed for each; a fault is found by asking for each alone."""
        try:
            proposed = speculator.propose(asked, tokens)
            if len(proposed) != len(asked):
                raise RequestError(
                    f"{len(proposed)} drafts were proposed", expected=f"{len(asked)}, one each"
                )
            return [
                token_ids("draft", ids, self._vocab)[:most]
                for (_, most), ids in zip(asked, proposed, strict=True)
            ]
        except Exception as error:
            if len(asked) > 1:
                return [self._ask(speculator, [each], tokens)[0] for each in asked]
            switch_off(asked[0][0], error)
            return [()]


def switch_off(request: Request, error: Exception) -> None:
    """The request goes on without its speculator, and says so."""
    request.release()
    request.usage.undrafted = f"{type(error).__name__}: {error}"


def _due(item: Work) -> bool:
    """Whether the step samples for it, and its logits are of nothing else."""
    request = item.request
    generates = request.options.max_tokens != 0 and not request.reads_prompt
    return generates and item.end == len(request.ids)
