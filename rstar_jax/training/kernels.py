"""Attention over packed rows by a flash kernel: the splash attention that JAX has for TPUs.

What attention._attention computes, pair of blocks by pair of blocks, with all of a pair in the
kernel: its scores are in no array. The rows of a device are laid one behind the other, as one
sequence, and a block of queries looks through the n blocks of keys of its own row:

    seen [R, P, size, size]   which tokens of a pair of blocks see which, for the P = n (n + 1) / 2
                              pairs of a row that are not above the diagonal
    kind [R, n, n]            0: nothing is seen, the pair is left out; 1: what `seen` says; 2: all

Both are the same for all heads and layers. The kernel reads `seen` as 32 bits a pair of tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks
from jax.sharding import PartitionSpec

from rstar_jax import parallel
from rstar_jax.models.decoder import KEPT

BLOCK = 512  # tokens of a block of queries and of one of keys
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


def pairs(end: jax.Array, positions: jax.Array, window: jax.Array | int | None) -> Pairs:
    """The pairs of blocks of rows with `end` and `positions` i32[R, n, size].

    Besides what `end` lets it see, each token sees itself: the kernel divides by the sum of what is
    seen, and nobody looks at the padding, which would see nothing.
    """
    rows, n, size = end.shape
    here, there = np.tril_indices(n)
    i = jnp.asarray(here[:, None, None] * size + np.arange(size)[:, None])
    j = jnp.asarray(there[:, None, None] * size + np.arange(size))
    seen = (j <= i) & (i < end[:, there, None, :])
    if window is not None:
        seen &= positions[:, there, None, :] > positions[:, here, :, None] - window
    seen |= i == j
    some, every = jnp.any(seen, axis=(2, 3)), jnp.all(seen, axis=(2, 3))
    kind = jnp.zeros((rows, n, n), jnp.int32)
    kind = kind.at[:, here, there].set(some.astype(jnp.int32) + every)
    return Pairs(kind, seen, seen.swapaxes(2, 3))


def fits(q: jax.Array, k: jax.Array) -> bool:
    """Whether the kernel is there for q [R, T, H, d] and k [R, T, K, d], and gains by them.

    Rows of one block have nothing to leave out and little attention. In float32 the kernel's sums
    are no better than in bfloat16. Heads of a group are not parted among devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    tensor = 1 if mesh.empty else mesh.shape['tensor']
    by_kernel = parallel.platform() == 'tpu' and q.dtype == jnp.bfloat16
    return by_kernel and q.shape[1] > BLOCK and k.shape[2] % tensor == 0


def attention(q: jax.Array, k: jax.Array, v: jax.Array, seen: Pairs) -> jax.Array:
    """What queries q [R, T, H, d] have read of k, v [R, T, K, d]; T is whole blocks."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _of_device(q, k, v, seen)
    # The loop of blocks is no loop for the compiler, so nothing is cut but by hand.
    by_device = jax.shard_map(
        _of_device,
        in_specs=(HEADS, HEADS, HEADS, Pairs(ROWS, ROWS, ROWS)),
        out_specs=HEADS,
        check_vma=False,
    )
    return by_device(q, k, v, seen)


def _of_device(q, k, v, seen: Pairs) -> jax.Array:
    rows, length, heads, dim = q.shape
    size = seen.seen.shape[-1]
    kernel = splash.SplashAttentionKernel(
        _lists(seen, by_key=False),
        _lists(seen, by_key=False),
        _lists(seen, by_key=True),
        block_sizes=splash.BlockSizes(
            **{f'block_{side}': size for side in ('q', 'kv', 'q_dq', 'kv_dq', 'q_dkv', 'kv_dkv')}
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=KEPT,
        mask_function=None,
        interpret=parallel.platform() != 'tpu',
    )
    q, k, v = (x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, dim) for x in (q * dim**-0.5, k, v))
    return kernel(q, k, v).reshape(heads, rows, length, dim).transpose(1, 2, 0, 3)


def _lists(seen: Pairs, by_key: bool) -> masks.MaskInfo:
    """What the kernel takes: for each step of each block the other block and the part of `seen`.

    A block of queries steps through the blocks of keys of its row, [1, R * n, n]; with by_key a
    block of keys through those of queries, [1, n, R * n].
    """
    rows, n, _ = seen.kind.shape
    here, there = np.tril_indices(n)
    place = np.zeros((n, n), np.int32)
    place[here, there] = np.arange(len(here))
    row = jnp.arange(rows, dtype=jnp.int32)[:, None, None]
    other = np.arange(n, dtype=np.int32)[:, None] if by_key else np.arange(n, dtype=np.int32)

    def listed(x):
        return (x.transpose(1, 0, 2).reshape(n, -1) if by_key else x.reshape(-1, n))[None]

    blocks = seen.turned if by_key else seen.seen
    return masks.MaskInfo(
        data_next=listed(jnp.where(seen.kind > 0, row * n + other, 0)),
        mask_next=listed(jnp.where(seen.kind == 1, row * len(here) + place, 0)),
        block_mask=listed(seen.kind),
        partial_mask_blocks=blocks.reshape(-1, *blocks.shape[2:]),
        q_sequence=None,
    )
