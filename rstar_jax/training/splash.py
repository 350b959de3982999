"""Attention over packed rows by JAX's splash kernel for TPUs: as block_attention.packed, but scores
are in no array.

Pairs of blocks of which nothing is seen are left out. The rows of a device are laid one behind the
other, as one sequence, and a block of queries looks through the n blocks of keys of its own row:

    seen [R, P, size, size]   which tokens of a pair of blocks see which, for the P = n (n + 1) / 2
                              pairs of a row that are not above the diagonal
    kind [R, n, n]            0: nothing is seen, the pair is left out; 1: what `seen` says; 2: all

Both are the same for all heads and layers. The kernel reads `seen` as 32 bits a pair of tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from rstar_jax import parallel
from rstar_jax.models.decoder import KEPT
from rstar_jax.training.activations import rows_over_mesh

BLOCK = 512

ROWS = PartitionSpec(('data', 'fsdp'))
HEADS = PartitionSpec(('data', 'fsdp'), None, 'tensor')


class Pairs(NamedTuple):
    """Who sees whom in R rows of n blocks.

    Attributes:
      kind: i32[R, n, n], of queries and keys.
      seen, turned: bool[R, P, size, size], [query, key] and [key, query].
    """

    kind: jax.Array
    seen: jax.Array
    turned: jax.Array


def packed(end: jax.Array, positions: jax.Array) -> Callable:
    """As block_attention.packed."""
    length = end.shape[1]
    end, positions = (_whole_blocks(rows_over_mesh(x)) for x in (end, positions))
    everything = pairs(end, positions)

    def attend(q, k, v, cache=None, window=None):
        seen = everything if window is None else pairs(end, positions, window)
        q, k, v = (_whole_blocks(rows_over_mesh(x, heads=True)) for x in (q, k, v))
        by_device = _over_devices(_splash, Pairs(ROWS, ROWS, ROWS))
        return by_device(q, k, v, seen)[:, :length], cache

    return attend


def _whole_blocks(x: jax.Array) -> jax.Array:
    """x [R, T, ...] with zeros behind it, up to the end of a block."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % BLOCK)] + [(0, 0)] * (x.ndim - 2))


def pairs(end: jax.Array, positions: jax.Array, window: jax.Array | int | None = None) -> Pairs:
    """The pairs of blocks of rows with `end` and `positions` i32[R, T] of whole blocks.

    Besides what `end` lets it see, each token sees itself: the kernel divides by the sum of what is
    seen, and nobody looks at the padding, which would see nothing.
    """
    rows = end.shape[0]
    end, positions = (x.reshape(rows, -1, BLOCK) for x in (end, positions))
    n = end.shape[1]
    here, there = np.tril_indices(n)
    i = jnp.asarray(here[:, None, None] * BLOCK + np.arange(BLOCK)[:, None])
    j = jnp.asarray(there[:, None, None] * BLOCK + np.arange(BLOCK))
    seen = (j <= i) & (i < end[:, there, None, :])
    if window is not None:
        seen &= positions[:, there, None, :] > positions[:, here, :, None] - window
    seen |= i == j
    some, every = jnp.any(seen, axis=(2, 3)), jnp.all(seen, axis=(2, 3))
    kind = jnp.zeros((rows, n, n), jnp.int32)
    kind = kind.at[:, here, there].set(some.astype(jnp.int32) + every)
    return Pairs(kind, seen, seen.swapaxes(2, 3))


def _over_devices(function: Callable, seen: Any) -> Callable:
    """function (q [R, T, H, d], k, v [R, T, K, d], seen) -> [R, T, H, d], by rows and heads.

    Kernels are closed to the compiler, which cannot cut them over the mesh by itself.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    specs = (HEADS, HEADS, HEADS, seen)
    return jax.shard_map(function, in_specs=specs, out_specs=HEADS, check_vma=False)


def _splash(q, k, v, seen: Pairs) -> jax.Array:
    """T is whole blocks."""
    # Loading it takes a third of a second, which trainings elsewhere save.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

    rows, length, heads, dim = q.shape
    by_query, by_key = (masks.MaskInfo(**_lists(seen, turned)) for turned in (False, True))
    sizes = 'block_q', 'block_kv', 'block_q_dq', 'block_kv_dq', 'block_q_dkv', 'block_kv_dkv'
    kernel = kernels.SplashAttentionKernel(
        by_query,  # forwards
        by_query,  # backwards: the gradients by queries
        by_key,  # those by keys and values
        block_sizes=kernels.BlockSizes(**dict.fromkeys(sizes, BLOCK)),
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=KEPT,
        mask_function=None,
        interpret=parallel.platform() != 'tpu',
    )
    q, k, v = (x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, dim) for x in (q * dim**-0.5, k, v))
    return kernel(q, k, v).reshape(heads, rows, length, dim).transpose(1, 2, 0, 3)


def _lists(seen: Pairs, turned: bool) -> dict[str, jax.Array | None]:
    """What the kernel takes: for each step of each block the other block and the part of `seen`.

    A block of queries steps through the blocks of keys of its row, [1, R * n, n]; turned, a block
    of keys through those of queries, [1, n, R * n].
    """
    rows, n, _ = seen.kind.shape
    here, there = np.tril_indices(n)
    place = np.zeros((n, n), np.int32)
    place[here, there] = np.arange(len(here))
    row = jnp.arange(rows, dtype=jnp.int32)[:, None, None]
    other = np.arange(n, dtype=np.int32)
    other = other[:, None] if turned else other

    def listed(x):
        return (x.transpose(1, 0, 2).reshape(n, -1) if turned else x.reshape(-1, n))[None]

    blocks = seen.turned if turned else seen.seen
    return {
        'data_next': listed(jnp.where(seen.kind > 0, row * n + other, 0)),
        'mask_next': listed(jnp.where(seen.kind == 1, row * len(here) + place, 0)),
        'block_mask': listed(seen.kind),
        'partial_mask_blocks': blocks.reshape(-1, *blocks.shape[2:]),
        'q_sequence': None,
    }
