"""The compiled functions of a training, and the arrays that they work on.

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
from rstar_jax.models import rope, weights
from rstar_jax.models.trained import placed
from rstar_jax.training import arrays, checkpoints, layers, lora, memory, recompute
from rstar_jax.training.arrays import spread
from rstar_jax.training.defaults import compute_dtype
from rstar_jax.training.functions import Functions
from rstar_jax.training.optimiser import optimiser

# Results of the functions whose first argument gives its memory to the first of them.
RESULTS = {'step': 3, 'accumulate': 2, 'update': 2}

Batch = Mapping[str, np.ndarray]


class Compiled:
    """The compiled functions of one training, a micro batch's ones by its shape.

    Attributes:
      mesh: what they run on.
      room: the memory of its devices.
      frozen: weights that are not trained, all of them or none.
      count: number of compilations so far.
      seconds: time they took.
    """

    def __init__(
        self,
        config,
        settings,
        loss: str,
        mesh: Mesh,
        steps: int,
        new_rows: Sequence[int] = (),
        memory_bytes: int | None = None,
    ):
        """memory_bytes: as of memory.Room. All processes call this."""
        self.mesh, self.count, self.seconds = mesh, 0, 0.0
        self.room = memory.Room(mesh, memory_bytes)
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
        self._functions = Functions(
            # What a text gives must not depend on the length of those that it is packed with.
            config=rope.for_texts_of(config, settings.length),
            settings=settings,
            dtype=compute_dtype(settings),
            loss=loss,
            optimiser=optimiser(settings, steps, new_rows),
        )
        self._settings, self._new_rows = settings, new_rows
        self.frozen: dict[str, Any] = {}
        self._ready: dict[tuple, Any] = {}

    def init(self, params, release: bool = False) -> dict[str, Any]:
        """The state {params, optimiser} before the first step, float32; params as of layers.stack.

        With LoRA: of what is trained; this object keeps the frozen weights.
        release: takes `params` over, array by array, instead of copying them.
        """
        rank, frozen = self._settings.lora, {}
        if rank:
            frozen, params = lora.split(params, rank, self._new_rows, self._settings.seed)
        own = functools.partial(arrays.own, mesh=self.mesh, config=self._functions.config)
        self.frozen = own(frozen, self._functions.dtype, release=release)
        if rank:
            need = memory.merging(self.frozen) - parallel.bytes_on_a_device(self.frozen)
            what = 'the model that LoRA is merged into at the end, in float32, takes another'
            self.room.check(what, need, 'use more devices')
        params = own(params, jnp.dtype(jnp.float32), release=release)
        moments = self.moments(params)
        self.room.check('the moments of AdamW take', parallel.bytes_on_a_device(moments))
        where = jax.tree.map(lambda x: x.sharding, moments)
        start = jax.jit(self._functions.optimiser.init, out_shardings=where)
        return {'params': params, 'optimiser': start(params)}

    def moments(self, params):
        """The optimiser's state for `params` (arrays or shapes), as shapes."""
        shapes = jax.eval_shape(self._functions.optimiser.init, params)
        # Moments lie where their parameters lie, counts on all devices.
        where = optax.tree_utils.tree_map_params(
            self._functions.optimiser,
            lambda _, p: p.sharding,
            shapes,
            params,
            transform_non_params=lambda _: self._everywhere,
        )
        return jax.tree.map(placed, shapes, where)

    def held(self, state) -> int:
        """Bytes on a device of what is there all the time."""
        return parallel.bytes_on_a_device((state, self.frozen))

    def whole(self, params):
        """The model's float32 parameters of a state's, which go; ends the use of this object."""
        # Merged after they are taken apart: one layer at a time is there twice, not a whole stack.
        frozen, self.frozen = layers.unstack(self.frozen, release=True), {}
        params = layers.unstack(params, release=True)
        return lora.merge(weights.flatten(frozen), params) if frozen else params

    def prepare(self, state, batches: Sequence[tuple[str, Batch]]) -> int:
        """Compiles, side by side, what these calls need -> the most bytes that a device will hold.

        state: arrays or shapes. batches: ('step' or 'accumulate', a micro batch).
        """
        state, frozen = checkpoints.abstract((state, self.frozen))
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
        functions = self._functions
        if name in (*RESULTS, 'read'):
            function = getattr(functions, name)
        else:
            function = functools.partial(functions.evaluate, name)
        donated, out = (), self._everywhere  # metrics go everywhere
        if name in RESULTS:
            # Donated, for nobody holds it any longer: it comes back in the same place.
            donated, first = (0,), jax.tree.map(lambda x: x.sharding, args[0])
            out = (first, *[self._everywhere] * (RESULTS[name] - 1))
        room = 0  # nothing is kept where nothing is differentiated
        if name in ('step', 'accumulate'):
            params = args[0]['params'] if name == 'step' else args[1]
            room = self.for_activations(params, args[-1])
        # On TPUs and GPUs, too, float32 is to be float32.
        exact = 'highest' if functions.dtype == jnp.float32 else None
        with (
            jax.set_mesh(self.mesh),
            recompute.room(room),
            jax.default_matmul_precision(exact),
        ):
            return jax.jit(function, donate_argnums=donated, out_shardings=out).lower(*args)

    def for_activations(self, params, frozen) -> int:
        """Bytes on a device for activations: half of what the training leaves free there.

        Counted from what the device has in all, so that a training that goes on compiles as before.
        """
        if not self.room.size:
            return recompute.ROOM
        held = params, self.moments(params), frozen
        gradients = parallel.bytes_on_a_device(params)
        return (self.room.size - parallel.bytes_on_a_device(held) - gradients) // 2

    def step(self, state, batch: Batch, scale: float, number: Sequence[int]):
        """A whole step of one micro batch -> (state, metric sums, norm of the gradients).

        As `accumulate` and `update` together, without an array for the sum of gradients.
        number: of the step and of its micro batch; with the seed it gives the dropout.
        """
        return self._run('step', batch, state, self._place(batch), *self._whole(scale, number))

    def accumulate(self, grads, params, batch: Batch, scale: float, number: Sequence[int]):
        """Adds the gradients of scale * (loss of one micro batch) -> (grads, metric sums)."""
        args = grads, params, self._place(batch), *self._whole(scale, number)
        return self._run('accumulate', batch, *args)

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
        return self._run(loss or self._functions.loss, batch, params, self._place(batch))

    def read(self, params, batch: Batch, places: np.ndarray) -> jax.Array:
        """The hidden states of a reward model's decoder -> f32[R, P, D], on all devices.

        places: i32[R, P] in each row of the micro batch; P is the same for all of one shape.
        """
        read = {name: batch[name] for name in ('tokens', 'positions', 'end')} | {'places': places}
        return self._run('read', read, params, self._place(read))

    def with_head(self, params, head: Mapping[str, np.ndarray]):
        """`params` with another scalar head, which every process has."""
        old = params['value_head']
        new = {name: spread(head[name], leaf.sharding) for name, leaf in old.items()}
        return {**params, 'value_head': new}

    def _run(self, name: str, batch: Batch | None, *args):
        key, args = _key(name, batch), (*args, self.frozen)
        if key not in self._ready:
            start = time.monotonic()
            self._ready[key] = self.lower(name, args).compile()
            self.count += 1
            self.seconds += time.monotonic() - start
        return self._ready[key](*args)

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        return {name: spread(value, self._rows) for name, value in batch.items()}

    def _whole(self, scale: float, number: Sequence[int]) -> tuple[jax.Array, ...]:
        return tuple(spread(value, self._everywhere) for value in _numbers(scale, number))


def _key(name: str, batch: Batch | None = None) -> tuple:
    return name, None if batch is None else batch['tokens'].shape


def _numbers(scale: float, number: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scale, np.float32), np.array(number, np.uint32)
