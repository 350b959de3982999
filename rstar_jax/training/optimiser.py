"""AdamW over parameters that may be stacked, with rates of their own for new tokens' rows."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rstar_jax.training import lora


def decay(schedule: str, done):
    """What rates are multiplied by: from 1 to 0, without a warm-up; done: share of all steps."""
    return (1 + jnp.cos(jnp.pi * done)) / 2 if schedule == 'cosine' else 1 - done


def learning_rate(settings, step: int, steps: int) -> float:
    """The rate of the step behind `step` of `steps`."""
    return settings.learning_rate * float(decay(settings.schedule, min(step / steps, 1)))


class Pace(NamedTuple):
    """How far a training is, and how fast: part of its state, so that programs fit any training.

    Attributes:
      count: i32, steps done.
      steps: f32, all steps.
      rate: f32, the learning rate before decay.
    """

    count: jax.Array
    steps: jax.Array
    rate: jax.Array


def optimiser(settings, steps: int, new_rows: Sequence[int] = ()) -> optax.GradientTransformation:
    """AdamW after clipping. Weight decay leaves out vectors: biases and norms.

    new_rows: rows of the embedding and of the output that learn at a rate of their own,
    settings.marks_rate times the table's root mean square. AdamW moves a weight by no more than its
    rate in a step, so at the rate of a fine-tuning a token without a history would need thousands
    of them.

    `update` takes `frozen` besides, the weights that are not trained: see lora.split.
    """
    clip = [_clip(settings.grad_clip)] if settings.grad_clip else []
    return optax.chain(
        *clip,
        _adam(jnp.dtype(settings.moments)),
        optax.add_decayed_weights(settings.weight_decay, _matrices),
        _at_rates(settings, steps, np.array(new_rows, np.int32)),
    )


def _adam(dtype: jnp.dtype, b1=0.9, b2=0.999, eps=1e-8) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) with its first moment in `dtype`.

    As optax.scale_by_adam, but the update is that of the moment as it is stored. Made of the
    unrounded one it would need the old moments beside the new ones: a copy of all of them.
    """

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(dtype), state.mu, grads)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * jnp.square(g), state.nu, grads)
        first, second = 1 - b1**count, 1 - b2**count

        def step(m, n):
            return m.astype(n.dtype) / first / (jnp.sqrt(n / second) + eps)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    def init(params):
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)
        return optax.ScaleByAdamState(jnp.int32(0), mu, jax.tree.map(jnp.zeros_like, params))

    return optax.GradientTransformation(init, update)


def _clip(most: float) -> optax.GradientTransformation:
    """Scales gradients whose global norm is above `most` down to it.

    As optax.clip_by_global_norm, but by one factor: divided by the norm, the gradients would be a
    second time in memory.
    """

    def update(grads, state, params=None):
        factor = jnp.minimum(1.0, most / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _matrices(params):
    def is_matrix(path, leaf):
        stacked = jax.tree_util.DictKey('layers') in path  # see training.layers
        return leaf.ndim - stacked > 1

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _at_rates(settings, steps: int, new_rows: np.ndarray) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by their learning rate, and turns them downhill."""

    def init(params):
        return Pace(jnp.int32(0), jnp.float32(steps), jnp.float32(settings.learning_rate))

    def update(updates, pace, params, *, frozen):
        factor = -decay(settings.schedule, jnp.minimum(pace.count / pace.steps, 1))
        updates = jax.tree.map(lambda x: factor * x, updates)
        scaled = jax.tree.map(lambda x: pace.rate * x, updates)
        for name in ('embed', 'output') if len(new_rows) else ():
            if name in updates:
                if frozen:
                    rates = {'new': settings.marks_rate * frozen[name]['rms']}
                else:
                    table = params[name]['weight']
                    rates = jnp.full(table.shape[0], pace.rate)
                    rates = rates.at[new_rows].set(settings.marks_rate * lora.rms(table))
                    rates = {'weight': rates[:, None]}
                scaled[name] = jax.tree.map(jnp.multiply, rates, updates[name])
        return scaled, pace._replace(count=optax.safe_increment(pace.count))

    return optax.GradientTransformationExtraArgs(init, update)
