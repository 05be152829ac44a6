"""Exposure bias without estimates: what a model's predictions lose after ids that it wrote itself.

On data from a Markov source whose law is known, the true distribution of the next id is known after
any prefix, one that a model generated too. So the error of each prediction, KL(truth || model), is
exact, and so is what it has more of after its own prefixes than after the data's: the excess error
of Arora et al. 2022 (arXiv:2204.01171), which they had to estimate.

    source = markov(8, 3, seed=0)
    Path("data.txt").write_bytes(bytes(source.draw(1_000_000, seed=1)))
    # train a model of bytes on data.txt
    for row in exposure(seriatim.load("model"), source): print(row)
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from seriatim.api import Model
from seriatim.engine.options import whole
from seriatim.engine.sampler import log_sum
from seriatim.errors import RequestError
from seriatim.requesting import finish

LARGEST = 1 << 24  # numbers in a law: 128 MB
LETTER, LETTERS = 97, 26  # "a" as an id of the codec of bytes, and how many there are


@dataclass(frozen=True, eq=False)
class Markov:
    """A source of ids, each drawn by a law from the `order` before it.

    Attributes:
        law: float64 [context, symbol], rows that add up to 1. A context is a number: the last
            `order` symbols as its digits, the latest last.
        order: how many ids the next one depends on.
        first: the id of symbol 0; those of the others follow.
    """

    law: np.ndarray
    order: int
    first: int = LETTER

    @property
    def symbols(self) -> slice:
        """Its ids among those of a model."""
        return slice(self.first, self.first + self.law.shape[1])

    def draw(self, count: int, *, seed: int) -> list[int]:
        """`count` ids that follow a context drawn evenly."""
        draw, sums = np.random.Generator(np.random.PCG64(seed)), self.law.cumsum(1).tolist()
        size = len(sums[0])
        context, drawn = int(draw.integers(len(sums))), []
        for uniform in draw.random(count).tolist():
            symbol = min(bisect(sums[context], uniform), size - 1)
            context = (context * size + symbol) % len(sums)
            drawn.append(self.first + symbol)
        return drawn

    def following(self, ids: Sequence[int]) -> np.ndarray:
        """The true distribution after `ids`, at least `order` of them: float64 [symbol]."""
        context = 0
        for id in ids[len(ids) - self.order :]:
            context = context * self.law.shape[1] + id - self.first
        return self.law[context]


def markov(symbols: int, order: int, *, seed: int, spread: float = 0.3) -> Markov:
    """A source whose law is drawn: for each context from a symmetric Dirichlet distribution.

    Args:
        symbols: how many ids it has: the bytes of as many letters from "a" on.
        order: how many ids the next one depends on.
        seed: of the law.
        spread: the parameter of the distribution; the smaller, the surer is what comes next.

    Raises:
        RequestError: a law that is none, or too large.

    Example:
        >>> source = markov(4, 2, seed=0)
        >>> source.law.shape
        (16, 4)
        >>> bytes(source.draw(20, seed=1))
        b'dbcabdaaaccccccabbdc'
    """
    symbols, order = whole("symbols", symbols, 2, LETTERS), whole("order", order, 1, 24)
    if symbols ** (order + 1) > LARGEST or not 0.01 <= spread < np.inf:
        raise RequestError(
            f"a law of {symbols} symbols, order {order} and spread {spread}",
            expected=f"at most {LARGEST:,} numbers and a spread from 0.01 on",
        )
    draw = np.random.Generator(np.random.PCG64(seed))
    return Markov(draw.dirichlet(np.full(symbols, spread), symbols**order), order)


class Estimate(NamedTuple):
    """A mean over prefixes, in nats, and one standard error of it."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.error:.4f}"


@dataclass(frozen=True)
class Exposure:
    """Predictions of the id after `depth` ids of the data, or as many of the model's own.

    Attributes:
        depth: how many.
        loss: expected nats of the next id under the source's law, after data.
        own_loss: the same after the model's own ids.
        error: KL(truth || model) after data: the loss without the source's own entropy.
        own_error: the same after the model's own ids.
        excess: own_error - error, the two paired by what both prefixes begin with.
    """

    depth: int
    loss: Estimate
    own_loss: Estimate
    error: Estimate
    own_error: Estimate
    excess: Estimate


def exposure(
    model: Model,
    source: Markov,
    *,
    depths: Sequence[int] = (1, 8, 64),
    count: int = 512,
    seed: int = 0,
) -> list[Exposure]:
    """Compare a model's predictions after its own prefixes with those after the source's.

    Each prefix begins with `order` ids of the source; then follow `depth` more of the source, or as
    many that the model samples among the source's ids.

    Args:
        model: of the source's ids.
        source: what it was trained on.
        depths: numbers of ids, in any order; 0 compares equal prefixes.
        count: prefixes of each kind.
        seed: of the source's ids and of the model's.

    Raises:
        RequestError: prefixes that the model's context or vocabulary cannot hold.
    """
    count = whole("count", count, 2)
    most = max(whole("depth", depth, 0) for depth in depths)
    length = source.order + most
    if length > model.context or source.symbols.stop > model.vocab_size:
        raise RequestError(
            f"a model of {model.vocab_size} ids and a context of {model.context}",
            expected=f"at least {source.symbols.stop} and {length}",
        )
    drawn = source.draw(count * length, seed=seed)
    data = [drawn[at : at + length] for at in range(0, len(drawn), length)]
    own = _continued(model, source, [ids[: source.order] for ids in data], most, seed=seed)
    ends = [source.order + depth for depth in depths]
    pairs = [[_errors(model, source, ids, ends) for ids in kind] for kind in (data, own)]
    found = np.array(pairs).transpose(3, 2, 0, 1)  # [depth, loss or error, data or own, prefix]
    return [
        Exposure(
            depth,
            *map(_estimate, (*losses, *errors)),
            excess=_estimate(errors[1] - errors[0]),
        )
        for depth, (losses, errors) in zip(depths, found, strict=True)
    ]


def _continued(
    model: Model, source: Markov, starts: Sequence[list[int]], count: int, *, seed: int
) -> list[list[int]]:
    """Each start with `count` ids that the model samples, as samples of one seed."""
    if not count:
        return [*starts]
    among = [*range(source.symbols.start, source.symbols.stop)]
    how: dict[str, Any] = dict(max_tokens=count, seed=seed, allowed_ids=among, ignore_end=True)
    requests = [model.engine.add(ids, sample=n, **how) for n, ids in enumerate(starts)]
    finish(model.engine, requests)
    return [list(request.ids) for request in requests]


def _errors(model: Model, source: Markov, ids: list[int], ends: Sequence[int]) -> np.ndarray:
    """Loss and KL of the predictions after the first `ends` of `ids` [loss or error, depth]."""
    logits = model.logits(ids)[[end - 1 for end in ends]]
    guessed = logits[:, source.symbols] - log_sum(logits)[:, None]  # float64 [depth, symbol]
    truth = np.array([source.following(ids[:end]) for end in ends])
    loss = -(truth * guessed).sum(1)
    sure = np.log(truth, where=truth > 0, out=np.zeros_like(truth))
    return np.array([loss, loss + (truth * sure).sum(1)])


def _estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / sqrt(len(values)))
