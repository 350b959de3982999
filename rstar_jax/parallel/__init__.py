"""Meshes, and the launch on several hosts: search is local to a host, training is global."""

from rstar_jax.parallel.chips import devices_in_use, has_bfloat16, peak_flops, platform
from rstar_jax.parallel.compiled import compile_seconds, keep_compiled
from rstar_jax.parallel.hosts import (
    alike,
    alike_soon,
    barrier,
    gathered,
    greatest,
    initialise,
    is_first,
    of_first,
    sharing_cores,
)
from rstar_jax.parallel.leases import COUNTER, Table, dealt
from rstar_jax.parallel.memory import (
    bytes_of_program,
    bytes_on_a_device,
    device_bytes,
    free_bytes,
    give_memory_back,
    share_memory,
    trim,
)
from rstar_jax.parallel.mesh import global_mesh, local_mesh, shares, training_mesh
from rstar_jax.parallel.roll import free_port

__all__ = [
    'COUNTER',
    'Table',
    'alike',
    'alike_soon',
    'barrier',
    'bytes_of_program',
    'bytes_on_a_device',
    'compile_seconds',
    'dealt',
    'device_bytes',
    'devices_in_use',
    'free_bytes',
    'free_port',
    'gathered',
    'give_memory_back',
    'global_mesh',
    'greatest',
    'has_bfloat16',
    'initialise',
    'is_first',
    'keep_compiled',
    'local_mesh',
    'of_first',
    'peak_flops',
    'platform',
    'share_memory',
    'shares',
    'sharing_cores',
    'training_mesh',
    'trim',
]
