"""The held-out score: bits per unit with its standard error, on the windows that `score` uses.

Windows of `context` ids, half overlapping, each beginning with the start id; the first scores all
its ids, later ones their second half (contracts.md, 26). Also the samples of a run.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seriatim import scoring
from seriatim.codecs import Codec, Lawful
from seriatim.engine.sampler_reference import unpacked
from seriatim.errors import RequestError
from seriatim.train.report import Score
from seriatim.train.shards import learned, read

Logits = Callable[[Tensor], Tensor]  # ids [window, position] to [window * position, vocab]
TOGETHER = 8  # windows in one forward pass


class Window(NamedTuple):
    """Ids to run, and from which index on they are scored, where they are to be learned."""

    ids: np.ndarray
    first: int

    @property
    def scored(self) -> np.ndarray:
        """The ids that are."""
        tail = self.ids[self.first :]
        return tail[learned(tail)]


def windows(document: np.ndarray, *, lead: int, context: int) -> Iterator[Window]:
    """Cut `document` [id], which begins with `lead` start ids; every other id is scored once."""
    for w in scoring.windows(len(document), context=context, lead=lead, first=max(1, lead)):
        ids = np.concatenate([document[: w.lead], document[w.start : w.end]])
        yield Window(ids, w.first)


def score(
    logits: Logits,
    documents: Sequence[np.ndarray],
    codec: Codec,
    *,
    context: int,
    step: int,
    most: int | None = None,
) -> Score:
    """Score `documents`, or `most` of their windows spread evenly over all.

    The standard error is that of a ratio of sums over windows (nats to units), which are taken as
    independent draws.
    """
    every = [w for d in documents for w in windows(d, lead=len(codec.start), context=context)]
    held = _scored(every)
    if most is not None and most < len(every):
        every = [every[i * len(every) // most] for i in range(most)]
    every.sort(key=lambda w: len(w.ids))  # equal lengths run together
    nats = np.concatenate([_nats(logits, group) for group in _groups(every)])
    units = np.array([codec.units(w.scored.tolist()) for w in every], np.float64)
    ids = _scored(every)
    bits = nats.sum() / units.sum() / math.log(2)
    error = scoring.ratio_error(nats / math.log(2), units) if len(every) > 1 else None
    return Score(step, bits, error, codec.unit, nats.sum() / ids, ids, held)


def _scored(every: Sequence[Window]) -> int:
    return sum(len(w.scored) for w in every)


def _groups(every: Sequence[Window]) -> Iterator[list[Window]]:
    group: list[Window] = []
    for window in every:
        if group and (len(group) == TOGETHER or len(window.ids) != len(group[0].ids)):
            yield group
            group = []
        group.append(window)
    yield group


@torch.no_grad()
def _nats(logits: Logits, group: Sequence[Window]) -> np.ndarray:
    """Nats of each window's scored ids: float64 [window]."""
    ids = torch.from_numpy(np.stack([read(w.ids) for w in group]).astype(np.int64))
    flat = logits(ids[:, :-1])  # [window * position, vocab]
    targets = ids[:, 1:].to(flat.device)
    loss = torch.nn.functional.cross_entropy(flat.float(), targets.reshape(-1), reduction="none")
    loss = loss.view_as(targets).double().cpu().numpy()
    tails = [(row[w.first - 1 :], w.ids[w.first :]) for row, w in zip(loss, group, strict=True)]
    return np.array([row[learned(ids)].sum() for row, ids in tails])


@torch.no_grad()
def sample(
    logits: Logits,
    prompt: Sequence[int],
    *,
    seed: int,
    count: int,
    temperature: float = 0.8,
    codec: Codec,
) -> list[int]:
    """Up to `count` ids that follow `prompt` and that `codec` allows there, without an end id.

    Each recomputes all before it, so keep it short.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    ids: list[int] = []
    for _ in range(count):
        last = logits(torch.tensor([[*prompt, *ids]]))[-1].double().cpu().numpy() / temperature
        if isinstance(codec, Lawful):
            last[~_allowed(codec.legal(ids, after=prompt), len(last))] = -np.inf
        ids.append(int(np.argmax(last + draw.gumbel(size=last.shape))))
        if ids[-1] in codec.ends:
            return ids[:-1]
    return ids


def _allowed(words: np.ndarray, size: int) -> np.ndarray:
    """bool [id] of a codec's mask."""
    bits = unpacked(words)[:size]
    return np.pad(bits, (0, size - len(bits)))


def opening(prompt: str | None, codec: Codec, *, context: int) -> list[int]:
    """The ids that samples begin with: of a text, or where a document begins.

    Raises:
        RequestError: the codec refuses the text, or it leaves no room in the context.
    """
    ids = [*codec.start] if prompt is None else codec.prompt(prompt)
    if len(ids) >= context:
        seen = f"the prompt has {len(ids)} ids and the context is {context}"
        raise RequestError(seen, expected=f"at most {context - 1}", fix="shorten it")
    return ids or [0]  # whatever stands first, where nothing must
