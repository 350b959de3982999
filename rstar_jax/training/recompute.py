"""What a training keeps of the forward pass, and what the backward pass computes again.

Kept of each layer are what goes into it and the results of its products, for whoever has them has
the rest by cheap elementwise work: norms and gates are computed again. Where even that is too much
for the device, a layer's input alone is kept, and the layer is computed again as a whole, which
takes a third more time.

What `jax.checkpoint` computes again XLA for CPUs finds to be equal to what was computed before, and
keeps after all, unless the two are in loops of their own: see training.layers.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rstar_jax import parallel
from rstar_jax.models.decoder import KEPT

# Bytes on a device that the results of products may take where nobody says what it has.
ROOM = 3 * 2**30
_ROOM = contextvars.ContextVar('room', default=ROOM)


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Gives what is traced inside `size` bytes on a device for the results of products."""
    token = _ROOM.set(size)
    try:
        yield
    finally:
        _ROOM.reset(token)


def between(dtype: Any) -> jnp.dtype:
    """In what dtype a network of `dtype` goes from layer to layer: see training.layers."""
    return jnp.dtype(jnp.float32 if parallel.platform() == 'cpu' else dtype)


def kept_bytes(config, rows: int, length: int, dtype: Any) -> int:
    """Bytes on a device of what is kept of all layers for `rows` x `length` tokens in `dtype`."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else math.prod(mesh.shape.values())
    heads = 2 * (config.num_heads + config.num_kv_heads)  # q, k, v, and what they have read
    each = config.embed_dim + heads * config.head_dim + 2 * config.mlp_dim
    each = jnp.dtype(dtype).itemsize * each + between(dtype).itemsize * config.embed_dim
    each += 4 * config.num_heads  # the logarithms of attention's sums
    return each * config.num_layers * rows * length // devices


def whole_layers(config, rows: int, length: int, dtype: Any) -> bool:
    """Whether layers are computed again as a whole: what would be kept exceeds the room."""
    return kept_bytes(config, rows, length, dtype) > _ROOM.get()


def policy(config, rows: int, length: int, dtype: Any) -> Callable:
    """What jax.checkpoint keeps of a layer for `rows` x `length` tokens beside its input."""
    if whole_layers(config, rows, length, dtype):
        return jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint_policies.save_only_these_names(KEPT)
