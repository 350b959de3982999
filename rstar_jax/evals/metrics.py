"""Accuracies and how far they can be trusted."""

import math
from collections.abc import Collection, Sequence

from scipy import stats

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


def accuracy(flags: Sequence[bool]) -> float:
    """Returns the share of true flags, in [0, 1]; nan without any."""
    return sum(map(bool, flags)) / len(flags) if flags else math.nan


def mcnemar(before: Collection, after: Collection) -> tuple[int, int, float]:
    """Compares what two models solve of the same problems (McNemar 1947, exact).

    before, after: the problems solved. Returns how many only `after` has, how many only `before`
    has, and the two-sided probability of a split at least as uneven were both models alike.
    """
    won, lost = len(set(after) - set(before)), len(set(before) - set(after))
    if not won + lost:
        return 0, 0, 1.0
    return won, lost, float(stats.binomtest(won, won + lost).pvalue)


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
