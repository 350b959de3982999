"""How far a search is, and how long it will take."""

import collections
import types

import numpy as np
import pytest

from rstar_jax import search
from rstar_jax.search import totals


def looked_at(strategy, rollouts, ended, ending):
    """What is reckoned of trees under way, after some that have ended: arguments of a tick."""
    told = []
    about = totals.Totals(5, collections.Counter(), None)
    about.tick = lambda *arguments: told.append(arguments)
    for tokens in ended:
        counters = {'sampled_tokens': tokens}
        about.finished(types.SimpleNamespace(solved=False, texts=[''], counters=counters))
    trees = [
        types.SimpleNamespace(sampled=count, rollouts=done)
        for count, done in zip((100, 50, 300), rollouts, strict=True)
    ]
    about.look(trees, search.Config(rollouts=8, candidates=2, strategy=strategy), ending)
    return told[0]


def test_how_far_trees_are_goes_by_their_rollouts():
    """A first one is as good as half done."""
    shares = [(100, 1 / 16), (50, 2 / 8), (300, 6 / 8)]
    assert looked_at('mcts', (0, 2, 6), [], True) == (1.0, False, shares, 3 / 8)
    assert looked_at('mcts', (0, 2, 6), [], False) == (1.0, False, (), 3 / 8)


@pytest.mark.parametrize('strategy', ['beam', 'dvts'])
def test_how_far_beams_are_goes_by_the_trees_that_have_ended(strategy):
    shares, ended = [(100, 0.5), (50, 0.25), (300, 0.9)], [150.0, 250.0]
    assert looked_at(strategy, (0, 0, 0), [], True) == (0, False, [], 3)
    assert looked_at(strategy, (0, 0, 0), ended, True) == (1.65, False, shares, 3)
    assert looked_at(strategy, (0, 0, 0), ended, False) == (1.65, False, (), 3)


def test_the_time_left_is_told_when_it_is_known(monkeypatch):
    """By the speed since something was done: here 5 minutes of compiling, then a tree a minute."""
    now, told = [1000.0], []
    monkeypatch.setattr(totals.time, 'monotonic', lambda: now[0])
    report = totals.Totals(32, collections.Counter(), told.append)
    for minutes, done in [(1, 0), (5, 0.0), (5.1, 0.1), (5.5, 0.5), (6, 1), (15, 10), (37, 32)]:
        now[0] = 1000 + 60 * minutes
        report.tick(done)
    left = [figures['seconds_left'] for figures in told]
    assert np.isnan(left[:4]).all()
    assert left[4:] == pytest.approx([60 * 31, 60 * 22, 0])
    assert told[-1]['seconds'] == 60 * 37
    single = totals.Totals(1, collections.Counter(), told.append)
    for seconds, done in [(10, 0.1), (20, 0.2), (30, 0.3)]:
        now[0] = 5000 + seconds
        single.tick(done)
    assert np.isnan(told[-2]['seconds_left'])
    assert told[-1]['seconds_left'] == pytest.approx(70)
    # The last two of eight trees, one half done with 300 tokens, one a fifth with 50, have as many
    # as 300 and 200 to come; lately two a second were sampled, where it had been eight.
    counters = collections.Counter()
    tail = totals.Totals(8, counters, told.append)
    lately = [(200 + i, 1600 + 2 * i, 6.7) for i in range(31)]
    for seconds, sampled, done in [(0, 0, 0.1), *lately]:
        now[0], counters['sampled'] = 6000 + seconds, sampled
        tail.tick(done, last=[(300, 0.5), (50, 0.2)])
    assert told[-1]['seconds_left'] == pytest.approx(500 / 2, rel=0.02)
    # Of 60 trees that grow beside one another, of 4 rollouts each, one ends at once.
    burst = totals.Totals(60, collections.Counter(), told.append)
    for seconds, done in [(0, 1), (120, 1.5), (300, 14), (310, 16)]:
        now[0] = 7000 + seconds
        burst.tick(done, one_each=59 / 4)
    assert np.isnan([figures['seconds_left'] for figures in told[-4:-1]]).all()
    assert told[-1]['seconds_left'] == pytest.approx(44 * 310 / 15)
