"""Whether a sequence goes round in circles: a pure function of its ids."""

from collections.abc import Sequence


def looping(ids: Sequence[int], first: int, *, times: int, longest: int) -> bool:
    """Whether `ids` ends with one cycle of at most `longest` ids, `times` times over.

    Most lengths are ruled out by a look at two ids, so that one more id costs next to nothing.

    Args:
        ids: the whole sequence.
        first: where the part that counts begins.
        times: how often the cycle must stand there, at least 2.
        longest: the most ids of a cycle.

    Example:
        >>> looping([1, 2, 3, 2, 3, 2, 3], 0, times=3, longest=8)
        True
        >>> looping([1, 2, 3, 2, 3, 2, 3], 0, times=4, longest=8)
        False
    """
    last = ids[-1]
    return any(
        ids[-1 - length] == last and ids[-(times - 1) * length :] == ids[-times * length : -length]
        for length in range(1, min(longest, (len(ids) - first) // times) + 1)
    )
