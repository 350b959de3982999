"""Attention over packed rows whose sequences may share prefixes (see packing.py).

Token i of a row looks at token j exactly if j <= i < end[j]. Queries and keys go in blocks, and
only the pairs of blocks are computed of which some token sees some other, one pair after the other
in one loop, whatever their number: scores [block, block] of one pair are all that is in memory
(FlashAttention-2, arXiv 2307.08691, in plain JAX). The backward pass makes them again from the
logarithms of the sums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax import parallel
from rstar_jax.models.attention import MASKED
from rstar_jax.models.decoder import named
from rstar_jax.models.products import product
from rstar_jax.training.activations import rows_over_mesh

BLOCKS = {'cpu': 128}  # elsewhere:
BLOCK = 512
WHOLE = 2**30  # the window of a layer that has none
LEAST = 0.5 * MASKED  # above it: what is not seen weighs nothing even where nothing is seen
TINY = 1e-30


def block_size(length: int) -> int:
    """Tokens of a block in rows of `length`, for the devices of jax.set_mesh."""
    return min(BLOCKS.get(parallel.platform(), BLOCK), length)


def packed(end: jax.Array, positions: jax.Array) -> Callable:
    """The decoder's `attend` for rows with `end` and `positions` i32[R, T]; it needs no cache."""
    length = end.shape[1]
    size = block_size(length)
    end, positions = _blocks(end, size), _blocks(positions, size)
    everything = pairs(end, positions)

    def attend(q, k, v, cache=None, window=None):
        seen = everything if window is None else pairs(end, positions, window)
        q, k, v = (_blocks(rows_over_mesh(x, heads=True), size) for x in (q, k, v))
        n, rows, _, kv_heads, dim = k.shape
        # Queries [n, R, K, G * size, d], keys and values [n, R, K, size, d].
        q = q.reshape(n, rows, size, kv_heads, -1, dim).transpose(0, 1, 3, 4, 2, 5)
        q = q.reshape(n, rows, kv_heads, -1, dim)
        k, v = (x.swapaxes(2, 3) for x in (k, v))
        window = jnp.int32(WHOLE if window is None else window)
        out = _attention(q, k, v, end, positions, window, seen)
        out = out.reshape(n, rows, kv_heads, -1, size, dim).transpose(1, 0, 4, 2, 3, 5)
        return out.reshape(rows, n * size, -1, dim)[:, :length], cache

    return attend


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """[n, R, size, ...] of x [R, T, ...]; the last block is padded with zeros."""
    padding = [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding)
    return x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)


def pairs(
    end: jax.Array, positions: jax.Array, window: jax.Array | int = WHOLE
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(number, blocks of queries i32[P], of keys i32[P]): those that may have something to see.

    end, positions: i32[n, R, size].
    """
    n, _, size = end.shape
    here, there = np.tril_indices(n)
    seen = jnp.max(end, axis=2)[there] > here[:, None] * size
    seen &= jnp.max(positions, axis=2)[there] > jnp.min(positions, axis=2)[here] - window
    needed = jnp.any(seen, axis=1)
    (places,) = jnp.nonzero(needed, size=len(here), fill_value=0)
    return jnp.sum(needed), jnp.asarray(here)[places], jnp.asarray(there)[places]


@jax.custom_vjp
def _attention(q, k, v, *rows) -> jax.Array:
    """What queries have read [n, R, K, G * size, d]; rows: end, positions, window, pairs."""
    return _forward(q, k, v, *rows)[0]


def _scores(q, k, i, j, end, positions, window) -> jax.Array:
    """f32[R, K, G * size, size] of blocks i of the queries and j of the keys; MASKED: not seen."""
    size = k.shape[-2]
    here, there = i * size + jnp.arange(size)[:, None], j * size + jnp.arange(size)
    seen = (there <= here) & (here < _at(end, j)[:, None, :])
    seen &= _at(positions, j)[:, None, :] > _at(positions, i)[:, :, None] - window
    scores = product('rkqd,rksd->rkqs', _at(q, i), _at(k, j)) * q.shape[-1] ** -0.5
    apart = scores.reshape(*scores.shape[:2], -1, size, size)
    return jnp.where(seen[:, None, None], apart, MASKED).reshape(scores.shape)


def _forward(q, k, v, *rows):
    *rows, (count, here, there) = rows

    def body(p, carry):
        most, total, out = carry
        i, j = here[p], there[p]
        scores = _scores(q, k, i, j, *rows)
        before = _at(most, i)
        now = jnp.maximum(before, jnp.max(scores, axis=-1))
        chances = jnp.exp(scores - now[..., None]).astype(v.dtype)
        shrink = jnp.exp(before - now)
        read = product('rkqs,rksd->rkqd', chances, _at(v, j))
        return (
            _put(most, i, now),
            _put(total, i, shrink * _at(total, i) + jnp.sum(chances, axis=-1, dtype=jnp.float32)),
            _put(out, i, shrink[..., None] * _at(out, i) + read),
        )

    numbers = jnp.zeros(q.shape[:-1], jnp.float32)
    start = numbers + LEAST, numbers, jnp.zeros(q.shape, jnp.float32)
    most, total, out = jax.lax.fori_loop(0, count, body, start)
    total = jnp.maximum(total, TINY)  # padding sees nothing
    out = (out / total[..., None]).astype(q.dtype)
    out, logs = named(out), named(most + jnp.log(total))
    return out, (q, k, v, out, logs, *rows, (count, here, there))


def _backward(residuals, gradient):
    q, k, v, out, logs, *rows, (count, here, there) = residuals
    gradient = gradient.astype(q.dtype)
    inner = product('nrkqd,nrkqd->nrkq', gradient, out)
    # Sums over queries: CPUs have no bfloat16 products along the first axis of a matrix.
    q_across, gradient_across = map(_across, (q, gradient))

    def body(p, carry):
        grad_q, grad_k, grad_v = carry
        i, j = here[p], there[p]
        chances = jnp.exp(_scores(q, k, i, j, *rows) - _at(logs, i)[..., None])
        by_out = _at(gradient, i)
        by_chance = product('rkqd,rksd->rkqs', by_out, _at(v, j)) - _at(inner, i)[..., None]
        by_score = (chances * by_chance * q.shape[-1] ** -0.5).astype(q.dtype)
        of_q = product('rkqs,rksd->rkqd', by_score, _at(k, j))
        of_k = product('rkdq,rkqs->rkds', _at(q_across, i), by_score)
        of_v = product('rkdq,rkqs->rkds', _at(gradient_across, i), chances.astype(q.dtype))
        return (
            _put(grad_q, i, _at(grad_q, i) + of_q),
            _put(grad_k, j, _at(grad_k, j) + of_k),
            _put(grad_v, j, _at(grad_v, j) + of_v),
        )

    shapes = q.shape, *[(*x.shape[:-2], x.shape[-1], x.shape[-2]) for x in (k, v)]
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    of_q, of_k, of_v = jax.lax.fori_loop(0, count, body, start)
    grads = (of_q, _across(of_k), _across(of_v))
    return (*(g.astype(x.dtype) for g, x in zip(grads, (q, k, v))), None, None, None, None)


_attention.defvjp(_forward, _backward)


def _across(x: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))


def _at(x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x: jax.Array, i: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)
