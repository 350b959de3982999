"""While there is plenty of work, devices have a chunk while the host looks at the one before."""

import dataclasses
import time

import jax
import pytest

from rstar_jax import parallel, search
from rstar_jax.data.problem import Problem
from rstar_jax.models import tiny
from rstar_jax.search.engine import Engine
from rstar_jax.search.nodes import HostTree, Node
from tests.search import test_engine

PROBLEMS = [
    dataclasses.replace(test_engine.PROBLEMS[0], index=i, question=f'Tom has {i}') for i in range(6)
]
CONFIG = search.Config(
    rollouts=1, candidates=3, max_depth=1, step_tokens=96, slots=4, trees_in_flight=6, chunk=16
)


@pytest.fixture
def events(monkeypatch):
    """[(what, number of the chunk)] of a search by `searched`."""
    found = []
    collect = Engine.collect

    def collected(self, running):
        if running is None:
            return collect(self, running)
        found.append(('waited for', running[0]))
        steps = collect(self, running)
        time.sleep(0.05)
        return steps

    monkeypatch.setattr(Engine, 'collect', collected)
    return found


def searched(events, monkeypatch) -> list[int]:
    """Searches; returns the chunks that were sent ahead."""
    ahead, dispatch = [], Engine.dispatch

    def sent(self):
        plenty, running = self.plenty, dispatch(self)
        if running is not None:
            events.append(('sent', running[0]))
            ahead.extend([running[0]] * plenty)
        return running

    monkeypatch.setattr(Engine, 'dispatch', sent)
    policy = tiny.policy(['Tom has 3'], num_layers=2)  # which runs every step to its limit
    with search.Workers.start(CONFIG) as workers:
        test_engine.grow(policy, None, workers, PROBLEMS, CONFIG)
    ahead = [number for number in ahead if number > 1]
    assert len(ahead) > 4
    return ahead


def test_the_devices_do_not_wait_for_a_slow_host(events, monkeypatch):
    """The next chunk is there before the host waits for one."""
    for number in searched(events, monkeypatch):
        assert events.index(('sent', number)) < events.index(('waited for', number - 1))


def test_few_known_tokens_wait_for_others_where_slots_have_plenty_of_work():
    """Each call takes as long as 20 tokens more."""
    mesh = parallel.local_mesh(devices=jax.devices()[:1])
    policy = tiny.policy(['Tom has 3'], num_layers=1)
    config = dataclasses.replace(CONFIG, chunk=1)
    engine = Engine(policy, None, config, mesh, 6, [[1] * 10, [2] * 10])

    def waiting(row, tokens):
        """Rows that wait after a tree has begun."""
        nodes = [Node(tokens=[5 + row] * tokens)]
        engine.start(row, tree := HostTree(Problem(row, ''), 0, 0, '', nodes, [0]))
        engine.expand(row, tree)
        engine.collect(engine.dispatch())
        return [row for row in range(6) if engine.policy.ledger.waits(row)]

    assert waiting(0, 8) == []  # nothing else is to be done
    assert waiting(1, 8) == []  # three of four slots are in use
    assert engine.plenty
    assert waiting(2, 8) == [2]
    assert waiting(3, 8) == [2, 3]
    assert waiting(4, 8) == []  # 24 tokens are more than 20
    engine.close()
