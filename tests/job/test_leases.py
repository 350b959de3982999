"""Work dealt in leases: each item once, whoever comes, goes, or comes back."""

import itertools
import random
import types

import jax
import pytest

from rstar_jax import search
from rstar_jax.data.problem import Problem
from rstar_jax.job import leases


@pytest.fixture
def clock(monkeypatch):
    """What the time is for a table."""
    found = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(leases, 'time', types.SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_what_a_lost_worker_had_is_dealt_again_first():
    table = leases.Table('abcdef')
    assert table.take('one', 2) == ['a', 'b']
    assert table.take('two', 2) == ['c', 'd']
    assert table.bring('one', 'a')
    assert table.lose('one') == ['b']
    assert table.take('two', 3) == ['b', 'e', 'f']
    assert table.take('two', 3) == []
    assert (table.left, table.workers) == (5, 1)
    assert table.lose('two') == ['c', 'd', 'b', 'e', 'f']


def test_silence_loses_a_worker_and_what_it_brings_later_counts_once(clock):
    table = leases.Table('ab', silent=60)
    assert table.take('cut off', 2) == ['a', 'b']
    clock.now = 30.0
    table.heard('other')
    clock.now = 61.0
    assert table.silent() == ['cut off']
    assert table.lose('cut off') == ['a', 'b']
    assert table.silent() == []
    assert table.take('other', 1) == ['a']
    # It was alive all the time: what nobody has brought yet counts, and is not dealt again.
    assert table.bring('cut off', 'b')
    assert table.take('other', 1) == []
    assert table.bring('cut off', 'a')
    assert not table.bring('other', 'a')
    assert table.left == 0


@pytest.mark.parametrize('seed', range(20))
def test_any_order_of_events_brings_everything_once(seed, clock):
    """Workers come, search, are lost, come back with what they had."""
    chance = random.Random(seed)
    table = leases.Table(range(100), silent=5)
    hands: dict[int, list[int]] = {}
    stored: list[int] = []
    while table.left:
        clock.now += 1
        worker = chance.randrange(6)
        match chance.randrange(4):
            case 0:
                hands.setdefault(worker, []).extend(table.take(worker, chance.randrange(1, 8)))
            case 1 | 2 if hands.get(worker):
                item = hands[worker].pop(chance.randrange(len(hands[worker])))
                if table.bring(worker, item):
                    stored.append(item)
            case 3 if chance.random() < 0.3:
                table.lose(worker)
                if chance.random() < 0.5:
                    hands.pop(worker, None)
        for lost in table.silent():
            table.lose(lost)
            if chance.random() < 0.5:
                hands.pop(lost, None)
    assert sorted(stored) == list(range(100))


@pytest.mark.parametrize('how', [leases.STATIC, leases.COUNTER])
@pytest.mark.parametrize('count', [1, 2, 5])
def test_processes_share_everything_out(monkeypatch, how, count):
    counter = iter(range(10_000))
    monkeypatch.setattr(leases.hosts, 'take', lambda name: next(counter))
    monkeypatch.setattr(jax, 'process_count', lambda: count)
    shares = []
    for number in range(count):
        monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
        shares.append([x for lease in leases.dealt(range(1001), 'x', how) for x in lease])
    assert sorted(x for share in shares for x in share) == list(range(1001))
    if how == leases.STATIC:
        assert max(map(len, shares)) - min(map(len, shares)) <= leases.MOST


def test_leases_are_small_against_what_is_left_to_each_process():
    starts = leases.bounds(747_000, 256)
    sizes = [b - a for a, b in itertools.pairwise(starts)]
    assert (starts[0], starts[-1]) == (0, 747_000)
    assert sizes[0] == leases.MOST and sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
    for start, size in zip(starts, sizes):
        assert size == 1 or size * 256 * leases.EACH <= 747_000 - start
    assert leases.bounds(3, 8) == (0, 1, 2, 3)
    assert leases.bounds(0, 8) == (0,)


def test_long_questions_are_begun_first():
    problems = [Problem(i, 'x' * n) for i, n in enumerate([3, 9, 3, 5])]
    found = [(problem.index, tree) for problem, tree in search.items(problems, range(2))]
    assert found == [(i, tree) for i in (1, 3, 0, 2) for tree in range(2)]
