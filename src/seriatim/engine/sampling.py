"""How an id is to be drawn, and what was drawn. No maths here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Processor = Callable[[Sequence[int], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sampling:
    """How an id is drawn; the order of the fields is the order in which they act."""

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    processors: tuple[Processor, ...] = ()
    allowed_ids: tuple[int, ...] | None = None
    banned_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether no penalty, bias or processor changes a logit."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties == (1.0, 0.0, 0.0) and not self.logit_bias and not self.processors


@dataclass(frozen=True)
class Draw:
    """One sampled id, its log-probability under the model itself, and the likeliest ids."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
