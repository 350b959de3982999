"""Batches of known tokens: every segment lies in rows of its own, and none is lost."""

import random

import numpy as np
import pytest

from rstar_jax.search.engine.batch import Batch, fits, quickest

DEVICES, NOWHERE = 2, 99


@pytest.mark.parametrize('seed', range(20))
def test_segments_are_read_back(seed):
    rng = random.Random(seed)
    shape = rng.randint(1, 6), rng.randint(1, 5)
    batch, put = Batch(DEVICES, shape, NOWHERE), []
    known = batch.known
    for device in range(DEVICES):
        lengths = [rng.randint(1, 9) for _ in range(4)]
        for tree, count in enumerate(fits(lengths, shape, cut=rng.random() < 0.5)):
            if count:
                tokens = [rng.randrange(1000) for _ in range(count)]
                put.append((device, tree, tokens, rng.randrange(50)))
                last = batch.put(*put[-1])
                assert known.trees[last] == tree and last // shape[0] == device
    found = {}
    for row in np.nonzero(known.counts)[0].tolist():
        device, first = row // shape[0], int(known.first[row])
        key = device, int(known.trees[row]), int(known.starts[row])
        found.setdefault(key, []).extend(known.tokens[row, : known.counts[row]].tolist())
        assert first == row % shape[0] or known.counts[row - 1] == shape[1]
    assert found == {(device, tree, start): tokens for device, tree, tokens, start in put}
    assert (known.trees[known.counts == 0] == NOWHERE).all()


def test_a_segment_takes_whole_rows():
    assert fits([5, 4, 3], (4, 4), cut=False) == [5, 4, 3]
    assert fits([5, 9, 4], (4, 4), cut=False) == [5, 0, 4]  # what does not fit waits
    assert fits([5, 9, 4], (4, 4), cut=True) == [5, 8, 0]  # or its first part is taken
    assert fits([40], (4, 4), cut=True) == fits([40], (4, 4), cut=False) == [16]
    assert fits([3, 40], (4, 4), cut=False) == [3, 0]


@pytest.mark.parametrize(
    ('waiting', 'chosen'),
    [
        ([[12], []], 2),
        ([[12, 14], [30]], 2),
        ([[12, 14, 3], [30]], 4),
        ([[40, 10], []], 4),
        ([[70], []], 4),  # and two rows more
        ([[50, 50], [3]], 8),
        ([[300], [1]], 8),
        ([[30] * 100, []], 8),
    ],
)
def test_the_calls_that_take_the_least_time(waiting, chosen):
    shapes = [(8, 16), (4, 16), (2, 16)]
    assert quickest(waiting, shapes, 20) == (chosen, 16)
    assert quickest(waiting, shapes, 10**6)[0] == chosen + 4 * (waiting[0] == [70])
