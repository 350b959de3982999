"""Bytes on devices: what arrays take, and what is free."""

import contextlib
import ctypes
import gc
import math
import os
from typing import Any

import jax
from jax.sharding import Mesh

GIB = 2**30


def bytes_on_a_device(tree: Any) -> int:
    """Bytes that arrays, or shapes with a sharding, take on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def device_bytes(mesh: Mesh) -> int:
    """Bytes that this host's smallest device has for programs; each CPU has a share."""
    local = list(mesh.local_devices)
    if local[0].platform == 'cpu':
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // len(local)
    return min((device.memory_stats() or {}).get('bytes_limit', 0) for device in local)


def bytes_of_program(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled function has in use on one device, its arguments included."""
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return used + made + memory.generated_code_size_in_bytes


def free_bytes(mesh: Mesh) -> int:
    """Bytes that are free on this host's device that has the fewest; each CPU has a share."""
    local = list(mesh.local_devices)
    if local[0].platform == 'cpu':
        return _host_bytes() // len(local)
    stats = [device.memory_stats() or {} for device in local]
    return min(s.get('bytes_limit', 0) - s.get('bytes_in_use', 0) for s in stats)


def _host_bytes() -> int:
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            rows = dict(line.split(':', 1) for line in file)
        return int(rows['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux: half of all
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2


def give_memory_back() -> None:
    """Returns to the system what was freed, which glibc would keep: 16 GB after an SFT."""
    gc.collect()
    trim()


def trim() -> None:
    """As `give_memory_back`, in milliseconds: without what only the garbage collector finds."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
