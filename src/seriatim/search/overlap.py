"""How alike two sequences are: chrF (Popovic 2015) with beta 1, which is symmetric."""

from collections import Counter
from collections.abc import Sequence

LONGEST = 6  # n-grams of 1 to 6, as published


def profile(sequence: Sequence) -> list[Counter]:
    """How often each n-gram stands in it, for each n; white space in a text is left out."""
    items = "".join(sequence.split()) if isinstance(sequence, str) else tuple(sequence)
    return [
        Counter(items[i : i + n] for i in range(len(items) - n + 1)) for n in range(1, LONGEST + 1)
    ]


def overlap(candidate: list[Counter], reference: list[Counter]) -> float:
    """The harmonic mean of precision and recall, each a mean over the n that both have: 0 to 1.

    Example:
        >>> overlap(profile("a cat"), profile("acat")), overlap(profile("cat"), profile("dog"))
        (1.0, 0.0)
    """
    pairs = [(c, r) for c, r in zip(candidate, reference, strict=True) if c and r]
    if not pairs:
        return float(candidate == reference)
    common = [(c & r).total() for c, r in pairs]
    precision = sum(k / c.total() for k, (c, _) in zip(common, pairs, strict=True)) / len(pairs)
    recall = sum(k / r.total() for k, (_, r) in zip(common, pairs, strict=True)) / len(pairs)
    return 2 * precision * recall / (precision + recall) if precision else 0.0
