"""Meshes, and the launch on several hosts: search is local to a host, training is global."""

from rstar_jax.parallel.hosts import barrier, greatest, initialise, is_first, share
from rstar_jax.parallel.memory import bytes_of_program, bytes_on_a_device, free_bytes
from rstar_jax.parallel.mesh import global_mesh, local_mesh

__all__ = [
    'barrier',
    'bytes_of_program',
    'bytes_on_a_device',
    'free_bytes',
    'global_mesh',
    'greatest',
    'initialise',
    'is_first',
    'local_mesh',
    'share',
]
