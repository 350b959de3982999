"""Attention over packed rows whose sequences may share prefixes (see packing.py).

Token i of a row looks at token j exactly if j <= i < end[j]. Queries go in blocks, each against
the keys up to its own end: most of what lies above the diagonal is never computed, and of the
scores [H, block, T] only one block is in memory at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rstar_jax.models.attention import attention

BLOCK = 256
MAX_BLOCKS = 8  # each adds to the compile time of every layer


def mask(
    end: jax.Array, positions: jax.Array, start: int, stop: int, window: int | None = None
) -> jax.Array:
    """bool[R, stop - start, stop]: which tokens are seen by the tokens start .. stop - 1 of a row.

    end, positions: i32[R, T]. window: only the latest `window` positions, itself included.
    """
    here, there = jnp.arange(start, stop)[:, None], jnp.arange(stop)
    seen = (there <= here) & (here < end[:, None, :stop])
    if window is not None:
        seen &= positions[:, None, :stop] > positions[:, start:stop, None] - window
    return seen


def rows_over_mesh(x: jax.Array, heads: bool = False) -> jax.Array:
    """Keeps the rows of activations x [R, ...] cut over data and fsdp, in the mesh of jax.set_mesh.

    Left to itself the compiler cuts activations as it finds the weights cut: along D over fsdp,
    and then moves them about in each layer. heads: x is [R, T, H, d], heads are cut over tensor.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = [('data', 'fsdp')] + [None] * (x.ndim - 1)
    if heads and x.shape[2] % mesh.shape['tensor'] == 0:
        spec[2] = 'tensor'
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def columns_over_mesh(x: jax.Array) -> jax.Array:
    """Cuts the last axis of x [R, T, D] over fsdp, as the embedding's columns are cut."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[-1] % mesh.shape['fsdp']:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, None, 'fsdp'))


def whole_columns(table: jax.Array) -> jax.Array:
    """Gathers the columns of the embedding [V, D] from fsdp, so that rows are looked up whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table
    vocab = 'tensor' if table.shape[0] % mesh.shape['tensor'] == 0 else None
    return jax.lax.with_sharding_constraint(table, PartitionSpec(vocab))


def block_size(length: int) -> int:
    """Queries of a row of `length` tokens that go at once."""
    return max(BLOCK, -(-length // MAX_BLOCKS))


def packed(end: jax.Array, positions: jax.Array) -> Callable:
    """The decoder's `attend` for rows with `end` and `positions` i32[R, T]; it needs no cache."""
    length = end.shape[1]
    block = block_size(length)

    def attend(q, k, v, cache=None, window=None):
        q, k, v = (rows_over_mesh(x, heads=True) for x in (q, k, v))
        out = []
        for start in range(0, length, block):
            stop = min(start + block, length)
            seen = mask(end, positions, start, stop, window)
            # The weights are computed again in the backward pass: kept, those of all blocks
            # together would be the whole [H, T, T].
            run = attention if length <= block else jax.checkpoint(attention)
            out.append(run(q[:, start:stop], k[:, :stop], v[:, :stop], seen))
        return jnp.concatenate(out, axis=1), cache

    return attend
