"""While there is plenty of work, devices have a chunk while the host looks at the one before."""

import itertools
import time

import jax
import pytest

from rstar_jax import search
from rstar_jax.models import tiny
from rstar_jax.search.engine import Engine, local
from tests.search import test_engine

PROBLEMS = [{**test_engine.PROBLEMS[0], 'index': i, 'question': f'Tom has {i}'} for i in range(6)]
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
        found.append(('looked at', running[0]))
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


def test_a_chunk_whose_call_takes_as_long_as_the_chunk_runs_beside_the_host(events, monkeypatch):
    """As on GPUs: the host is at work on a chunk while the next one is under way."""
    send, numbers = local._decoded, itertools.count(1)

    def slow(*arguments):
        made = send(*arguments)
        jax.block_until_ready(made.stats)
        time.sleep(0.05)
        events.append(('ended', next(numbers)))
        return made

    monkeypatch.setattr(local, '_decoded', slow)
    for number in searched(events, monkeypatch):
        assert events.index(('looked at', number - 1)) < events.index(('ended', number))
