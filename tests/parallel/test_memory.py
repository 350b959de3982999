"""The memory of a CPU: the host's, or what its control groups leave of it."""

import jax
import pytest
from jax.sharding import Mesh

from rstar_jax import parallel
from rstar_jax.job import cgroups
from rstar_jax.parallel import compiled, memory

MIB = 2**20
VERSION_1 = 'memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'
VERSION_2 = '', 'memory.max', 'memory.current', 'inactive_file'


def group(folder, files, limit, used=0, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[1]).write_text(f'{limit}\n')
    (folder / files[2]).write_text(f'{used}\n')
    (folder / 'memory.stat').write_text(f'anon 7\n{files[3]} {cache}\n')


@pytest.mark.parametrize('files', [VERSION_1, VERSION_2], ids=['1', '2'])
@pytest.mark.parametrize('place', ['', 'job', 'job/step'])
def test_the_least_of_host_and_control_groups_counts(tmp_path, monkeypatch, files, place):
    monkeypatch.setattr(cgroups, 'CGROUPS', tmp_path / 'groups')
    monkeypatch.setattr(cgroups, 'OWN', tmp_path / 'own')
    mesh = Mesh(jax.devices()[:4], 'data')
    (tmp_path / 'own').write_text('12:cpu,cpuacct:/\n')
    total, free = parallel.device_bytes(mesh), parallel.free_bytes(mesh)
    assert total == memory._physical_bytes() // 4 and free > 16 * MIB
    root = tmp_path / 'groups' / files[0]
    (tmp_path / 'own').write_text(f'12:cpu,cpuacct:/\n3:{files[0]}:/job/step\n')
    none = 'max' if files is VERSION_2 else 2**63 - 4096
    group(root, files, none)
    group(root / 'job', files, none)
    assert parallel.device_bytes(mesh) == total
    group(root / place, files, 64 * MIB, used=30 * MIB, cache=10 * MIB)
    assert parallel.device_bytes(mesh) == 16 * MIB
    assert parallel.free_bytes(mesh) == 11 * MIB
    group(root / place, files, 64 * MIB, used=65 * MIB)
    assert parallel.free_bytes(mesh) == 0


def test_processes_of_one_machine_plan_with_their_part_of_its_memory(monkeypatch):
    """Each on its own would take all that is free."""
    monkeypatch.setattr(memory, '_sharing', 1)
    monkeypatch.setattr(memory, '_host_bytes', lambda: 12 * MIB)
    monkeypatch.setattr(memory, '_groups', lambda: iter(()))
    mesh = Mesh(jax.devices()[:2], 'data')
    total, free = parallel.device_bytes(mesh), parallel.free_bytes(mesh)
    parallel.share_memory(3)
    assert (parallel.device_bytes(mesh), parallel.free_bytes(mesh)) == (total // 3, free // 3)
    assert free == 6 * MIB


def test_programs_are_forgotten_where_they_take_much(monkeypatch):
    twice = jax.jit(lambda x: 2 * x)
    assert twice(1) == 2
    before = compiled.generation()
    monkeypatch.setattr(memory, '_process_bytes', lambda name: 0)  # this one's may be much
    parallel.give_memory_back()
    assert (twice._cache_size(), compiled.generation()) == (1, before)
    monkeypatch.setattr(memory, '_process_bytes', lambda name: 1 << 60)
    parallel.give_memory_back()
    assert (twice._cache_size(), compiled.generation()) == (0, before + 1)
    assert twice(1) == 2


def test_arrays_are_no_programs(monkeypatch):
    monkeypatch.setattr(memory, '_process_bytes', lambda name: 100 * MIB)
    before = memory._besides()
    held = jax.numpy.zeros(MIB, 'float32')
    assert before - memory._besides() == held.nbytes == 4 * MIB
