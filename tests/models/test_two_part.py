"""Attention in parts, merged, against plain attention over all keys at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax.models import attention, two_part

ROWS, HEADS, KV_HEADS, DIM = 3, 6, 2, 5
SHARED, PATH, STEP = 4, 7, 6
PATHS = jnp.array([7, 0, 3])  # how much of each row's path there is; a part may have no key at all


@pytest.fixture(scope='module')
def tensors():
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    q = 3 * normal(ROWS, STEP, HEADS, DIM)
    stores = [
        (normal(rows, length, KV_HEADS, DIM), normal(rows, length, KV_HEADS, DIM))
        for rows, length in ((1, SHARED), (ROWS, PATH), (ROWS, STEP))
    ]
    return q, stores


def masks(window):
    """bool[rows, step, keys] of each store, from the positions in each row's text."""
    path = jnp.where(jnp.arange(PATH) < PATHS[:, None], SHARED + jnp.arange(PATH), -1)
    step = SHARED + PATHS[:, None] + jnp.arange(STEP)
    shared = jnp.broadcast_to(jnp.arange(SHARED), (ROWS, SHARED))
    found = []
    for places in (shared, path, step):
        seen = (places >= 0)[:, None] & (places[:, None] <= step[:, :, None])
        if window:
            seen &= places[:, None] > step[:, :, None] - window
        found.append(seen)
    return found


@pytest.mark.parametrize('window', [None, 4])
def test_parts_merge_to_plain_attention(tensors, window):
    q, stores = tensors
    whole = [
        jnp.concatenate([jnp.broadcast_to(x[i], (ROWS, *x[i].shape[1:])) for x in stores], axis=1)
        for i in range(2)
    ]
    expected = attention.attention(q, *whole, jnp.concatenate(masks(window), axis=-1))

    queries = two_part.by_key_head(q, KV_HEADS)
    group = HEADS // KV_HEADS
    parts = []
    for (k, v), mask in zip(stores, masks(window)):
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        bias = two_part.bias(jnp.repeat(mask, group, axis=1))
        if k.shape[0] == 1:
            parts.append(two_part.attend_shared(queries, k, v, bias))
        else:
            parts.append(two_part.attend(queries, k, v, bias[:, None]))
    ours = two_part.by_position(two_part.merge(*parts), STEP)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_a_shared_store_without_mask_is_seen_whole(tensors):
    q, ((k, v), *_) = tensors
    everything = jnp.ones((ROWS, STEP, SHARED), bool)
    expected = attention.attention(
        q, *(jnp.broadcast_to(x, (ROWS, *x.shape[1:])) for x in (k, v)), everything
    )
    queries = two_part.by_key_head(q, KV_HEADS)
    part = two_part.attend_shared(queries, k.swapaxes(1, 2), v.swapaxes(1, 2), None)
    ours = two_part.by_position(two_part.merge(part), STEP)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
