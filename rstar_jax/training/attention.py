"""Attention over packed rows whose sequences may share prefixes (see packing.py).

Token i of a row looks at token j exactly if j <= i < end[j]. Queries go in blocks, each against
the keys up to its own end: most of what lies above the diagonal is never computed, and of the
scores [H, block, T] only one block is in memory at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

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


def packed(end: jax.Array, positions: jax.Array) -> Callable:
    """The decoder's `attend` for rows with `end` and `positions` i32[R, T]; it needs no cache."""
    length = end.shape[1]
    block = max(BLOCK, -(-length // MAX_BLOCKS))

    def attend(q, k, v, cache=None, window=None):
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
