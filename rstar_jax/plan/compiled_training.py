"""What a training takes on a slice: the trainer's own functions, compiled from shapes alone.

    settings, shape of the model, mesh -> state and frozen weights, as shapes in their sharding
        -> micro batches of the worst step -> step, or accumulate and update, compiled
        -> bytes on a chip, collectives
    shape of the model, micro batches -> FLOPs: compilers count a loop's body once

The worst step is one whose examples all have `length` tokens and share no prefix; a usual one has
examples of a given size. For the memory counts the largest micro batch, too: rows are rounded down
to a power of two, so that of shorter ones there may be more tokens.
"""

import collections
import dataclasses
import math
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rstar_jax import models, parallel, steps
from rstar_jax.models import heads, sharding
from rstar_jax.parallel.chips import Chip
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan import collectives
from rstar_jax.training import (
    attention,
    block_attention,
    defaults,
    examples,
    flops,
    layers,
    lora,
    losses,
    packing,
    recompute,
)
from rstar_jax.training.arrays import own_dtype
from rstar_jax.training.memory import merging
from rstar_jax.training.step import Compiled

DTYPE = 'bfloat16'  # what a network runs in where settings.dtype is empty: plans are for TPUs
STEPS = 1000  # of the whole training: a number in the schedule
FIELDS = {'pairs': examples.PAIR_FIELDS, 'trajectories': examples.VALUE_FIELDS}
# What the compiler of TPUs says where a program does not fit.
OVER = re.compile(r'Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm')
UNITS = {'K': 2**10, 'M': 2**20, 'G': GIB}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a chip does in one optimiser step, by the compiled functions.

    exchanged: what it receives from other chips. seconds: of compiling, functions side by side.
    """

    exchanged: collectives.Exchanged
    seconds: float


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """One training; bytes, FLOPs and seconds are of one chip.

    mesh: axis -> chips. micros: micro batches of a step, (rows on all chips, tokens of a row) ->
    their number. held: bytes that are there all the time: parameters, moments, frozen weights.
    peak: the most bytes in use, by the compiler, or while LoRA is merged in the end; without
    `work`, what is known not to fit.
    needed: FLOPs of a step's products, each computed once: forward, gradients by inputs and by
    trained weights, attention to what is seen. computed: with what is computed again and what is
    masked. work: None where the training does not fit.
    """

    mesh: dict[str, int]
    micros: dict[tuple[int, int], int]
    held: int
    peak: int
    needed: float
    computed: float
    work: Work | None

    def least_seconds(self, chip: Chip) -> tuple[float, float]:
        """Of a step of what fits: by FLOPs, by bytes from other chips; the longer one bounds it.

        By bytes it is 0 where the speed of the chip's links is not known, as of those that are no
        TPU.
        """
        received = sum(exchange.bytes for exchange in self.work.exchanged.values())
        return self.computed / chip.flops, received / (chip.links or math.inf)


def plan_training(
    kind: str, settings, shape: models.Config, mesh: Mesh, memory: float, size: int = 0
) -> TrainingPlan:
    """The plan of an SFT or a reward model's training.

    Args:
      kind: 'sft' or 'ppm'.
      settings: as of `training.sft` or `training.ppm`.
      shape: the model's; a PPM's without its head.
      mesh: (data, fsdp, tensor), of devices that may be but described.
      memory: bytes that a program may use on a chip.
      size: tokens of an example, a pair's what both need; 0: as many as there may be.
    """
    if not settings.dtype:
        settings = settings.copy_and_resolve_references()
        settings.dtype = DTYPE
    planned = Training(kind, settings, shape, mesh, int(memory), size)
    peak, work = planned.compile()
    needed, computed = planned.products()
    return TrainingPlan(
        mesh=dict(mesh.shape),
        micros=planned.micros,
        held=planned.held,
        peak=peak,
        needed=needed / mesh.size,
        computed=computed / mesh.size,
        work=work,
    )


class Training:
    """The shapes of one training.

    Attributes:
      loss: 'sft' or the reward model's.
      new_rows: of the tables, see optimiser.optimiser.
      state, frozen: shapes in their sharding.
      micros, held: see TrainingPlan.
      largest: the function and the micro batch of the most tokens, of steps of any one size.
    """

    def __init__(
        self, kind: str, settings, shape: models.Config, mesh: Mesh, memory: int, size: int = 0
    ):
        self.settings, self.shape, self.mesh, self.memory = settings, shape, mesh, memory
        self.loss = 'sft' if kind == 'sft' else settings.loss
        # The vocabularies of published models have room for the marks.
        marked = kind == 'sft' and settings.marks == 'tokens'
        count = len(steps.SFT_TOKENS) if marked else 0
        self.new_rows = range(shape.vocab_size - count, shape.vocab_size)
        self.compiled = Compiled(shape, settings, self.loss, mesh, STEPS, self.new_rows, memory)
        self.state, self.frozen = self._shapes()
        self.held = parallel.bytes_on_a_device((self.state, self.frozen))
        lengths = self._lengths()
        self.micros = self._micros(min(size, lengths[-1]) or lengths[-1])
        made = [self.micros, *(self._micros(n) for n in lengths if not size)]
        largest = max(made, key=lambda micros: max(map(math.prod, micros)))
        self.largest = _function(largest), max(largest, key=math.prod)

    def _shapes(self) -> tuple[Any, Any]:
        params = models.decoder.abstract_params(self.shape, headless=self.loss != 'sft')
        if self.loss != 'sft':
            dim = self.shape.embed_dim
            head = jax.eval_shape(lambda: heads.init_value_head(dim, jax.random.key(0)))
            params = {'decoder': params, 'value_head': head}
        frozen: Any = {}
        if rank := self.settings.lora:
            split = (rank, self.new_rows, self.settings.seed)
            frozen, params = jax.eval_shape(lambda x: lora.split(x, *split), params)
        frozen, params = (jax.eval_shape(layers.stack, x) for x in (frozen, params))
        frozen = self._placed(frozen, jnp.dtype(self.settings.dtype))
        params = self._placed(params, jnp.dtype(jnp.float32))
        return {'params': params, 'optimiser': self.compiled.moments(params)}, frozen

    def _placed(self, shapes: Any, dtype: jnp.dtype) -> Any:
        def placed(x, where):
            return jax.ShapeDtypeStruct(x.shape, own_dtype(x, dtype), sharding=where)

        return jax.tree.map(placed, shapes, sharding.shardings(shapes, self.mesh, self.shape))

    def _lengths(self) -> list[int]:
        """Of rows, as the trainer has them; a pair lies in one row."""
        longest = self.settings.length * (2 if self.loss == 'pairwise' else 1)
        return packing.row_lengths(self.settings.length, longest, self.settings.one_size)

    def _micros(self, size: int) -> dict[tuple[int, int], int]:
        """Of a step whose examples have that size, as the trainer would choose them."""
        settings, pairs = self.settings, int(self.loss == 'pairwise')
        multiple = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        budget = settings.micro_batch * settings.length * multiple
        count = settings.batch_size
        sizes = [size] * count, [pairs] * count
        micros = packing.plan(*sizes, self._lengths(), budget, multiple)
        return dict(collections.Counter((micro.rows, micro.length) for micro in micros))

    def _batch(self, rows: int, length: int) -> dict[str, np.ndarray]:
        nothing = np.zeros(0, np.int32)
        pair = np.zeros((int(self.loss == 'pairwise'), 2), np.int32)
        example = packing.Example((nothing,), (0,), pairs=pair)
        fields = examples.SFT_FIELDS
        if self.loss != 'sft':
            fields = FIELDS[defaults.LOSSES[self.loss][0]]
        empty = packing.Micro(rows, length, [[]])
        return packing.fill(empty, [(example, packing.layout([nothing], [0]))], fields)

    def compile(self) -> tuple[int, Work | None]:
        """-> (peak, work) of a TrainingPlan. One whose state does not fit is not compiled."""
        several = sum(self.micros.values()) > 1
        gradients = parallel.bytes_on_a_device(self.state['params'])
        merged = merging(self.frozen) + gradients if self.frozen else 0
        if (least := max(self.held + several * gradients, merged)) > self.memory:
            return least, None
        planned = self._calls(_function(self.micros), self.micros)
        calls = planned | self._calls(self.largest[0], [self.largest[1]])
        start = time.perf_counter()
        with ThreadPoolExecutor() as threads:
            ready = list(threads.map(self._compile, calls.values()))
        seconds = time.perf_counter() - start
        peak = merged
        for (name, _), program in zip(calls.values(), ready):
            beside = self.compiled.beside(name, self.state, self.frozen)
            used = program if isinstance(program, int) else parallel.bytes_of_program(program)
            peak = max(peak, beside + used)
        if peak > self.memory or any(isinstance(program, int) for program in ready):
            return peak, None
        return peak, self._work(planned, ready, seconds)

    def _calls(self, name: str, micros: Iterable[tuple[int, int]]) -> dict[tuple, tuple]:
        batches = [(name, self._batch(*micro)) for micro in micros]
        return self.compiled.calls(self.state, self.frozen, batches)

    def _compile(self, call: tuple[str, tuple]) -> Any:
        """A compiled function, or the bytes that it would need."""
        try:
            return self.compiled.lower(*call).compile()
        except jax.errors.JaxRuntimeError as error:
            over = OVER.search(str(error))
            if over is None:
                raise
            return int(float(over[1]) * UNITS[over[2]])

    def _work(self, calls: dict[tuple, tuple], ready: list, seconds: float) -> Work:
        exchanged: collectives.Exchanged = {}
        for key, program in zip(calls, ready):
            times = self.micros.get(key[1], 1)
            found = collectives.exchanged(program.as_text(), self._chunks(key[1]))
            exchanged = collectives.total(exchanged, collectives.scaled(found, times))
        return Work(exchanged, seconds)

    def _chunks(self, micro: tuple[int, int] | None) -> int:
        """Passes of the loop over logits, the one whose length depends on the data."""
        ways = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        tokens = micro[0] * micro[1] // ways if micro else 0
        return -(-tokens // losses.CHUNK_TOKENS)

    def products(self) -> tuple[float, float]:
        """FLOPs (needed, computed) of a step on all chips."""
        room = self.compiled.for_activations(self.state['params'], self.frozen)
        with jax.set_mesh(self.mesh), recompute.room(room):
            parts = [
                count * np.array(products(self.shape, self.settings, self.loss, *micro))
                for micro, count in self.micros.items()
            ]
        needed, computed = np.sum(parts, axis=0)
        return float(needed), float(computed)


def _function(micros: dict[tuple[int, int], int]) -> str:
    """What computes the micro batches of a step."""
    return 'accumulate' if sum(micros.values()) > 1 else 'step'


def products(
    shape: models.Config, settings, loss: str, rows: int, length: int
) -> tuple[float, float]:
    """FLOPs of a micro batch's products on all chips: (needed, computed) as in TrainingPlan.

    In the mesh of jax.set_mesh and in recompute.room, for what is computed again depends on them.
    A product's gradients are two products of its size, that of a frozen weight is none.
    """
    rank, dtype, tokens = settings.lora, jnp.dtype(settings.dtype), rows * length
    dense = lora.dense(shape)
    own = 2 * tokens * sum(out * inputs for out, inputs in dense.values())
    low = 2 * tokens * rank * sum(out + inputs for out, inputs in dense.values())
    work, row = flops.work(shape, loss, rank), np.arange(length)
    needed = rows * work.of(row, length)
    apart = needed - rows * work.pair * work.seen(row)  # of attention
    scored = rows * scored_pairs(shape, length)
    again = recompute.whole_layers(shape, rows, length, dtype)
    # What ends a layer is computed once: nothing behind it is computed again.
    ends = [size for path, size in dense.items() if path.endswith('down/weight')]
    last = 2 * tokens * sum(out * (inputs + rank) for out, inputs in ends)
    computed = apart + again * (own + low - last)
    # Backwards attention's scores are made again, for four products of their size; splash has one
    # pass for queries, one for keys, and makes two of these five in both.
    by_splash = attention.chosen(settings.attention, shape, length, dtype) == 'splash'
    return needed, computed + (3.5 + by_splash + again) * work.pair / 3 * scored


def scored_pairs(shape: models.Config, length: int) -> int:
    """Pairs of query and key in all layers of one row that are scored, seen or not."""
    size = block_attention.block_size(length)
    blocks = -(-length // size)
    windows = [min(shape.window(i) or length, length) for i in range(shape.num_layers)]
    # Blocks that one of queries looks at, its own included.
    most = [min(blocks, (w - 2) // size + 2) for w in windows]
    return size**2 * sum(w * (w + 1) // 2 + (blocks - w) * w for w in most)
