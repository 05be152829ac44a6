"""Error bars: of a share, of paired differences, and whether one is above noise. No model here."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, comb, cos, pi, sin, sqrt

import numpy as np

LEVEL = 0.05  # a difference that chance gives less often is above noise


@dataclass(frozen=True)
class Difference:
    """What one way of answering has more than another, on the very same items.

    Attributes:
        value: of the first, minus that of the second.
        error: one standard error of it, the items paired; None for too few to tell.
        p: how often chance alone gives a difference at least as large; None for too few to tell.
        items: how many pairs it rests on.
    """

    value: float
    error: float | None
    p: float | None
    items: int

    @property
    def above_noise(self) -> bool:
        """Whether chance gives such a difference less than once in twenty times."""
        return self.p is not None and self.p < LEVEL


def share(right: Sequence[bool]) -> tuple[float, float]:
    """The share that is right, and one standard error of it.

    The error is half of Wilson's interval at one standard deviation (1927, equation 3): nearly
    sqrt(p (1 - p) / n), and above 0 where all are right or none.

    Example:
        >>> [round(x, 4) for x in share([True, False, False, False])]
        [0.25, 0.2]
    """
    n = len(right)
    p = sum(right) / n
    return p, sqrt(p * (1 - p) / n + 1 / (4 * n * n)) / (1 + 1 / n)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """How probable it is that one of k samples passes: without bias, from `samples` of a problem.

    1 - C(n - c, k) / C(n, k), as a product of terms of which none is large (Chen et al. 2021,
    arXiv:2107.03374, equation 1 and figure 3).

    Example:
        >>> round(pass_at_k(4, 2, 2), 4), pass_at_k(10, 1, 10), pass_at_k(10, 0, 1)
        (0.8333, 1.0, 0.0)
    """
    missed = 1.0
    for left in range(samples - passed + 1, samples + 1):
        missed *= max(0.0, 1 - k / left)
    return 1 - missed


def paired(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """The difference of two shares of the same items; `p` is McNemar's, exact.

    Example:
        >>> paired([True] * 6, [False] * 6).p
        0.03125
    """
    n = len(first)
    more = sum(a and not b for a, b in zip(first, second, strict=True))
    less = sum(b and not a for a, b in zip(first, second, strict=True))
    value = (more - less) / n
    error = sqrt((more + less - n * value**2) / (n - 1) / n) if n > 1 else None
    return Difference(value, error, mcnemar(more, less), n)


def mcnemar(more: int, less: int) -> float:
    """Of pairs that differ, how often a fair coin divides them at least as unevenly as this.

    McNemar 1947, with the binomial law itself in place of its limit.

    Example:
        >>> mcnemar(5, 1), mcnemar(0, 0)
        (0.21875, 1.0)
    """
    n = more + less
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(more, less) + 1)) / 2**n)


def student(t: float, freedom: int) -> float:
    """How often |T| exceeds |t|, T of Student's law with so many degrees of freedom.

    The finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.

    Example:
        >>> round(student(2.228, 10), 3), round(student(12.706, 1), 3)
        (0.05, 0.05)
    """
    angle = atan(abs(t) / sqrt(freedom))
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (k - 1) / k
    within = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return max(0.0, 1 - within)


def chance(value: float, error: float | None, freedom: int) -> float | None:
    """Student's two-sided p of a value with an estimated error."""
    if error is None:
        return None
    if error == 0:
        return float(value == 0)
    return student(value / error, freedom)


def ratios_error(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> float | None:
    """One standard error of a difference of two ratios of sums over the same draws.

    Args:
        first: numerators [draw] and denominators [draw]: the ratio is of their sums.
        second: likewise.

    Source: the ratio estimator's residuals (Cochran, Sampling Techniques, 6.5), subtracted.
    """
    draws = len(first[0])
    if draws < 2:
        return None
    off = _residuals(*first) - _residuals(*second)
    return sqrt(float((off**2).sum()) * draws / (draws - 1))


def _residuals(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return (sums - sums.sum() / counts.sum() * counts) / counts.sum()
