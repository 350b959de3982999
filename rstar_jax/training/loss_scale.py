"""Loss scaling (arXiv 1710.03740): gradients that float16 would round to zero are kept.

The loss is multiplied by a factor before it is differentiated, and the gradients are divided by it
in float32. A step whose gradients are not finite changes nothing but the factor, which is halved;
after PATIENCE good steps in a row it is doubled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

START = 2.0**15
PATIENCE = 2000


class State(NamedTuple):
    """factor: f32[]. good: i32[], steps since it changed. inner: of the optimiser inside."""

    factor: jax.Array
    good: jax.Array
    inner: Any


def scaled(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` for gradients of the loss times State.factor."""

    def init(params):
        return State(jnp.float32(START), jnp.int32(0), inner.init(params))

    def update(grads, state, params=None, **more):
        grads = jax.tree.map(lambda g: g / state.factor, grads)
        finite = jnp.isfinite(optax.tree.norm(grads))
        # Zeros where not finite: NaN would come through what is multiplied by zero later.
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
        updates, moved = inner.update(grads, state.inner, params, **more)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        moved = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state.inner)
        good = jnp.where(finite, state.good + 1, 0)
        grown = jnp.where(good == PATIENCE, 2 * state.factor, state.factor)
        factor = jnp.where(finite, grown, state.factor / 2)
        return updates, State(factor, jnp.where(good == PATIENCE, 0, good), moved)

    return optax.GradientTransformationExtraArgs(init, update)
