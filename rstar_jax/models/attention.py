"""Plain attention: the readable reference that every faster form is compared with.

An attention function takes rotated queries q [..., T, H, d] (not yet scaled), keys and values
k, v [..., T, K, d] of the same tokens, and a layer's cache, and returns out [..., T, H, d] and the
new cache. In a layer with a sliding window it is also given `window=`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rstar_jax.models.products import product

MASKED = -1e30  # finite, so that a row without any visible key yields no NaN


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention; query head h reads kv head h // (H/K).

    q: [..., T, H, d]; k, v: [..., S, K, d]; mask: bool[..., T, S], True = may be seen.
    Returns [..., T, H, d] in q's dtype; scores and softmax are float32.
    """
    *lead, length, heads, dim = q.shape
    kv_heads = k.shape[-2]
    q = q.reshape(*lead, length, kv_heads, heads // kv_heads, dim)
    scores = product('...tkgd,...skd->...kgts', q, k)
    scores = jnp.where(mask[..., None, None, :, :], scores * dim**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = product('...kgts,...skd->...tkgd', weights, v)
    return out.reshape(*lead, length, heads, dim).astype(q.dtype)


def causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    lengths: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """Attention of a text on itself: no token sees those behind it.

    lengths: i32[...]; right padding from there on is not seen. window: only the latest `window`
    positions are, itself included.
    """
    column = jnp.arange(q.shape[-3])
    row = column[:, None]
    mask = column <= row
    if window is not None:
        mask &= column > row - window
    if lengths is not None:
        mask = mask & (column < lengths[..., None, None])
    return attention(q, k, v, mask)


def whole_texts(lengths: jax.Array | None = None) -> Callable:
    """The decoder's `attend` for texts that are there from their first token on, as of `causal`."""

    def attend(q, k, v, cache=None, window=None):
        return causal(q, k, v, lengths=lengths, window=window), cache

    return attend
