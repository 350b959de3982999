"""Sampling tokens: one uniform number each, keys that depend on nothing but what is sampled."""

import jax
import jax.numpy as jnp

BLOCK = 128


def uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns f32[B] in [0, 1): the draw of each candidate's key (u32[B,2]) at a position (i32[B]).

    Neither the slot nor the time of decoding enters, so that scheduling changes no sample.
    """

    def draw(key, position):
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(draw)(jax.random.wrap_key_data(keys), positions)


def sample(logits: jax.Array, u: jax.Array, temperature: jax.Array) -> jax.Array:
    """Samples by inverse CDF in two levels: the block of 128 tokens, then the token in it.

    Gumbel noise would need V random numbers and logarithms a token; this needs one number.

    Args:
      logits: f32[B,V], V a multiple of 128 (pad with -inf).
      u: f32[B] in [0, 1).
      temperature: f32[]; 0 takes the likeliest token.

    Returns:
      i32[B].
    """

    def draw(logits):
        weights = jnp.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
        blocks = weights.reshape(*weights.shape[:-1], -1, BLOCK)
        upto = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
        target = u * upto[:, -1]
        block = _first_above(upto, target)
        before = jnp.where(
            block > 0, jnp.take_along_axis(upto, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0
        )
        inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
        token = _first_above(jnp.cumsum(inside, axis=-1), target - before)
        # Rounding may carry the target past the last token of any weight.
        last = BLOCK - 1 - jnp.argmax(inside[:, ::-1] > 0, axis=-1)
        return (block * BLOCK + jnp.minimum(token, last)).astype(jnp.int32)

    def likeliest(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, draw, likeliest, logits)


def _first_above(upto: jax.Array, target: jax.Array) -> jax.Array:
    """Returns for each row the first index whose cumulated weight exceeds the target."""
    index = (upto <= target[:, None]).sum(axis=-1)
    return jnp.minimum(index, upto.shape[-1] - 1)
