"""Accuracies, how well a judge tells right from wrong, and how far both can be trusted."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import scipy  # whose parts are imported when they are first used

RESAMPLES = 2000
FEW = 10  # problems that are too few to draw from: they may be alike by chance


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
    return won, lost, float(scipy.stats.binomtest(won, won + lost).pvalue)


def interval95(flags: Sequence[bool]) -> list[float]:
    """Returns [low, high], the Wilson score interval of the share of true flags (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at 1, which
    matters for the thirty problems of an AIME.
    """
    return wilson(accuracy(flags), len(flags)) if len(flags) else [0.0, 1.0]


def wilson(share: float, count: int) -> list[float]:
    """`interval95` of a share of `count` problems, each of which may be right in part."""
    z = float(scipy.stats.norm.ppf(0.975))
    middle = share + z * z / (2 * count)
    width = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = (float((middle + side) / (1 + z * z / count)) for side in (-width, width))
    return [low if share > 0 else 0.0, high if share < 1 else 1.0]  # not beyond, by rounding


def ranked_rightly(
    scores: Iterable[Sequence[float]], right: Iterable[Sequence[bool]]
) -> dict[str, Any]:
    """Tells how often a score puts a right answer above a wrong one of the same problem.

    Args:
      scores: for each problem, the score of each of its answers; none is nan.
      right: for each problem, whether that answer is right.

    Returns:
      'share': of all pairs of a right and a wrong answer of one problem, those in which the right
      one has the higher score, a tie counting half (0.5 is chance; the area under the ROC curve,
      within problems); 'mean': the mean of the problems' own shares, so that each counts the same;
      'pairs', and 'problems' that have any; 'interval95' of 'share', by resampling problems, as
      pairs of one problem are not independent. Share and mean are nan without a pair.
    """
    won, pairs = [], []
    for values, flags in zip(scores, right, strict=True):
        flags = np.asarray(flags, bool)
        ranks = scipy.stats.rankdata(np.asarray(values, np.float64)) if len(flags) else np.zeros(0)
        good = int(flags.sum())
        if count := good * (len(flags) - good):
            # Mann and Whitney (1947): ranks of tied scores are their mean, so that ties count half.
            won.append(float(ranks[flags].sum()) - good * (good + 1) / 2)
            pairs.append(count)
    return by_problem(won, pairs)


def by_problem(won: Sequence[float], pairs: Sequence[int]) -> dict[str, Any]:
    """What `ranked_rightly` returns, of the pairs won and all pairs of each problem with any."""
    won, pairs = np.asarray(won, np.float64), np.asarray(pairs)
    total = int(pairs.sum())
    return {
        'share': float(won.sum() / total) if total else math.nan,
        'mean': float(np.mean(won / pairs)) if total else math.nan,
        'pairs': total,
        'problems': len(pairs),
        'interval95': _bootstrap(won, pairs) if total else [0.0, 1.0],
    }


def _bootstrap(won: np.ndarray, pairs: np.ndarray) -> list[float]:
    """The middle 95 % of sum(won) / sum(pairs) over problems drawn with replacement.

    Of few problems, or where all are ranked alike, Wilson's interval of the problems.
    """
    if len(pairs) < FEW or not np.ptp(won / pairs):
        return wilson(won.sum() / pairs.sum(), len(pairs))
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    shares = won[drawn].sum(axis=1) / pairs[drawn].sum(axis=1)
    return [float(x) for x in np.quantile(shares, [0.025, 0.975])]
