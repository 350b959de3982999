"""Accuracies and Wilson intervals."""

import itertools
import math

import numpy as np
import pytest

from rstar_jax.evals import metrics


def test_accuracy():
    assert metrics.accuracy([True, False, True, True]) == 0.75
    assert math.isnan(metrics.accuracy([]))


# Published values: Newcombe (1998), Statistics in Medicine 17, table I, method 3.
@pytest.mark.parametrize(
    ('right', 'n', 'low', 'high'),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_equals_published_values(right, n, low, high):
    found = metrics.interval95([True] * right + [False] * (n - right))
    assert found == pytest.approx([low, high], abs=6e-5)


def test_mcnemar_counts_what_only_one_has_solved():
    assert metrics.mcnemar([1, 2, 3], [3, 4]) == (1, 2, 1.0)
    assert metrics.mcnemar([5], [5]) == (0, 0, 1.0)
    # Of ten coins nine or more, or one or less, fall alike: 2 (1 + 10) / 1024.
    assert metrics.mcnemar(range(1), range(1, 10)) == (9, 1, pytest.approx(22 / 1024))


def test_interval_is_symmetric_and_within_bounds():
    for n in (1, 7, 30):
        for right in range(n + 1):
            low, high = metrics.interval95([True] * right + [False] * (n - right))
            other = metrics.interval95([False] * right + [True] * (n - right))
            assert 0 <= low <= right / n <= high <= 1
            assert other == pytest.approx([1 - high, 1 - low], abs=1e-12)
    assert metrics.interval95([]) == [0.0, 1.0]


def test_pairs_ranked_rightly_are_counted_within_problems():
    found = metrics.ranked_rightly(
        [[0.9, 0.1, 0.5], [0.2, 0.2], [5.0, 4.0], [1.0], []],
        [[True, False, True], [True, False], [True, True], [False], []],
    )
    assert found['pairs'] == 3 and found['problems'] == 2
    assert found['share'] == pytest.approx(2.5 / 3)  # the tie counts half
    assert found['mean'] == 0.75
    low, high = found['interval95']  # of two problems, not of three pairs
    assert metrics.interval95([True, False])[0] < low < 0.3 and high == pytest.approx(
        0.986, abs=0.01
    )
    ten = metrics.ranked_rightly(
        [[2, 1, 0]] * 8 + [[0, 1]] * 2, [[True, False, False]] * 8 + [[True, False]] * 2
    )
    assert ten['share'] == pytest.approx(16 / 18)
    assert ten['interval95'] == pytest.approx([2 / 3, 1], abs=0.02)  # problems drawn again
    half = metrics.ranked_rightly([[1, 1]] * 20, [[True, False]] * 20)
    assert half['interval95'] == metrics.interval95([True] * 10 + [False] * 10)
    sure = metrics.ranked_rightly([[2, 1, 0]] * 3, [[True, False, False]] * 3)
    assert sure['share'] == 1 and sure['interval95'] == metrics.interval95([True] * 3)
    none = metrics.ranked_rightly([[1.0]], [[True]])
    assert math.isnan(none['share']) and (none['pairs'], none['interval95']) == (0, [0.0, 1.0])


def test_the_share_is_that_of_a_plain_count():
    rng = np.random.default_rng(3)
    scores = [rng.integers(4, size=n).tolist() for n in (7, 1, 12)]
    right = [(rng.random(len(s)) < 0.4).tolist() for s in scores]
    won = total = 0
    for values, flags in zip(scores, right):
        for a, b in itertools.product(range(len(values)), repeat=2):
            if flags[a] and not flags[b]:
                total += 1
                won += (values[a] > values[b]) + 0.5 * (values[a] == values[b])
    found = metrics.ranked_rightly(scores, right)
    assert total > 10
    assert found['pairs'] == total and found['share'] == pytest.approx(won / total)
    assert found['interval95'][0] <= found['share'] <= found['interval95'][1]
