"""The scalar head of the process preference model, and how its value is squashed.

The paper squashes by tanh in training and in use; the released code trains on the raw value and
uses tanh(r / 5).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

SQUASHES: dict[str, Callable[[jax.Array], jax.Array]] = {
    'tanh': jnp.tanh,
    'tanh5': lambda value: jnp.tanh(value / 5),
    'none': lambda value: value,
}


def init_value_head(dim: int, key: jax.Array) -> dict[str, jax.Array]:
    """weight f32[1, D] ~ N(5e-7, 1e-6), bias f32[1] = 1e-6, as in the released code."""
    weight = 5e-7 + 1e-6 * jax.random.normal(key, (1, dim), jnp.float32)
    return {'weight': weight, 'bias': jnp.full((1,), 1e-6, jnp.float32)}


def value(
    head: dict[str, jax.Array],
    hidden: jax.Array,
    *,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Raw value f32[...] of hidden states [..., D], in float32.

    dropout: share of the hidden state's entries set to 0 (the rest scaled up); needs `key`.
    """
    hidden = hidden.astype(jnp.float32)
    if dropout and key is not None:
        kept = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
        hidden = jnp.where(kept, hidden / (1 - dropout), 0)
    weight = head['weight'].astype(jnp.float32)
    # By default accelerators round the factors of float32 products.
    score = jnp.einsum('...d,od->...o', hidden, weight, precision='highest')[..., 0]
    return score + head['bias'].astype(jnp.float32)


def squash(name: str, value: jax.Array) -> jax.Array:
    """The value as it is used: into [-1, 1] for 'tanh' and 'tanh5'."""
    return SQUASHES[name](value)
