"""Arrays of a training: a model's, taken over or copied, in their dtype and place on the mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rstar_jax.models import sharding
from rstar_jax.training import layers


def own(params, dtype: jnp.dtype, mesh: Mesh, config, release: bool):
    """`params` in `dtype`, stacked and laid out over the mesh, in arrays that are our own.

    release: takes `params` over, array by array, instead of copying them.
    """
    where = sharding.shardings(params, mesh, config)
    owned = jax.tree.map(functools.partial(_own, dtype, release), params, where)
    return layers.stack(owned, release=True)


def own_dtype(leaf, dtype: jnp.dtype) -> jnp.dtype:
    """In what a training holds a parameter whose network runs in `dtype`."""
    return dtype if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def _own(dtype: jnp.dtype, release: bool, leaf, where: NamedSharding) -> jax.Array:
    """`leaf` at `where` in `own_dtype`: an array of our own, which may be donated."""
    dtype = own_dtype(leaf, dtype)
    held = isinstance(leaf, jax.Array)
    there = held and leaf.dtype == dtype and leaf.sharding.is_equivalent_to(where, leaf.ndim)
    if release and there:
        return leaf
    if held and (where.is_fully_addressable or not leaf.is_fully_addressable):
        made = jax.device_put(jnp.array(leaf, dtype, copy=True), where)
    else:  # each process has the same, such as a new head
        made = spread(np.asarray(leaf, dtype), where)
    if release and held:
        made.block_until_ready()
        leaf.delete()
    return made


def spread(value: np.ndarray, where: NamedSharding) -> jax.Array:
    """`value`, which every process has, on the devices of all of them."""
    return jax.make_array_from_callback(value.shape, where, lambda index: value[index])
