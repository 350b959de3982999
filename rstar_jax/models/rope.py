"""Rotary position embedding (Su et al. 2021) and the scalings that the supported families use."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax.models.config import Config


def frequencies(config: Config, long: bool = False) -> np.ndarray:
    """Radians per position of each rotated pair, f32[R/2]; `long`: longrope's long factors."""
    dim, rope = config.rotary_dim, config.rope
    power = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    base = np.float32(config.rope_theta) ** power
    if rope.kind == 'longrope':
        factors = np.asarray(rope.long if long else rope.short, np.float32)
        return np.float32(1) / (factors * base)
    frequency = np.float32(1) / base
    if rope.kind == 'linear':
        return frequency / np.float32(rope.factor)
    if rope.kind == 'llama3':
        return _llama3(frequency, config)
    if rope.kind == 'yarn':
        return _yarn(frequency, config)
    return frequency


def _llama3(frequency: np.ndarray, config: Config) -> np.ndarray:
    """Waves longer than the pre-training context are stretched by factor, short ones are kept."""
    rope = config.rope
    turns = np.float32(rope.original) * frequency / np.float32(2 * math.pi)
    smooth = (turns - np.float32(rope.low)) / np.float32(rope.high - rope.low)
    smooth = np.clip(smooth, 0, 1).astype(np.float32)
    return (1 - smooth) * frequency / np.float32(rope.factor) + smooth * frequency


def _yarn(frequency: np.ndarray, config: Config) -> np.ndarray:
    """Stretched by factor as in llama3, but linearly from pair to pair (arXiv 2309.00071)."""
    rope, dim = config.rope, config.rotary_dim

    def pair(turns: float) -> float:
        """Which one turns so many times in the pre-training context."""
        waves = math.log(rope.original / (2 * math.pi * turns)) / math.log(config.rope_theta)
        return dim / 2 * waves

    first, last = max(math.floor(pair(rope.high)), 0), min(math.ceil(pair(rope.low)), dim - 1)
    ramp = np.clip((np.arange(dim // 2) - first) / (last - first or 0.001), 0, 1)
    ramp = ramp.astype(np.float32)
    return (1 - ramp) * frequency + ramp * frequency / np.float32(rope.factor)


def attention_factor(config: Config) -> float:
    """What cos and sin are multiplied with: 1, but for longrope and yarn (their papers' scales)."""
    rope = config.rope
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == 'yarn':
        return 1 + 0.1 * math.log(max(1, rope.factor))
    if rope.kind != 'longrope':
        return 1.0
    factor = rope.factor or config.max_length / rope.original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original))


def for_texts_of(config: Config, tokens: int) -> Config:
    """`config` with one choice of longrope's factors for every text of up to so many tokens.

    The long factors if such a text is longer than `original`, else the short ones (vLLM's rule):
    keys that were stored when a text was short stay right when it has grown.
    """
    rope = config.rope
    factors = rope.long if tokens > rope.original else rope.short
    return config.replace(rope=dataclasses.replace(rope, short=factors, long=factors))


def angles(
    config: Config, positions: jax.Array, length: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin f32[..., T, R/2] of positions i32[..., T].

    length: i32[...] length of the text for which longrope chooses its factors; None = the last
    position of each row + 1. A cache must be filled and read with the same choice: `for_texts_of`.
    """
    frequency = jnp.asarray(frequencies(config))
    if config.rope.kind == 'longrope':
        if length is None:
            length = positions.max(axis=-1) + 1
        is_long = jnp.asarray(length)[..., None, None] > config.rope.original
        frequency = jnp.where(is_long, jnp.asarray(frequencies(config, long=True)), frequency)
    angle = positions[..., None].astype(jnp.float32) * frequency
    scale = attention_factor(config)
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [..., T, H, d]: dimension i pairs with i + R/2; those from R on stay. In float32.

    cos, sin: f32[..., T, R/2].
    """
    half = cos.shape[-1]
    cos, sin = cos[..., None, :], sin[..., None, :]
    wide = x.astype(jnp.float32)
    first, second, rest = jnp.split(wide, [half, 2 * half], axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
