"""Bytes on devices: what arrays take, and what is free."""

import contextlib
import ctypes
import gc
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from rstar_jax.job import cgroups
from rstar_jax.job.hosts import greatest
from rstar_jax.parallel.compiled import forget_programs

GIB = 2**30
ASIDE, PART = GIB, 8  # so much beside arrays, and this part of all memory, are not missed
# version of control groups -> limit, use, and page cache that can be given back
CGROUP_FILES = {
    1: ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
    2: ('memory.max', 'memory.current', 'inactive_file'),
}


_sharing = 1


def share_memory(processes: int) -> None:
    """Leaves its part of the memory to the CPUs of this process, one of so many on its machine."""
    global _sharing
    _sharing = processes


def bytes_on_a_device(tree: Any) -> int:
    """Bytes that arrays, or shapes with a sharding, take on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def device_bytes(mesh: Mesh) -> int:
    """Bytes that this host's smallest device has for programs; each CPU has a share.

    0 where a device does not say, as with XLA_PYTHON_CLIENT_ALLOCATOR=platform.
    """
    local = list(mesh.local_devices)
    if local[0].platform == 'cpu':
        return _host_limit() // (len(local) * _sharing)
    return min((device.memory_stats() or {}).get('bytes_limit', 0) for device in local)


def bytes_of_program(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled function has in use on one device, its arguments included."""
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return used + made + memory.generated_code_size_in_bytes


def free_bytes(mesh: Mesh) -> int:
    """Bytes that are free on this host's device that has the fewest; each CPU has a share.

    Known where `device_bytes` is.
    """
    local = list(mesh.local_devices)
    if local[0].platform == 'cpu':
        free = [_host_bytes(), *(limit - used for limit, used in _groups())]
        return max(0, min(free)) // (len(local) * _sharing)
    stats = [device.memory_stats() or {} for device in local]
    return min(s.get('bytes_limit', 0) - s.get('bytes_in_use', 0) for s in stats)


def watch_peak(mesh: Mesh) -> Callable[[], int]:
    """Returns what tells the most bytes in use on this host's fullest device, beside those of now.

    On CPUs of the process (Linux). On accelerators the most since it began: what was more before
    is told, too.
    """
    local = list(mesh.local_devices)
    if local[0].platform == 'cpu':
        with contextlib.suppress(OSError):  # the peak is forgotten
            pathlib.Path('/proc/self/clear_refs').write_text('5')
        before = _process_bytes('VmRSS')
        return lambda: _process_bytes('VmHWM') - before

    def used(name: str) -> list[int]:
        return [(device.memory_stats() or {}).get(name, 0) for device in local]

    in_use = used('bytes_in_use')
    return lambda: max(a - b for a, b in zip(used('peak_bytes_in_use'), in_use))


def _process_bytes(name: str) -> int:
    try:
        status = pathlib.Path('/proc/self/status').read_text(encoding='ascii')
    except OSError:  # no Linux
        return 0
    return int(status.partition(f'{name}:')[2].split()[0]) * 1024


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of the control groups that bound this process's memory."""
    for version, folder in cgroups.folders('memory'):
        limit, used, cache = CGROUP_FILES[version]
        # No such group, or one without a limit ('max').
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())
            rows = (folder / 'memory.stat').read_text().splitlines()
            kept = dict(row.split() for row in rows).get(cache, 0)
            yield most, int((folder / used).read_text()) - int(kept)


def _host_limit() -> int:
    return min([_physical_bytes(), *(limit for limit, _ in _groups())])


def _physical_bytes() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _host_bytes() -> int:
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            rows = dict(line.split(':', 1) for line in file)
        return int(rows['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux: half of all
        return _physical_bytes() // 2


def give_memory_back() -> None:
    """Returns to the system what was freed, which glibc would keep: 16 GB after an SFT.

    All processes call this. Where one holds much beside its arrays, all forget their compiled
    programs first, as some are compiled together; what is needed again is traced again and read
    from the disk (`compiled.keep_compiled`).
    """
    gc.collect()
    if greatest(_besides() > ASIDE + _host_limit() // PART):
        forget_programs()
        gc.collect()
    trim()


def _besides() -> int:
    """Bytes of this process's memory that no array takes: programs, 30 MB each of 24 layers."""
    arrays = jax.live_arrays() if jax.default_backend() == 'cpu' else ()
    return _process_bytes('VmRSS') - sum(array.nbytes for array in arrays)


def trim() -> None:
    """As `give_memory_back`, in milliseconds: without what only the garbage collector finds."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
