"""What runs on the devices: gradients of a micro batch, AdamW, evaluation.

Parameters, gradients and optimiser state are float32 and cut over the mesh by models.sharding; the
network itself runs in `settings.dtype`.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rstar_jax.errors import UserError
from rstar_jax.models import sharding
from rstar_jax.training import losses


def schedule(settings, steps: int) -> optax.Schedule:
    """What rates are multiplied by at each step: 1 to 0 over `steps`, without a warm-up."""
    if settings.schedule == 'linear':
        return optax.linear_schedule(1, 0, steps)
    if settings.schedule == 'cosine':
        return optax.cosine_decay_schedule(1, steps)
    raise UserError(f'schedule={settings.schedule!r}: expected linear or cosine')


def optimiser(settings, steps: int, new_rows: Sequence[int] = ()) -> optax.GradientTransformation:
    """AdamW after clipping. Weight decay leaves out vectors: biases and norms.

    new_rows: rows of the embedding and of the output that learn at a rate of their own,
    settings.marks_rate times the table's root mean square. AdamW moves a weight by no more than its
    rate in a step, so at the rate of a fine-tuning a token without a history would need thousands
    of them.
    """
    clip = [optax.clip_by_global_norm(settings.grad_clip)] if settings.grad_clip else []
    return optax.chain(
        *clip,
        optax.scale_by_adam(),
        optax.add_decayed_weights(settings.weight_decay, _matrices),
        optax.scale_by_learning_rate(schedule(settings, steps)),
        optax.stateless(functools.partial(_at_rates, settings, np.array(new_rows, np.int32))),
    )


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _at_rates(settings, new_rows: np.ndarray, updates, params):
    """Multiplies updates by their learning rate."""
    scaled = jax.tree.map(lambda update: settings.learning_rate * update, updates)
    for name in ('embed', 'output') if len(new_rows) else ():
        if name in updates:
            table = updates[name]['weight']
            size = jnp.sqrt(jnp.mean(jnp.square(params[name]['weight'])))
            rates = jnp.full(table.shape[0], settings.learning_rate, table.dtype)
            rates = rates.at[new_rows].set(settings.marks_rate * size)
            scaled[name] = {'weight': rates[:, None] * table}
    return scaled


class Compiled:
    """The compiled functions of one training, a micro batch's ones by its shape.

    Attributes:
      count: number of compilations so far.
      seconds: time they took.
    """

    def __init__(
        self, config, settings, loss: str, mesh: Mesh, steps: int, new_rows: Sequence[int] = ()
    ):
        self.mesh, self.count, self.seconds = mesh, 0, 0.0
        self._config, self._settings = config, settings
        self._loss = loss
        self._optimiser = optimiser(settings, steps, new_rows)
        self._schedule = schedule(settings, steps)
        self._ready: dict[tuple, Any] = {}
        self._dtype = compute_dtype(settings)

    def learning_rate(self, step: int) -> float:
        return self._settings.learning_rate * float(self._schedule(step))

    def init(self, params) -> dict[str, Any]:
        """The state {params, optimiser} before the first step; `params` are copied to float32."""
        params = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        params = sharding.shard(params, self.mesh, self._config)
        moments = self._optimiser.init(params)
        # Moments lie where their parameters lie, counts on all devices.
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        where = optax.tree_utils.tree_map_params(
            self._optimiser,
            lambda _, p: p.sharding,
            moments,
            params,
            transform_non_params=lambda _: everywhere,
        )
        return {'params': params, 'optimiser': jax.device_put(moments, where)}

    def step(self, state, batch, scale: float, key):
        """A whole step of one micro batch -> (state, metric sums, norm of the gradients).

        As `accumulate` and `update` together, without an array for the sum of gradients.
        """

        def function(state, batch, scale, key):
            grads, metrics = self._gradients(state['params'], batch, scale, key)
            return self._updated(state, grads), metrics, optax.global_norm(grads)

        batch, scale = self._place(batch), jnp.float32(scale)
        # Donated: nobody holds the state before this step.
        return self._run('step', function, (state, batch, scale, key), (0,))

    def zeros(self, params):
        """Gradients before the first micro batch of a step."""
        return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype, device=p.sharding), params)

    def accumulate(self, params, grads, batch, scale: float, key):
        """Adds the gradients of scale * (loss of one micro batch) -> (grads, metric sums)."""

        def function(params, grads, batch, scale, key):
            new, metrics = self._gradients(params, batch, scale, key)
            return jax.tree.map(jnp.add, grads, new), metrics

        batch, scale = self._place(batch), jnp.float32(scale)
        # Donated: the caller goes on with the sum alone.
        return self._run('accumulate', function, (params, grads, batch, scale, key), (1,))

    def evaluate(self, params, batch, loss: str | None = None) -> dict[str, jax.Array]:
        """Sums of a loss and its metrics over one micro batch, without dropout.

        loss: None = the training's own.
        """
        loss = loss or self._loss

        def function(params, batch):
            value, metrics = self._value(params, batch, None, loss)
            return {'loss': value} | metrics

        return self._run(f'evaluate {loss}', function, (params, self._place(batch)), ())

    def update(self, state, grads) -> tuple[dict[str, Any], jax.Array]:
        """One AdamW step -> (state, norm of the gradients before clipping)."""

        def function(state, grads):
            return self._updated(state, grads), optax.global_norm(grads)

        # Donated: nobody holds the state before this step.
        return self._run('update', function, (state, grads), (0,))

    def _gradients(self, params, batch, scale, key):
        def loss(params):
            value, metrics = self._value(params, batch, key, self._loss)
            return scale * value, {'loss': value} | metrics

        return jax.grad(loss, has_aux=True)(params)

    def _updated(self, state, grads):
        updates, moments = self._optimiser.update(grads, state['optimiser'], state['params'])
        params = optax.apply_updates(state['params'], updates)
        return {'params': params, 'optimiser': moments}

    def _value(self, params, batch, key, loss: str):
        value_head = params.get('value_head')
        params = jax.tree.map(lambda p: p.astype(self._dtype), params)
        if value_head is not None:
            params['value_head'] = value_head
        return losses.BY_NAME[loss](self._config, params, batch, key, self._settings)

    def _place(self, batch):
        rows = NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))
        return {
            name: jax.make_array_from_callback(value.shape, rows, lambda i, v=value: v[i])
            for name, value in batch.items()
        }

    def _run(self, name: str, function, args, donated):
        batch = next((a for a in args if isinstance(a, dict) and 'tokens' in a), None)
        key = name, None if batch is None else batch['tokens'].shape
        if key not in self._ready:
            start = time.monotonic()
            where = jax.tree.map(lambda x: x.sharding, args)
            # What is donated comes back in the same place.
            outs = {
                'step': lambda: (where[0], None, None),
                'accumulate': lambda: (where[1], None),
                'update': lambda: (where[0], None),
            }
            out = outs[name]() if name in outs else None
            jitted = jax.jit(function, donate_argnums=donated, out_shardings=out)
            with jax.set_mesh(self.mesh):
                self._ready[key] = jitted.lower(*args).compile()
            self.count += 1
            self.seconds += time.monotonic() - start
        return self._ready[key](*args)


def compute_dtype(settings) -> Any:
    """The dtype the network runs in: settings.dtype, or what the device is fast at."""
    if settings.dtype:
        return jnp.dtype(settings.dtype)
    return jnp.dtype('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
