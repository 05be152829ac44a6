"""Frequencies of rotary positions, with the static scalings, as `transformers` computes them.

Source: transformers 5 `modeling_rope_utils.py` and each model's default. Every step is its step in
float32, except base ** x, which is rounded once from float64: torch's own float32 power differs by
the last bit between machines, and an id should not depend on the machine.
`dynamic` scaling, which changes with the length of a text, is refused: it contradicts caching.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from seriatim.models.config import MOST_POSITIONS, Fields, Say, silent
from seriatim.models.spec import Rope

_KEY_OF_LENGTH = "original_max_position_embeddings"
_Scaled = tuple[np.ndarray, float]  # frequencies float32 [pair], factor of cos and sin


def rope(
    values: Mapping[str, Any],
    channels: int,
    *,
    trained: int,
    context: int,
    say: Say = silent,
) -> Rope:
    """Rotary positions from a config's `rope_parameters`.

    Args:
        values: rope_type, rope_theta and the scaling's own keys.
        channels: of one head; all of them turn.
        trained: the config's max_position_embeddings.
        context: the length the model is loaded for; `longrope` chooses by it.
        say: told what `longrope` chose.

    Raises:
        ModelError: an unknown scaling, or a key that it does not have.
    """
    fields = Fields(values, "config.json rope_parameters", say)
    if fields.get("rope_type") == "dynamic":
        raise fields.refuse("rope_type", f"{_KNOWN}: 'dynamic' turns all positions as a text grows")
    kind = fields.word("rope_type", {name: name for name in _SCALINGS}, default="default")
    base = fields.number("rope_theta", low=1.0, default=10_000.0)
    fields.only({"partial_rotary_factor": (1, 1.0, None)})  # these families turn whole heads
    turns = _powers(base, channels)
    frequencies, scale = _SCALINGS[kind](fields, turns, base, trained, context)
    fields.get(_KEY_OF_LENGTH)  # written by transformers beside any scaling
    fields.close()
    return Rope(tuple(map(float, frequencies)), scale=scale)


def limit(values: Mapping[str, Any], trained: int) -> int:
    """The longest context that the config vouches for: its own, or what its scaling reaches."""
    original, factor = values.get(_KEY_OF_LENGTH), values.get("factor")
    if type(original) is not int or not isinstance(factor, int | float):
        return trained
    return max(trained, int(min(original * factor, MOST_POSITIONS)))


def _powers(base: float, channels: int) -> np.ndarray:
    exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)  # [pair]
    wide = float(np.float32(base))
    return np.array([wide ** float(x) for x in exponents], np.float32)


def _default(fields: Fields, turns: np.ndarray, *_: Any) -> _Scaled:
    return 1 / turns, 1.0


def _linear(fields: Fields, turns: np.ndarray, *_: Any) -> _Scaled:
    return 1 / turns / fields.number("factor"), 1.0


def _llama3(fields: Fields, turns: np.ndarray, base: float, trained: int, _: int) -> _Scaled:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    factor = fields.number("factor")
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low == high:
        raise fields.refuse("high_freq_factor", "a number other than low_freq_factor")
    original = fields.integer(_KEY_OF_LENGTH, most=MOST_POSITIONS, default=trained)
    plain = 1 / turns
    wave = 2 * math.pi / plain
    slowed = np.where(wave > original / low, plain / factor, plain)
    smooth = (original / wave - low) / (high - low)
    blended = (1 - smooth) * slowed / factor + smooth * slowed
    between = ~(wave < original / high) & ~(wave > original / low)
    return np.where(between, blended, slowed), 1.0


def _yarn(fields: Fields, turns: np.ndarray, base: float, trained: int, _: int) -> _Scaled:
    """YaRN (arXiv:2309.00071): a ramp between slowed and plain by rotations within the context."""
    original = fields.integer(_KEY_OF_LENGTH, most=MOST_POSITIONS, default=trained)
    factor = _factor(fields, trained, original)
    fast, slow = (fields.number(k, default=d) for k, d in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    truncate = fields.flag("truncate", default=True)
    width = 2 * len(turns)

    def turning(rotations: float) -> float:
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = turning(fast), turning(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if low == high else high  # no division by zero
    ramp = ((np.arange(len(turns), dtype=np.float32) - low) / (high - low)).clip(0, 1)
    keep = 1 - ramp  # [pair]: 1 where the frequency stays as it is
    mixed = 1 / (factor * turns) * (1 - keep) + 1 / turns * keep
    return mixed, _yarn_scale(fields, factor)


def _yarn_scale(fields: Fields, factor: float) -> float:
    def grown(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    given, top, bottom = map(fields.get, ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return fields.number("attention_factor")
    if top and bottom:
        return grown(fields.number("mscale")) / grown(fields.number("mscale_all_dim"))
    return grown(1.0)


def _longrope(
    fields: Fields, turns: np.ndarray, base: float, trained: int, context: int
) -> _Scaled:
    """LongRoPE (arXiv:2402.13753): one of two lists of factors, chosen once for all positions."""
    original = fields.integer(_KEY_OF_LENGTH, most=MOST_POSITIONS, default=trained)
    factor = _factor(fields, trained, original)
    lists = {key: _factors(fields, key, len(turns)) for key in ("short_factor", "long_factor")}
    chosen = "long_factor" if context > original else "short_factor"
    fields.say(
        f"longrope uses {chosen} at every position: the context loaded is {context}, the original "
        f"one {original}"
    )
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    given = fields.get("attention_factor")
    scale = grown if given is None else fields.number("attention_factor")
    return 1 / (lists[chosen] * turns), scale


def _factors(fields: Fields, key: str, pairs: int) -> np.ndarray:
    value = fields.get(key)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != pairs or not all(type(x) in (int, float) and x > 0 for x in numbers):
        raise fields.refuse(key, f"{pairs} numbers above 0")
    return np.array(numbers, np.float32)


def _factor(fields: Fields, trained: int, original: int) -> float:
    given = fields.get("factor")
    return trained / original if given is None else fields.number("factor")


_SCALINGS: dict[str, Callable[..., _Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
_KNOWN = f"one of {', '.join(_SCALINGS)}"
