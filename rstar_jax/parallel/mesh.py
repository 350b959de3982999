"""The two meshes: searching is local to a host, training spans all hosts.

While searching, a host drives only its own devices: `local_mesh` has the axes (data, tensor), and
each of its `data` rows runs its own trees. Training uses one `global_mesh` over every device of
every host, axes (data, fsdp, tensor), as `training_mesh` chooses them; where these are several TPU
slices, `data` goes over them.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from rstar_jax.settings.errors import UserError

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
    fsdp: int | None = None,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    model: Any = None,
) -> Mesh:
    """Mesh [data, fsdp, tensor] over all devices of all hosts (or those given).

    fsdp: number of devices over which parameters and optimiser state are cut; None = all that
    `tensor` leaves, or `shares` of them where `model`, a config, is given, so that no device holds
    a whole copy. With several TPU slices: those of a slice, for between slices there is but a
    data-centre network.

    Raises UserError: a size that does not divide; slices of different sizes.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = collections.Counter(
        getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0 for device in devices
    )
    if len(set(slices.values())) > 1:
        sizes = ', '.join(map(str, slices.values()))
        expected = f'slices of {sizes} devices: a training needs slices of one size'
        raise UserError('devices', expected=expected)
    count = len(devices) // len(slices)
    what = 'devices' if len(slices) == 1 else 'devices of a slice'
    _divides('tensor', tensor, count, what)
    rest = count // tensor
    if fsdp is None:
        fsdp = rest if model is None else shares(model, rest)
    _divides('fsdp', fsdp, rest, f'{what} left beside tensor={tensor}')
    shape = rest // fsdp, fsdp, tensor
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, GLOBAL_AXES)
    between = len(slices), 1, 1
    grid = mesh_utils.create_hybrid_device_mesh(
        shape, between, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, GLOBAL_AXES)


def shares(model: Any, count: int) -> int:
    """In how many parts so many devices hold a model, by its config: those that divide its width.

    All that is cut over fsdp is cut along the width (models.sharding), or not at all.
    """
    return math.gcd(count, model.embed_dim)


def training_mesh(
    examples: int, model: Any = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The global mesh for steps of so many examples.

    Each of data x fsdp computes a row of tokens at least: where these are more than the examples,
    most rows are padding (a step of 128 on 1,024 chips: 29 times its tokens). So `tensor` is
    doubled while they are more, as far as it divides the model's heads and a host's devices: what
    is exchanged in every layer goes between neighbours.

    model: its config; None = one that is cut over all devices, along fsdp.
    """
    devices = list(jax.devices() if devices is None else devices)
    host = min(collections.Counter(device.process_index for device in devices).values())
    parts = (host, model.num_heads, model.num_kv_heads) if model is not None else (1,)
    tensor = 1
    while len(devices) // tensor > examples and not any(n % (2 * tensor) for n in parts):
        tensor *= 2
    return global_mesh(tensor=tensor, devices=devices, model=model)


def _divides(name: str, size: int, count: int, what: str) -> None:
    if size < 1 or count % size:
        raise UserError(name, size, f'needs a divisor of the {count} {what}')


def one_device() -> Mesh:
    """The mesh of the first device alone."""
    return global_mesh(devices=jax.local_devices()[:1])
