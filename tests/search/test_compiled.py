"""Decode steps that are compiled beside the search."""

import collections
import dataclasses
import math
import threading
import types
from concurrent import futures

import jax
import pytest

from rstar_jax import parallel, search
from rstar_jax.data.problem import Problem
from rstar_jax.parallel import compiled as programs
from rstar_jax.search.engine import compiled
from rstar_jax.search.engine import sizes as sizes_lib
from rstar_jax.search.engine.compiled import Compiled, Size
from tests.search import favoured, test_engine

CONFIG = dataclasses.replace(test_engine.CONFIG, slots=6)
PROBLEMS = [
    Problem(i, question, '3')
    for i, question in enumerate(['Tom has 2 apples.', 'Anna and Tom', '7 boxes of 5', 'Anna'])
]
HEARD = '/jax/core/compile/backend_compile_duration'


@pytest.fixture(scope='module', autouse=True)
def _sizes_of_few_slots():
    """So that searches of a few slots go through several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes_lib, 'FEWEST_SLOTS', 1)
        yield


class Step:
    """Compiles when it is told to."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def lower(self, *arguments):
        self.arguments = arguments
        return self

    def compile(self):
        self.begun.set()
        assert self.go.wait(60)


@pytest.fixture
def sizes():
    return [Size(Step(), slots, 32, 0, cost=slots) for slots in (1, 2, 4)]


def choose(made, sizes, wasted=0.0):
    return made.choose(sizes, wasted, arguments, len(sizes) - 1)


def arguments(size):
    return (size.slots,)


def end(made):
    """Lets what is being compiled come to its end."""
    made.coming[0].step.go.set()
    made.coming[1].result()


def test_a_better_size_is_used_when_it_is_there(sizes):
    made = Compiled()
    small, middle, large = sizes
    assert choose(made, sizes) == 2  # nothing is compiled: the call itself will
    assert not made.coming
    made.called(large, 10.0)
    assert choose(made, sizes, 12.0) == 2
    assert not made.coming  # the small one would have saved 9 seconds, the middle one 6
    assert choose(made, sizes[1:], 10.0) == 1  # and now 11
    assert middle.step.begun.wait(60)
    assert middle.step.arguments == (2,)
    assert choose(made, sizes, 60.0) == 2  # worth it, but one at a time
    assert made.coming[0] == middle
    end(made)
    assert choose(made, sizes) == 1
    assert made.coming[0] == small
    end(made)
    assert choose(made, sizes) == 0
    assert made.ready == {*sizes} and not made.coming


def test_the_last_trees_wait_for_no_size_that_serves_them_all(sizes):
    made = Compiled()
    assert made.choose(sizes, 0.0, arguments, 1) == 1
    made.called(sizes[2], 10.0)
    assert made.choose(sizes, 0.0, arguments, 1) == 2  # but use it where it is compiled


@pytest.fixture
def policy():
    """What of a policy says how long its paths are."""
    return types.SimpleNamespace(config=None, mixed=False, needed=150)


@pytest.fixture
def made(monkeypatch, policy):
    """The sizes of a search of six trees of two candidates and eight slots."""
    monkeypatch.setattr(sizes_lib, 'FEWEST_SLOTS', 2)
    monkeypatch.setattr(compiled, 'COMPILED', Compiled())
    config = search.Config(candidates=2, path_tokens=1000)
    plan = types.SimpleNamespace(slots=8, trees=6, rows=0)
    path = types.SimpleNamespace(length=(), hidden=())
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    return compiled.ChunkSizes(config, mesh, plan, policy, (path, (), None, None))


@pytest.mark.parametrize(('left', 'cells'), [(math.inf, 8), (4, 8), (2, 4), (1, 2), (0, 0)])
def test_what_the_trees_that_are_left_may_need_is_enough(made, left, cells):
    assert made.most(left) == (cells, 2 * min(left, 6))  # 2 blocks a tree
    possible = made.enough(*made.most(left))
    assert possible[0].slots == max(2, cells) and {size.room for size in possible} == {512}
    assert [size.cost for size in possible] == sorted(size.cost for size in possible)


def test_longer_paths_need_more_blocks_and_only_long_ones_more_room(made, policy):
    wanted = []
    for policy.needed in (150, 300, 500, 900, 2000):
        wanted.append((made.most(2)[1], made.enough(*made.most(2))[0].room))
    assert wanted == [(4, 512), (6, 512), (10, 1024), (16, 1024), (34, 4096)]


def test_what_is_expected_is_waited_for(sizes):
    made = Compiled()
    made.expect(sizes[::-1], arguments)
    assert made.coming[0] == sizes[-1]
    before, found = parallel.compile_seconds(), []
    waiting = threading.Thread(target=lambda: found.append(choose(made, sizes)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    sizes[-1].step.go.set()
    waiting.join(60)
    assert found == [2]
    assert made.ready == {sizes[-1]}
    assert parallel.compile_seconds() >= before + 0.2
    made.expect(sizes[::-1], arguments)
    assert not made.coming  # one will do


def test_nothing_waits_for_what_another_search_has_left(sizes):
    made = Compiled()
    small, _, large = sizes
    made.expect([small], arguments)
    made.expect([large], arguments)
    assert made.coming[0] == small  # none queues behind it
    assert choose(made, [large]) == 0  # at once: its call compiles
    assert made.coming[0] == small
    end(made)


def test_a_size_that_cannot_be_compiled_ends_no_search(sizes, capsys):
    made = Compiled()
    small, _, large = sizes
    made.called(large, 0.0)
    small.step.compile = lambda: 1 / 0
    choose(made, [small, large], 1.0)
    futures.wait([made.coming[1]])
    assert choose(made, [small, large], 1.0) == 1
    assert 'no decode step of 1 slots could be compiled: division' in capsys.readouterr().out
    assert not made.coming  # nor is it tried again


@pytest.mark.parametrize('tensor', [1, 2])
def test_a_search_finds_what_was_compiled_beside_it(monkeypatch, tensor):
    """The same trees, and `decode` is compiled in the other thread alone, once for each size."""
    policy, mesh = favoured.policy(), parallel.local_mesh(tensor, jax.devices()[: 2 * tensor])
    made, threads = Compiled(), collections.Counter()
    monkeypatch.setattr(compiled, 'COMPILED', made)

    def heard(event, seconds, *, fun_name='', **_):
        if event == HEARD and 'decode' in fun_name:
            threads[programs.waited_for()] += 1

    def grow(**settings):
        config = dataclasses.replace(CONFIG, **settings)
        with search.Workers.start(config) as workers:
            records = search.run(
                PROBLEMS,
                policy,
                None,
                config=config,
                share=search.Share(workers=workers, mesh=mesh),
            )
            return {record.key: record.texts for record in records}

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        monkeypatch.setattr(compiled, 'WORTH', 1e9)
        first = grow()
        assert len(made.ready) == 1 and threads == {False: 1}
        monkeypatch.setattr(compiled, 'WORTH', 0)
        for _ in range(2):
            assert grow() == first
            made.wait()
        known = len(made.ready)
        assert known > 1 and threads == {False: known}
        # What is forgotten is not taken for compiled.
        programs.forget_programs()
        assert grow() == first
        made.wait()
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert known < len(made.ready) <= 2 * known
    assert threads == {False: len(made.ready)}
