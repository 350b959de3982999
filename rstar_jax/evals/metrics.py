"""Accuracies and how far they can be trusted."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


def accuracy(flags: Sequence[bool]) -> float:
    """Returns the share of true flags, in [0, 1]; nan without any."""
    return sum(map(bool, flags)) / len(flags) if flags else math.nan


def interval95(flags: Sequence[bool]) -> list[float]:
    """Returns [low, high], the Wilson score interval of the share of true flags (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at 1, which
    matters for the thirty problems of an AIME.
    """
    n = len(flags)
    if not n:
        return [0.0, 1.0]
    share, z2 = sum(map(bool, flags)) / n, Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return [middle - half if share else 0.0, middle + half if share < 1 else 1.0]
