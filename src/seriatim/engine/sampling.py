"""How an id is to be drawn, and what was drawn. No maths here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

try:
    from seriatim import _native
except ImportError:  # not built: `sampler_reference` computes
    _native = None

Processor = Callable[[Sequence[int], np.ndarray], np.ndarray]

FILTERS = ("temperature", "top_k", "typical_p", "top_p", "min_p", "xtc")  # contracts.md, 11


@dataclass(frozen=True)
class Sampling:
    """How an id is drawn; the order of the fields is the order in which they act.

    From `temperature` on it is that of `filters` instead: each on what the one before left.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0  # how many of the last ids are searched; 0: all
    dry_breakers: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    processors: tuple[Processor, ...] = ()
    allowed_ids: tuple[int, ...] | None = None
    banned_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 0
    typical_p: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    filters: tuple[str, ...] = FILTERS

    @property
    def plain(self) -> bool:
        """Whether no penalty, bias or processor changes a logit."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        others = (self.dry_multiplier, self.logit_bias, self.processors)
        return penalties == (1.0, 0.0, 0.0) and not any(others)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The filters that do something, temperature always among them, in their order."""
        on = {
            "temperature": True,
            "top_k": self.top_k > 0,
            "typical_p": self.typical_p < 1.0,
            "top_p": self.top_p < 1.0,
            "min_p": self.min_p > 0.0,
            "xtc": self.xtc_probability > 0.0,
        }
        first = () if "temperature" in self.filters else ("temperature",)
        return (*first, *(name for name in self.filters if on[name]))

    @cached_property
    def easy(self) -> bool:
        """Whether the id is the first of the largest logit, if nothing else forbids ids."""
        greedy = self.temperature == 0 and self.order[0] == "temperature"
        return greedy and self.plain and self.allowed_ids is None and not self.banned_ids

    @cached_property
    def native(self) -> Any:
        """The same for C++, made once for all ids of a request."""
        assert _native is not None
        return _native.Chain(
            repetition=self.repetition_penalty,
            presence=self.presence_penalty,
            frequency=self.frequency_penalty,
            dry=(self.dry_multiplier, self.dry_base, self.dry_allowed_length, self.dry_range),
            breakers=self.dry_breakers,
            biased=[id for id, _ in self.logit_bias],
            biases=[bias for _, bias in self.logit_bias],
            allowed=self.allowed_ids,
            banned=self.banned_ids,
            temperature=(self.temperature, self.dynatemp_range, self.dynatemp_exponent),
            top_k=min(self.top_k, 2**31),  # more than any vocabulary
            shares=(self.typical_p, self.top_p, self.min_p),
            xtc=(self.xtc_probability, self.xtc_threshold),
            order=[FILTERS.index(name) for name in self.order],
        )


@dataclass(frozen=True)
class Draw:
    """One sampled id, its log-probability under the model itself, and the likeliest ids."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
