"""Sampling tokens so that rounding seldom matters, by keys that depend only on what is sampled.

With all tokens' weights in a row and one uniform number for the place in it, an error in one weight
moves all behind it: where many unlikely tokens lie, most draws then hit another one (measured: one
of 600 tokens of a 135M model). Here each token is found by halving: a coin decides between the one
half of the vocabulary and the other, the next between the quarters of that half. An error moves
each coin by no more than itself, and the draw differs hardly more often than the distributions do.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

BLOCK = 128
WEIGHT_BITS = 30  # of f32 numbers from 0 to 1, in whose order they are when read as integers
COINS = 24  # of one token: 7 inside of a block, the others for up to 131,072 blocks


def key_of(*parts: Any) -> np.ndarray:
    """Returns u32[2], a hash of the parts: the key of one candidate, whoever decodes it when."""
    text = '/'.join(map(str, parts))
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32)


def uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns f32[B,COINS] in [0, 1), by each candidate's key (u32[B,2]) and a position (i32[B]).

    Neither the slot nor the time of decoding enters, so that scheduling changes no sample.
    """

    def draw(key, position):
        return jax.random.uniform(jax.random.fold_in(key, position), (COINS,))

    # Whatever a process has set as its default generator.
    with jax.threefry_partitionable(True):
        return jax.vmap(draw)(jax.random.wrap_key_data(keys, impl='threefry2x32'), positions)


@struct.dataclass
class Settings:
    """How a chunk is decoded; traced, so that changing a number compiles nothing anew.

    Attributes:
      temperature: f32[]; 0 takes the likeliest token.
      top_k: i32[], only the so many likeliest tokens; 0 for all.
      top_p: f32[], of these only the likeliest that together have this share; 1 for all.
      min_p: f32[], of these only the ones at least this times as likely as the likeliest; 0 for
        all. The order and the treatment of ties (kept) are those of transformers' generate.
      first_answer_only: bool[], candidates behind the first that ended in an answer are stopped.
      steps: i32[2], of a chunk: so many, or more, up to the second, while no slot is without work.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    first_answer_only: jax.Array
    steps: jax.Array

    @classmethod
    def of(cls, config, steps: tuple[int, int] = (1, 1)) -> 'Settings':
        """Returns the settings of a `search.Config`, for chunks of so many steps."""
        return cls(
            np.float32(config.temperature),
            np.int32(config.top_k),
            np.float32(config.top_p),
            np.float32(config.min_p),
            np.bool_(config.first_answer_only),
            np.array(steps, np.int32),
        )


def sample(logits: jax.Array, u: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Samples a block of 128 tokens by its weight, then a token in it.

    Gumbel noise would need V random numbers and logarithms a token.

    Args:
      logits: f32[V,B], V a multiple of 128 (pad with -inf).
      u: f32[B,COINS] in [0, 1).
      settings: which tokens may be drawn.

    Returns:
      Tokens i32[B], and the probabilities f32[B] with which they were drawn.
    """

    def draw(logits):
        logits = (logits - logits.max(axis=0)) / settings.temperature
        weights = _filter(jnp.exp(logits), settings)
        rows = jnp.arange(weights.shape[1])
        inner = BLOCK.bit_length() - 1
        block, total = _by_halves(_blocks(weights).sum(axis=1), u[:, inner:])
        inside = _blocks(weights)[block, :, rows].T
        token, _ = _by_halves(inside, u[:, :inner])
        share = inside[token, rows] / total
        return block * BLOCK + token, share

    def likeliest(logits):
        return jnp.argmax(logits, axis=0).astype(jnp.int32), jnp.ones(logits.shape[1])

    return jax.lax.cond(settings.temperature > 0, draw, likeliest, logits)


def _filter(weights: jax.Array, settings: Settings) -> jax.Array:
    """Takes their weight from the tokens that may not be drawn; the likeliest has weight 1."""

    def same(weights):
        return weights

    def top_k(weights):
        return _cut(weights, jnp.ones_like, settings.top_k.astype(jnp.float32))

    def top_p(weights):
        return _cut(weights, same, settings.top_p * _summed(weights))

    weights = jax.lax.cond(settings.top_k > 0, top_k, same, weights)
    weights = jax.lax.cond(settings.top_p < 1, top_p, same, weights)
    return jnp.where(weights >= settings.min_p, weights, 0.0)


def _cut(weights: jax.Array, amounts: Callable, wanted: jax.Array) -> jax.Array:
    """Leaves the fewest largest of f32[V,B] weights, and their equals, that have `wanted` together.

    The least of them is found bit by bit, which takes 30 looks at the weights; sorting them takes
    ten times as long (2 cores, V=151,936), and a sort is slow on accelerators, too.

    Args:
      amounts: what each of some weights counts.
      wanted: f32, for all columns or f32[B].
    """

    def settle(bit, least):
        trial = least | (1 << (WEIGHT_BITS - 1 - bit))
        at_least = weights >= jax.lax.bitcast_convert_type(trial, jnp.float32)
        have = _summed(jnp.where(at_least, amounts(weights), 0.0))
        return jnp.where(have >= wanted, trial, least)

    least = jnp.zeros(weights.shape[1], jnp.int32)
    least = jax.lax.fori_loop(0, WEIGHT_BITS, settle, least)
    least = jax.lax.bitcast_convert_type(least, jnp.float32)
    return jnp.where(weights >= least, weights, 0.0)


def _blocks(weights: jax.Array) -> jax.Array:
    """f32[N,BLOCK,B] of f32[V,B]."""
    return weights.reshape(-1, BLOCK, weights.shape[1])


def _summed(weights: jax.Array) -> jax.Array:
    """f32[B] of f32[V,B]; block by block, as compilers do no two additions of one sum at once."""
    return _blocks(weights).sum(axis=0).sum(axis=0)


def _by_halves(weights: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws an index of f32[W,B] by weight: i32[B]; and the sums of the weights, f32[B].

    One of f32[B,:] u decides between two halves, the next between the halves of the one taken, and
    so on. An index without weight is never taken, as u < 1.
    """
    width, count = weights.shape
    missing = (1 << (width - 1).bit_length()) - width
    sums = [jnp.pad(weights, ((0, missing), (0, 0)))]
    while (half := len(sums[-1]) // 2) > 0:
        sums.append(sums[-1][:half] + sums[-1][half:])
    column, index = jnp.arange(count), jnp.zeros(count, jnp.int32)
    for coin in range(len(sums) - 1):
        both, each = sums[-1 - coin], sums[-2 - coin]
        second = u[:, coin] * both[index, column] >= each[index, column]
        index += len(both) * second
    return index, sums[-1][0]
