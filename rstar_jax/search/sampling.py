"""Sampling tokens: one uniform number each, keys that depend on nothing but what is sampled."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

BLOCK = 128


def uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns f32[B] in [0, 1): the draw of each candidate's key (u32[B,2]) at a position (i32[B]).

    Neither the slot nor the time of decoding enters, so that scheduling changes no sample.
    """

    def draw(key, position):
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(draw)(jax.random.wrap_key_data(keys), positions)


@struct.dataclass
class Settings:
    """How tokens are drawn; traced, so that changing a number compiles nothing anew.

    Attributes:
      temperature: f32[]; 0 takes the likeliest token.
      top_k: i32[], only the so many likeliest tokens; 0 for all.
      top_p: f32[], of these only the likeliest that together have this share; 1 for all.
      min_p: f32[], of these only the ones at least this times as likely as the likeliest; 0 for
        all. The order and the treatment of ties (kept) are those of transformers' generate.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array

    @classmethod
    def of(cls, config) -> 'Settings':
        """Returns the settings of a `search.Config`."""
        return cls(
            np.float32(config.temperature),
            np.int32(config.top_k),
            np.float32(config.top_p),
            np.float32(config.min_p),
        )


def sample(logits: jax.Array, u: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Samples by inverse CDF in two levels: the block of 128 tokens, then the token in it.

    Gumbel noise would need V random numbers and logarithms a token; this needs one number.

    Args:
      logits: f32[B,V], V a multiple of 128 (pad with -inf).
      u: f32[B] in [0, 1).
      settings: which tokens may be drawn.

    Returns:
      Tokens i32[B], and the probabilities f32[B] with which they were drawn.
    """

    def draw(logits):
        logits = (logits - logits.max(axis=-1, keepdims=True)) / settings.temperature
        weights = _filter(jnp.exp(logits), settings)
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
        token = jnp.minimum(token, last)
        share = jnp.take_along_axis(inside, token[:, None], axis=1)[:, 0] / upto[:, -1]
        return (block * BLOCK + token).astype(jnp.int32), share

    def likeliest(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.ones(logits.shape[0])

    return jax.lax.cond(settings.temperature > 0, draw, likeliest, logits)


def _filter(weights: jax.Array, settings: Settings) -> jax.Array:
    """Takes their weight from the tokens that may not be drawn; the likeliest has weight 1."""

    def ranked(weights):
        order = -jnp.sort(-weights, axis=-1)
        allowed = jnp.where(settings.top_k > 0, settings.top_k, order.shape[-1])
        inside = jnp.arange(order.shape[-1]) < allowed
        share = jnp.cumsum(jnp.where(inside, order, 0.0), axis=-1)
        inside &= (share - order < settings.top_p * share[:, -1:]) | (settings.top_p >= 1)
        least = jnp.where(inside, order, jnp.inf).min(axis=-1, keepdims=True)
        return jnp.where(weights >= least, weights, 0.0)

    needed = (settings.top_k > 0) | (settings.top_p < 1)
    weights = jax.lax.cond(needed, ranked, lambda weights: weights, weights)
    return jnp.where(weights >= settings.min_p, weights, 0.0)


def _first_above(upto: jax.Array, target: jax.Array) -> jax.Array:
    """Returns for each row the first index whose cumulated weight exceeds the target."""
    index = (upto <= target[:, None]).sum(axis=-1)
    return jnp.minimum(index, upto.shape[-1] - 1)
