"""Attention in parts over different key stores, merged by log-sum-exp.

The candidates of a node share their path. Its keys are stored once a tree and attended to by all
candidates together; each candidate's own step is a second, small part, and what all prompts begin
with a third, stored once. Every part yields an
unnormalised output with the running maximum and sum of its softmax, and `merge` combines them
exactly (the identity behind flash and bifurcated attention, arXiv 2403.08845).

Keys and values are stored as [rows, K, positions, d]: batch axes first, so that no product needs
a transposed copy of a cache.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rstar_jax.models.attention import MASKED


class Part(NamedTuple):
    """Attention over one key store, not yet normalised; all float32.

    Attributes:
      out: [..., d], sum of exp(score - top) * value.
      top: [...], the highest score.
      total: [...], sum of exp(score - top).
    """

    out: jax.Array
    top: jax.Array
    total: jax.Array


def bias(mask: jax.Array) -> jax.Array:
    """f32 of a mask's shape, to be added to scores: where it is False there is no weight."""
    return jnp.where(mask, 0.0, MASKED)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> Part:
    """Attends within each row.

    Args:
      q: [R, K, M, d], M queries of each key head, not scaled.
      k, v: [R, K, S, d or more], zeros behind d.
      bias: f32, broadcast to [R, K, M, S], see `bias`; None where every key is attended to. A
        query with no key at all yields a part of no weight beside any other.
    """
    d = q.shape[-1]
    wide = jnp.pad(q, [*[(0, 0)] * 3, (0, k.shape[-1] - d)])
    scores = jnp.einsum('rkmd,rksd->rkms', wide, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    top, scale = scores.max(axis=-1), d**-0.5
    weights = jnp.exp(scale * (scores - top[..., None])).astype(v.dtype)
    out = jnp.einsum('rkms,rksd->rkmd', weights, v, preferred_element_type=jnp.float32)
    return Part(out[..., :d], scale * top, weights.sum(axis=-1, dtype=jnp.float32))


def attend_shared(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> Part:
    """Attends from all rows to one key store, as one product.

    Args:
      q: [R, K, M, d].
      k, v: [1, K, S, d or more], zeros behind d.
      bias: f32[R, M, S], see `bias`, or None where every key is attended to.
    """
    rows, kv_heads, queries, d = q.shape
    if bias is not None:
        bias = bias.reshape(1, 1, rows * queries, -1)
    part = attend(q.swapaxes(0, 1).reshape(1, kv_heads, rows * queries, d), k, v, bias)

    def back(x):
        return x.reshape(kv_heads, rows, queries, *x.shape[3:]).swapaxes(0, 1)

    return Part(*map(back, part))


def prefix_bias(
    length: int, group: int, positions, window: int | None, present: jax.Array | None
) -> jax.Array | None:
    """Of tokens at i32[R,T] `positions`, `group` queries each, to a prefix: f32[R,T*group,P].

    present: bool[R], the rows that have the prefix in front of them; None, all have.
    """
    if window is None and present is None:
        return None
    queries = jnp.repeat(positions, group, axis=1)[..., None]
    mask = jnp.ones((*queries.shape[:2], length), bool)
    if window is not None:
        mask &= jnp.arange(length) > queries - window
    if present is not None:
        mask &= present[:, None, None]
    return bias(mask)


def gather(part: Part, of: jax.Array) -> Part:
    """Merges, for each of R rows, those of U parts that bool[R,U] `of` says: [U, ...] to [R, ...].

    A row of none gets a part of no weight beside any other. Sums in a product, as additions to
    places that are looked up have no fixed order on GPUs.
    """
    wide = [1] * (part.top.ndim - 1)
    top = jnp.where(of.reshape(*of.shape, *wide), part.top, MASKED).max(axis=1)
    scale = jnp.exp(part.top - top[of.argmax(axis=0)])
    scale = jnp.where(of.any(axis=0).reshape(-1, *wide), scale, 0.0)

    def add(x):
        flat = x.reshape(x.shape[0], -1)
        total = jnp.matmul(of.astype(x.dtype), flat, precision='highest')
        return total.reshape(-1, *x.shape[1:])

    return Part(add(part.out * scale[..., None]), top, add(part.total * scale))


def join(*parts: Part) -> Part:
    """Attention over the key stores of all parts."""
    top = functools.reduce(jnp.maximum, (part.top for part in parts))
    scales = [jnp.exp(part.top - top) for part in parts]
    total = sum(part.total * scale for part, scale in zip(parts, scales, strict=True))
    out = sum(part.out * scale[..., None] for part, scale in zip(parts, scales, strict=True))
    return Part(out, top, total)


def merge(*parts: Part) -> jax.Array:
    """Returns the normalised attention over the key stores of all parts, float32 [..., d]."""
    joined = join(*parts)
    return joined.out / joined.total[..., None]


def by_key_head(q: jax.Array, kv_heads: int) -> jax.Array:
    """Groups queries by the key head they use: [R, T, H, d] -> [R, K, T * H/K, d]."""
    rows, length, heads, d = q.shape
    q = q.reshape(rows, length, kv_heads, heads // kv_heads, d)
    return q.swapaxes(1, 2).reshape(rows, kv_heads, -1, d)


def by_position(out: jax.Array, length: int) -> jax.Array:
    """Inverse of `by_key_head`: [R, K, T * H/K, d] -> [R, T, H, d]."""
    rows, kv_heads, queries, d = out.shape
    out = out.reshape(rows, kv_heads, length, queries // length, d)
    return out.swapaxes(1, 2).reshape(rows, length, -1, d)
