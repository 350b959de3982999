"""How many worker processes there are."""

import os

import pytest

from rstar_jax.execution import workers
from rstar_jax.job import cgroups, hosts


@pytest.mark.parametrize(('processes', 'count'), [(1, 6), (2, 3), (4, 1), (9, 1)])
def test_processes_of_a_job_share_the_cores(monkeypatch, tmp_path, processes, count):
    monkeypatch.setattr(cgroups, 'OWN', tmp_path / 'none')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(workers, '_sharing', 1)
    workers.share(processes)
    assert workers.cores() == count


@pytest.mark.parametrize(
    ('own', 'files', 'count'),
    [
        ('0::/job', {'job/cpu.max': '250000 100000', 'cpu.max': 'max 100000'}, 2),
        ('0::/', {'cpu.max': 'max 100000'}, 64),
        ('0::/job', {'cpu.max': '50000 100000'}, 1),
        (
            '4:cpu,cpuacct:/job\n0::/',
            {'cpu/job/cpu.cfs_quota_us': '300000', 'cpu/job/cpu.cfs_period_us': '100000'},
            3,
        ),
        ('4:cpu:/', {'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 64),
    ],
)
def test_a_containers_quota_of_processors_counts(monkeypatch, tmp_path, own, files, count):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(workers, '_sharing', 1)
    monkeypatch.setattr(cgroups, 'CGROUPS', tmp_path)
    monkeypatch.setattr(cgroups, 'OWN', tmp_path / 'own')
    (tmp_path / 'own').write_text(f'{own}\n')
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'{text}\n')
    assert workers.cores() == count


def test_processes_with_cores_of_their_own_share_none(monkeypatch):
    told = {}

    def process(name, cores, others=()):
        """Tells its number, and hears those of others."""
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: cores, raising=False)
        monkeypatch.setattr(
            hosts, 'gathered', lambda n: [told.setdefault(name, n), *map(told.get, others)]
        )
        return hosts.sharing_cores()

    monkeypatch.setattr(hosts.jax, 'process_count', lambda: 3)
    assert [process('a', {0, 1}), process('b', {2, 3}), process('c', {0, 1})] == [1, 1, 1]
    assert process('a', {0, 1}, 'bc') == 2
    assert process('b', {2, 3}, 'ac') == 1
