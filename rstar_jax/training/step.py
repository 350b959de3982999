"""What runs on the devices: gradients of a micro batch, updates, evaluation.

Parameters, gradients and optimiser state are float32 and cut over the mesh by models.sharding; the
network itself runs in `settings.dtype`. With `settings.lora` they are those of what is trained; the
frozen weights (training.lora) lie beside them in the network's dtype and are read alone.
"""

import concurrent.futures
import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rstar_jax import parallel
from rstar_jax.job import hosts
from rstar_jax.models import rope, sharding, weights
from rstar_jax.models.trained import placed
from rstar_jax.parallel.memory import GIB
from rstar_jax.settings.errors import UserError
from rstar_jax.training import (
    attention,
    checkpoints,
    kernels,
    layers,
    lora,
    loss_scale,
    losses,
    recompute,
)
from rstar_jax.training.dtypes import compute_dtype
from rstar_jax.training.optimiser import decay, optimiser

# Results of the functions whose first argument gives its memory to the first of them.
RESULTS = {'step': 3, 'accumulate': 2, 'update': 2}
MIB = 2**20

Batch = Mapping[str, np.ndarray]


class Compiled:
    """The compiled functions of one training, a micro batch's ones by its shape.

    Attributes:
      count: number of compilations so far.
      seconds: time they took.
      scales: whether the loss is scaled (float16): a step whose gradients are not finite is left
        out then.
    """

    def __init__(
        self,
        config,
        settings,
        loss: str,
        mesh: Mesh,
        steps: int,
        new_rows: Sequence[int] = (),
        memory: int | None = None,
    ):
        """memory: bytes of a device; None = what the devices say. All processes call this."""
        self.mesh, self.count, self.seconds = mesh, 0, 0.0
        self._memory = _least(parallel.device_bytes(mesh)) if memory is None else memory
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
        # What a text gives must not depend on the length of those that it is packed with.
        self._config = rope.for_texts_of(config, settings.length)
        self._settings, self._new_rows = settings, new_rows
        self._frozen: dict[str, Any] = {}  # weights that are not trained, all of them or none
        self._loss = loss
        self._dtype = compute_dtype(settings)
        self.scales = self._dtype == jnp.float16  # the loss, see loss_scale
        self._optimiser = optimiser(settings, steps, new_rows)
        if self.scales:
            self._optimiser = loss_scale.scaled(self._optimiser)
        self._steps = steps
        self._ready: dict[tuple, Any] = {}

    def learning_rate(self, step: int) -> float:
        done = min(step / self._steps, 1)
        return self._settings.learning_rate * float(decay(self._settings.schedule, done))

    def init(self, params, release: bool = False) -> dict[str, Any]:
        """The state {params, optimiser} before the first step, float32; params as of layers.stack.

        With LoRA: of what is trained; this object keeps the frozen weights.
        release: takes `params` over, array by array, instead of copying them.
        """
        rank, frozen = self._settings.lora, {}
        if rank:
            frozen, params = lora.split(params, rank, self._new_rows, self._settings.seed)
        self._frozen = self._own(frozen, self._dtype, release)
        if rank:
            need = merging(self._frozen) - parallel.bytes_on_a_device(self._frozen)
            self.check_room(
                'the model that LoRA is merged into at the end, in float32, takes another',
                need,
                'use more devices',
            )
        params = self._own(params, jnp.dtype(jnp.float32), release)
        moments = self.moments(params)
        self.check_room('the moments of AdamW take', parallel.bytes_on_a_device(moments))
        where = jax.tree.map(lambda x: x.sharding, moments)
        start = jax.jit(self._optimiser.init, out_shardings=where)
        return {'params': params, 'optimiser': start(params)}

    def moments(self, params):
        """The optimiser's state for `params` (arrays or shapes), as shapes."""
        shapes = jax.eval_shape(self._optimiser.init, params)
        # Moments lie where their parameters lie, counts on all devices.
        where = optax.tree_utils.tree_map_params(
            self._optimiser,
            lambda _, p: p.sharding,
            shapes,
            params,
            transform_non_params=lambda _: self._everywhere,
        )
        return jax.tree.map(placed, shapes, where)

    def held(self, state) -> int:
        """Bytes on a device of what is there all the time."""
        return parallel.bytes_on_a_device((state, self._frozen))

    def free(self) -> int | None:
        """Bytes that are free on the device that has the fewest, of all processes, which call this.

        None where a device does not say what it has, as with XLA_PYTHON_CLIENT_ALLOCATOR=platform.
        """
        return _least(parallel.free_bytes(self.mesh)) if self._memory else None

    def check_room(
        self,
        what: str,
        need: int,
        remedy: str = 'lower length or micro_batch, train with lora=16, or use more devices',
    ) -> None:
        """Raises UserError, in all processes, where a device has less than `need` bytes free."""
        free = self.free()
        if free is not None and need > free:
            raise UserError(
                f'training: {what} {need / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free on a '
                f'device: {remedy}'
            )

    def _own(self, params, dtype: jnp.dtype, release: bool):
        """`params` in `dtype`, stacked and laid out over the mesh, in arrays that are our own."""
        where = sharding.shardings(params, self.mesh, self._config)
        owned = jax.tree.map(functools.partial(_own, dtype, release), params, where)
        return layers.stack(owned, release=True)

    def whole(self, params):
        """The model's float32 parameters of a state's, which go; ends the use of this object."""
        # Merged after they are taken apart: one layer at a time is there twice, not a whole stack.
        frozen, self._frozen = layers.unstack(self._frozen, release=True), {}
        params = layers.unstack(params, release=True)
        return lora.merge(weights.flatten(frozen), params) if frozen else params

    def prepare(self, state, batches: Sequence[tuple[str, Batch]]) -> int:
        """Compiles, side by side, what these calls need -> the most bytes that a device will hold.

        state: arrays or shapes. batches: ('step' or 'accumulate', a micro batch).
        """
        state, frozen = checkpoints.abstract((state, self._frozen))
        calls = self.calls(state, frozen, batches)
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            ready = pool.map(lambda call: self.lower(*call).compile(), calls.values())
            self._ready |= dict(zip(calls, ready))
        self.count += len(calls)
        self.seconds += time.monotonic() - start
        beside = {key: self.beside(key[0], state, frozen) for key in calls}
        return max(parallel.bytes_of_program(self._ready[key]) + beside[key] for key in calls)

    def calls(
        self, state, frozen, batches: Sequence[tuple[str, Batch]]
    ) -> dict[tuple, tuple[str, tuple]]:
        """The functions that these calls need, each once, and what `lower` takes for them.

        state, frozen: shapes. batches: as of `prepare`. Keys are (function, shape of the tokens).
        """
        params = state['params']
        scale, number = (placed(x, self._everywhere) for x in _numbers(0, (0, 0)))
        calls = {}
        for name, batch in batches:
            shapes = {key: placed(value, self._rows) for key, value in batch.items()}
            first = (state,) if name == 'step' else (params, params)
            calls[_key(name, batch)] = name, (*first, shapes, scale, number, frozen)
            if name == 'accumulate':
                calls[_key('update')] = 'update', (state, params, frozen)
        return calls

    def beside(self, name: str, state, frozen) -> int:
        """Bytes on a device of what is there while a function runs that does not take it."""
        left = {'accumulate': state['optimiser'], 'update': frozen}
        return parallel.bytes_on_a_device(left.get(name, ()))

    def lower(self, name: str, args: tuple) -> jax.stages.Lowered:
        """One of 'step', 'accumulate', 'update' and 'read', or the loss to evaluate.

        args: arrays or shapes.
        """
        known = {
            'step': self._step,
            'accumulate': self._accumulate,
            'update': self._update,
            'read': self._read,
        }
        function = known.get(name) or functools.partial(self._evaluate, name)
        donated, out = (), self._everywhere  # metrics go everywhere
        if name in RESULTS:
            # Donated, for nobody holds it any longer: it comes back in the same place.
            donated, first = (0,), jax.tree.map(lambda x: x.sharding, args[0])
            out = (first, *[self._everywhere] * (RESULTS[name] - 1))
        room = 0  # nothing is kept where nothing is differentiated
        if name in ('step', 'accumulate'):
            params = args[0]['params'] if name == 'step' else args[1]
            room = self.room(params, args[-1])
        # On TPUs and GPUs, too, float32 is to be float32.
        exact = 'highest' if self._dtype == jnp.float32 else None
        with (
            jax.set_mesh(self.mesh),
            recompute.room(room),
            jax.default_matmul_precision(exact),
        ):
            return jax.jit(function, donate_argnums=donated, out_shardings=out).lower(*args)

    def room(self, params, frozen) -> int:
        """Bytes on a device for activations: half of what the training leaves free there.

        Counted from what the device has in all, so that a training that goes on compiles as before.
        """
        if not self._memory:
            return recompute.ROOM
        held = params, self.moments(params), frozen
        gradients = parallel.bytes_on_a_device(params)
        return (self._memory - parallel.bytes_on_a_device(held) - gradients) // 2

    def attention(self, lengths: Sequence[int]) -> str:
        """What computes the attention of rows of these lengths: see kernels.told."""
        with jax.set_mesh(self.mesh):
            return kernels.told(self._settings.attention, self._config, lengths, self._dtype)

    def step(self, state, batch: Batch, scale: float, number: Sequence[int]):
        """A whole step of one micro batch -> (state, metric sums, norm of the gradients).

        As `accumulate` and `update` together, without an array for the sum of gradients.
        number: of the step and of its micro batch; with the seed it gives the dropout.
        """
        return self._run('step', batch, state, self._place(batch), *self._whole(scale, number))

    def accumulate(self, grads, params, batch: Batch, scale: float, number: Sequence[int]):
        """Adds the gradients of scale * (loss of one micro batch) -> (grads, metric sums).

        scale: as `scale_of` gives it.
        """
        args = grads, params, self._place(batch), *self._whole(scale, number)
        return self._run('accumulate', batch, *args)

    def scale_of(self, state, scale: float) -> float | jax.Array:
        """`scale`, times the factor of loss_scale where the loss is scaled."""
        return scale * state['optimiser'].factor if self.scales else scale

    def zeros(self, params):
        """Gradients before the first micro batch of a step."""
        return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype, device=p.sharding), params)

    def update(self, state, grads) -> tuple[dict[str, Any], jax.Array]:
        """One AdamW step -> (state, norm of the gradients before clipping)."""
        return self._run('update', None, state, grads)

    def evaluate(self, params, batch: Batch, loss: str | None = None) -> dict[str, jax.Array]:
        """Sums of a loss and its metrics over one micro batch, without dropout.

        loss: None = the training's own.
        """
        return self._run(loss or self._loss, batch, params, self._place(batch))

    def read(self, params, batch: Batch, places: np.ndarray) -> jax.Array:
        """The hidden states of a reward model's decoder -> f32[R, P, D], on all devices.

        places: i32[R, P] in each row of the micro batch; P is the same for all of one shape.
        """
        read = {name: batch[name] for name in ('tokens', 'positions', 'end')} | {'places': places}
        return self._run('read', read, params, self._place(read))

    def with_head(self, params, head: Mapping[str, np.ndarray]):
        """`params` with another scalar head, which every process has."""
        old = params['value_head']
        new = {name: _spread(head[name], leaf.sharding) for name, leaf in old.items()}
        return {**params, 'value_head': new}

    def _run(self, name: str, batch: Batch | None, *args):
        key, args = _key(name, batch), (*args, self._frozen)
        if key not in self._ready:
            start = time.monotonic()
            self._ready[key] = self.lower(name, args).compile()
            self.count += 1
            self.seconds += time.monotonic() - start
        return self._ready[key](*args)

    def _step(self, state, batch, scale, number, frozen):
        scale = self.scale_of(state, scale)
        grads, metrics = self._gradients(state['params'], frozen, batch, scale, number)
        state, norm = self._update(state, grads, frozen)
        return state, metrics, norm

    def _accumulate(self, grads, params, batch, scale, number, frozen):
        new, metrics = self._gradients(params, frozen, batch, scale, number)
        return jax.tree.map(jnp.add, grads, new), metrics

    def _update(self, state, grads, frozen):
        moments, params = state['optimiser'], state['params']
        norm = optax.tree.norm(grads) / self.scale_of(state, 1.0)
        updates, moments = self._optimiser.update(grads, moments, params, frozen=frozen)
        params = optax.apply_updates(params, updates)
        return {'params': params, 'optimiser': moments}, norm

    def _evaluate(self, loss, params, batch, frozen):
        value, metrics = self._value(params, frozen, batch, None, loss)
        return {'loss': value} | metrics

    def _read(self, params, batch, frozen):
        decoder = lora.joined(frozen, layers.cast(params, self._dtype))['decoder']
        hidden = losses.hidden_states(self._config, decoder, batch, self._settings)
        found = jnp.take_along_axis(hidden, batch['places'][..., None], axis=1)
        return found.astype(jnp.float32)

    def _gradients(self, params, frozen, batch, scale, number):
        key = jax.random.key(self._settings.seed)
        for n in number:
            key = jax.random.fold_in(key, n)

        def loss(params, added):
            value, metrics = self._value(params, frozen, batch | added, key, self._loss)
            return scale * value, {'loss': value} | metrics

        added = {}
        if not frozen:  # see _with_looked_up
            shape = *batch['tokens'].shape, self._config.embed_dim
            added['added'] = attention.rows_over_mesh(jnp.zeros(shape, self._dtype))
        (grads, by_input), metrics = jax.grad(loss, (0, 1), has_aux=True)(params, added)
        if added:
            # Padding is nowhere: XLA's sums are slow where one index comes again and again.
            tokens = jnp.where(batch['end'] > 0, batch['tokens'], self._config.vocab_size)
            grads = _with_looked_up(grads, tokens, by_input['added'])
        return grads, metrics

    def _value(self, params, frozen, batch, key, loss: str):
        value_head = params.get('value_head')
        params = layers.cast(params, self._dtype)
        if value_head is not None:
            params['value_head'] = value_head
        params = lora.joined(frozen, params)
        return losses.BY_NAME[loss](self._config, params, batch, key, self._settings)

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        return {name: _spread(value, self._rows) for name, value in batch.items()}

    def _whole(self, scale: float | jax.Array, number: Sequence[int]) -> tuple[jax.Array, ...]:
        there = isinstance(scale, jax.Array)
        host_scale, number = _numbers(0.0 if there else scale, number)
        return scale if there else self._copied(host_scale), self._copied(number)

    def _copied(self, value: np.ndarray) -> jax.Array:
        return _spread(value, self._everywhere)


def _with_looked_up(grads, tokens: jax.Array, by_input: jax.Array):
    """Adds the gradients of looked up rows to those of the embedding.

    Left to JAX, they would be a table of their own beside the output's: as large again where one
    table is both, and in bfloat16 a frequent token's would be summed in bfloat16.

    tokens: i32[R, T], those beyond the vocabulary are left out. by_input: [R, T, D], gradients by
      what was looked up.
    """
    if 'decoder' in grads:
        return {**grads, 'decoder': _with_looked_up(grads['decoder'], tokens, by_input)}
    table = grads['embed']['weight']
    by_input = attention.columns_over_mesh(by_input.astype(table.dtype))
    return {**grads, 'embed': {'weight': table.at[tokens].add(by_input, mode='drop')}}


def merging(frozen) -> int:
    """Most bytes on a device while Compiled.whole merges LoRA into these weights or shapes.

    First the largest stack of layers is there twice, in the end all is float32.
    """
    bytes_of = parallel.bytes_on_a_device
    wide = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), frozen
    )
    largest = max(map(bytes_of, jax.tree.leaves(frozen)), default=0)
    return max(bytes_of(frozen) + largest, bytes_of(wide))


def _least(size: int) -> int:
    """The least of the bytes that the processes call this with.

    Processes that decided by their own would compile programs that differ. What they exchange are
    32 bits: MiB.
    """
    if jax.process_count() == 1:
        return size
    return -hosts.greatest(-(size // MIB)) * MIB


def _key(name: str, batch: Batch | None = None) -> tuple:
    return name, None if batch is None else batch['tokens'].shape


def _numbers(scale: float, number: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scale, np.float32), np.array(number, np.uint32)


def _spread(value: np.ndarray, where: NamedSharding) -> jax.Array:
    """`value`, which every process has, on the devices of all of them."""
    return jax.make_array_from_callback(value.shape, where, lambda index: value[index])


def own_dtype(leaf, dtype: jnp.dtype) -> jnp.dtype:
    """In what a training holds a parameter whose network runs in `dtype`."""
    return dtype if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def _own(dtype: jnp.dtype, release: bool, leaf, where: NamedSharding) -> jax.Array:
    """`leaf` at `where` in `own_dtype`: an array of our own, which may be donated."""
    dtype = own_dtype(leaf, dtype)
    held = isinstance(leaf, jax.Array)
    there = held and leaf.dtype == dtype and leaf.sharding.is_equivalent_to(where, leaf.ndim)
    if release and there:
        return leaf
    if held and (where.is_fully_addressable or not leaf.is_fully_addressable):
        made = jax.device_put(jnp.array(leaf, dtype, copy=True), where)
    else:  # each process has the same, such as a new head
        made = _spread(np.asarray(leaf, dtype), where)
    if release and held:
        made.block_until_ready()
        leaf.delete()
    return made
