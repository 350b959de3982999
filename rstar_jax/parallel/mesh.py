"""The two meshes: searching is local to a host, training spans all hosts.

While searching, a host drives only its own devices: `local_mesh` has the axes (data, tensor), and
each of its `data` rows runs its own trees. Training uses one `global_mesh` over every device of
every host, axes (data, fsdp, tensor).
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from rstar_jax.errors import UserError

LOCAL_AXES = ('data', 'tensor')
GLOBAL_AXES = ('data', 'fsdp', 'tensor')


def local_mesh(tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh [data, tensor] over this host's devices (or those given).

    tensor: number of devices that share one model's weights; must divide the number of devices.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    _divides('tensor', tensor, len(devices), 'devices of this host')
    return Mesh(np.array(devices).reshape(-1, tensor), LOCAL_AXES)


def global_mesh(
    fsdp: int | None = None, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh [data, fsdp, tensor] over all devices of all hosts (or those given).

    fsdp: number of devices over which parameters and optimiser state are cut; None = all that
    `tensor` leaves, so that no device holds a whole copy.
    """
    devices = list(jax.devices() if devices is None else devices)
    _divides('tensor', tensor, len(devices), 'devices')
    rest = len(devices) // tensor
    fsdp = rest if fsdp is None else fsdp
    _divides('fsdp', fsdp, rest, f'devices left beside tensor={tensor}')
    grid = mesh_utils.create_device_mesh((rest // fsdp, fsdp, tensor), devices)
    return Mesh(grid, GLOBAL_AXES)


def _divides(name: str, size: int, count: int, what: str) -> None:
    if size < 1 or count % size:
        raise UserError(f'{name}={size}: needs a divisor of the {count} {what}')
