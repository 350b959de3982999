"""How many worker processes there are."""

import os

import pytest

from rstar_jax import parallel
from rstar_jax.execution import workers
from rstar_jax.parallel import hosts


@pytest.mark.parametrize(('processes', 'count'), [(1, 6), (2, 3), (4, 1), (9, 1)])
def test_processes_of_a_job_share_the_cores(monkeypatch, processes, count):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(workers, '_sharing', 1)
    workers.share(processes)
    assert workers.cores() == count


def test_processes_with_cores_of_their_own_share_none(monkeypatch):
    told = {}

    def process(name, cores, others=()):
        """Tells its number, and hears those of others."""
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: cores, raising=False)
        monkeypatch.setattr(
            hosts, 'gathered', lambda n: [told.setdefault(name, n), *map(told.get, others)]
        )
        return parallel.sharing_cores()

    monkeypatch.setattr(hosts.jax, 'process_count', lambda: 3)
    assert [process('a', {0, 1}), process('b', {2, 3}), process('c', {0, 1})] == [1, 1, 1]
    assert process('a', {0, 1}, 'bc') == 2
    assert process('b', {2, 3}, 'ac') == 1
