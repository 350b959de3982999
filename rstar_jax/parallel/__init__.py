"""The devices: what they are and hold, meshes over them, programs compiled for them.

Search is local to a host, training is global.
"""

from rstar_jax.parallel.chips import (
    devices_in_use,
    fast_dtype,
    peak_flops,
    platform,
)
from rstar_jax.parallel.compiled import compile_seconds, keep_compiled
from rstar_jax.parallel.memory import (
    bytes_of_program,
    bytes_on_a_device,
    device_bytes,
    free_bytes,
    give_memory_back,
    share_memory,
    trim,
)
from rstar_jax.parallel.mesh import global_mesh, local_mesh, one_device, shares, training_mesh

__all__ = [
    'bytes_of_program',
    'bytes_on_a_device',
    'compile_seconds',
    'device_bytes',
    'devices_in_use',
    'fast_dtype',
    'free_bytes',
    'give_memory_back',
    'global_mesh',
    'keep_compiled',
    'local_mesh',
    'one_device',
    'peak_flops',
    'platform',
    'share_memory',
    'shares',
    'training_mesh',
    'trim',
]
