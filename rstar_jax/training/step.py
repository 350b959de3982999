"""What runs on the devices: gradients of a micro batch, AdamW, evaluation.

Parameters, gradients and optimiser state are float32 and cut over the mesh by models.sharding; the
network itself runs in `settings.dtype`. With `settings.lora` they are those of what is trained; the
frozen weights (training.lora) lie beside them in the network's dtype and are read alone.
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
from rstar_jax.models import sharding, weights
from rstar_jax.training import lora, losses


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

    `update` takes `frozen` besides, the weights that are not trained: see lora.split.
    """
    clip = [optax.clip_by_global_norm(settings.grad_clip)] if settings.grad_clip else []
    return optax.chain(
        *clip,
        optax.scale_by_adam(),
        optax.add_decayed_weights(settings.weight_decay, _matrices),
        optax.scale_by_learning_rate(schedule(settings, steps)),
        _at_rates(settings, np.array(new_rows, np.int32)),
    )


def _matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _at_rates(settings, new_rows: np.ndarray) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by their learning rate."""

    def update(updates, state, params, *, frozen):
        scaled = jax.tree.map(lambda x: settings.learning_rate * x, updates)
        for name in ('embed', 'output') if len(new_rows) else ():
            if name in updates:
                table = (frozen or params)[name]['weight'].astype(jnp.float32)
                rate = settings.marks_rate * jnp.sqrt(jnp.mean(jnp.square(table)))
                rates = {'new': rate}
                if not frozen:
                    rates = jnp.full(table.shape[0], settings.learning_rate, table.dtype)
                    rates = {'weight': rates.at[new_rows].set(rate)[:, None]}
                scaled[name] = jax.tree.map(jnp.multiply, rates, updates[name])
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


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
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._config, self._settings, self._new_rows = config, settings, new_rows
        self._frozen: dict[str, Any] = {}  # weights that are not trained, all of them or none
        self._loss = loss
        self._optimiser = optimiser(settings, steps, new_rows)
        self._schedule = schedule(settings, steps)
        self._ready: dict[tuple, Any] = {}
        self._dtype = compute_dtype(settings)

    def learning_rate(self, step: int) -> float:
        return self._settings.learning_rate * float(self._schedule(step))

    def init(self, params, release: bool = False) -> dict[str, Any]:
        """The state {params, optimiser} before the first step, float32.

        With LoRA: of what is trained; this object keeps the frozen weights.
        release: takes `params` over, array by array, instead of copying them.
        """
        rank, frozen = self._settings.lora, {}
        if rank:
            frozen, params = lora.split(params, rank, self._new_rows, self._settings.seed)
        self._frozen = self._own(frozen, self._dtype, release)
        params = self._own(params, jnp.dtype(jnp.float32), release)
        moments = jax.eval_shape(self._optimiser.init, params)
        # Moments lie where their parameters lie, counts on all devices.
        where = optax.tree_utils.tree_map_params(
            self._optimiser,
            lambda _, p: p.sharding,
            moments,
            params,
            transform_non_params=lambda _: self._everywhere,
        )
        start = jax.jit(self._optimiser.init, out_shardings=where)
        return {'params': params, 'optimiser': start(params)}

    def _own(self, params, dtype: jnp.dtype, release: bool):
        """`params` in `dtype`, laid out over the mesh, in arrays that nobody else holds."""
        where = sharding.shardings(params, self.mesh, self._config)
        return jax.tree.map(functools.partial(_own, dtype, release), params, where)

    def whole(self, params):
        """The model's float32 parameters out of a state's; ends the use of this object."""
        if not self._frozen:
            return params
        frozen = weights.flatten(self._frozen)
        self._frozen = {}
        return lora.merge(frozen, params)

    def step(self, state, batch, scale: float, number: Sequence[int]):
        """A whole step of one micro batch -> (state, metric sums, norm of the gradients).

        As `accumulate` and `update` together, without an array for the sum of gradients.
        """

        def function(state, batch, scale, number, frozen):
            grads, metrics = self._gradients(state['params'], frozen, batch, scale, number)
            return self._updated(state, grads, frozen), metrics, optax.global_norm(grads)

        # Donated: nobody holds the state before this step.
        args = (state, self._place(batch), *self._whole(scale, number))
        return self._run('step', function, args, (0,))

    def zeros(self, params):
        """Gradients before the first micro batch of a step."""
        return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype, device=p.sharding), params)

    def accumulate(self, params, grads, batch, scale: float, number: Sequence[int]):
        """Adds the gradients of scale * (loss of one micro batch) -> (grads, metric sums).

        number: of the step and of its micro batch; with the seed it gives the dropout.
        """

        def function(params, grads, batch, scale, number, frozen):
            new, metrics = self._gradients(params, frozen, batch, scale, number)
            return jax.tree.map(jnp.add, grads, new), metrics

        # Donated: the caller goes on with the sum alone.
        args = (params, grads, self._place(batch), *self._whole(scale, number))
        return self._run('accumulate', function, args, (1,))

    def evaluate(self, params, batch, loss: str | None = None) -> dict[str, jax.Array]:
        """Sums of a loss and its metrics over one micro batch, without dropout.

        loss: None = the training's own.
        """
        loss = loss or self._loss

        def function(params, batch, frozen):
            value, metrics = self._value(params, frozen, batch, None, loss)
            return {'loss': value} | metrics

        return self._run(f'evaluate {loss}', function, (params, self._place(batch)), ())

    def update(self, state, grads) -> tuple[dict[str, Any], jax.Array]:
        """One AdamW step -> (state, norm of the gradients before clipping)."""

        def function(state, grads, frozen):
            return self._updated(state, grads, frozen), optax.global_norm(grads)

        # Donated: nobody holds the state before this step.
        return self._run('update', function, (state, grads), (0,))

    def _gradients(self, params, frozen, batch, scale, number):
        key = jax.random.key(self._settings.seed)
        for n in number:
            key = jax.random.fold_in(key, n)

        def loss(params):
            value, metrics = self._value(params, frozen, batch, key, self._loss)
            return scale * value, {'loss': value} | metrics

        return jax.grad(loss, has_aux=True)(params)

    def _updated(self, state, grads, frozen):
        moments, params = state['optimiser'], state['params']
        updates, moments = self._optimiser.update(grads, moments, params, frozen=frozen)
        params = optax.apply_updates(params, updates)
        return {'params': params, 'optimiser': moments}

    def _value(self, params, frozen, batch, key, loss: str):
        value_head = params.get('value_head')
        params = jax.tree.map(lambda p: p.astype(self._dtype), params)
        if value_head is not None:
            params['value_head'] = value_head
        params = lora.joined(frozen, params)
        return losses.BY_NAME[loss](self._config, params, batch, key, self._settings)

    def _place(self, batch):
        rows = NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))
        return {
            name: jax.make_array_from_callback(value.shape, rows, lambda i, v=value: v[i])
            for name, value in batch.items()
        }

    def _whole(self, scale: float, number: Sequence[int]) -> tuple[jax.Array, ...]:
        """f32[] and u32[2] on all devices of all processes."""
        arrays = np.array(scale, np.float32), np.array(number, np.uint32)
        return tuple(
            jax.make_array_from_callback(a.shape, self._everywhere, lambda i, a=a: a[i])
            for a in arrays
        )

    def _run(self, name: str, function, args, donated):
        args = (*args, self._frozen)
        batch = next((a for a in args if isinstance(a, dict) and 'tokens' in a), None)
        key = name, None if batch is None else batch['tokens'].shape
        if key not in self._ready:
            start = time.monotonic()
            where = jax.tree.map(lambda x: x.sharding, args)
            # What is donated comes back in the same place, metrics go everywhere.
            everywhere = self._everywhere
            outs = {
                'step': lambda: (where[0], everywhere, everywhere),
                'accumulate': lambda: (where[1], everywhere),
                'update': lambda: (where[0], everywhere),
            }
            out = outs[name]() if name in outs else everywhere
            jitted = jax.jit(function, donate_argnums=donated, out_shardings=out)
            with jax.set_mesh(self.mesh):
                self._ready[key] = jitted.lower(*args).compile()
            self.count += 1
            self.seconds += time.monotonic() - start
        return self._ready[key](*args)


def _own(dtype: jnp.dtype, release: bool, leaf, where: NamedSharding) -> jax.Array:
    """`leaf` in `dtype` (integers stay) at `where`: an array of our own, which may be donated."""
    dtype = dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    held = isinstance(leaf, jax.Array)
    there = held and leaf.dtype == dtype and leaf.sharding.is_equivalent_to(where, leaf.ndim)
    if release and there:
        return leaf
    if held and (where.is_fully_addressable or not leaf.is_fully_addressable):
        made = jax.device_put(jnp.array(leaf, dtype, copy=True), where)
    else:  # each process has the same, such as a new head
        made = jax.make_array_from_callback(
            leaf.shape, where, lambda index: np.array(leaf[index], dtype)
        )
    if release and held:
        made.block_until_ready()
        leaf.delete()
    return made


def compute_dtype(settings) -> Any:
    """The dtype the network runs in: settings.dtype, or what the device is fast at."""
    if settings.dtype:
        return jnp.dtype(settings.dtype)
    return jnp.dtype('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
