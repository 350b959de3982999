"""What a search takes on a host's chips: its own functions, compiled from shapes alone.

    settings, shape of the model, chips -> groups of chips that share the weights
        -> trees and slots, as the engine chooses them -> decode and score, compiled
        -> memory a chip, trees that fit, work of a decode step

Policy and PPM are of one shape, both in memory; paths are planned at their longest.
"""

from __future__ import annotations

import dataclasses
import time
import timeit
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rstar_jax import models, parallel
from rstar_jax.models import heads, sharding
from rstar_jax.search import tree
from rstar_jax.search.config import Config
from rstar_jax.search.engine import batch, devices, memory, programs, sampling, sizes, state
from rstar_jax.search.engine.layers import Variant
from rstar_jax.settings.errors import UserError

DTYPE = jnp.dtype(jnp.bfloat16)  # of weights and caches: plans are for TPUs
MANY = 1 << 30  # trees to search in all: as many as one likes
NEAR = 0.8  # of the best speed, see `choose_group`
MEASURED = 4  # decode steps that are measured at once
MARK_STATES = 64  # of the automaton that finds the stop marks: a few dozen in real tokenizers


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """One model's search; bytes, FLOPs and seconds are of one chip.

    tensor: chips that share the weights; groups: of them on a host. trees: in flight on each group,
    as the search would choose, and compiled; most: that would fit. weights: bytes of both models.
    planned: bytes that the search counts with at most, weights included. decode, score: bytes in
    use while decoding and while scoring, the other model's and the trees' included, by the
    compiler. tree: bytes that one more tree takes. flops, traffic: of one decode step of all
    `slots` without drafts, as the compiler counts them, bytes read and written; floor: bytes that
    it must read, weights and caches once. step: seconds of one, measured; 0 where the chips are not
    at hand. seconds: of compiling both functions side by side.
    """

    tensor: int
    groups: int
    slots: int
    trees: int
    most: int
    weights: int
    planned: int
    tree: int
    decode: int
    score: int
    flops: float
    traffic: float
    floor: int
    step: float
    seconds: float


def plan_search(
    settings: Config,
    chips: Sequence[Any],
    bytes_of_chip: float,
    shape: models.Config,
    trees: int = MANY,
    dtype: jnp.dtype = DTYPE,
) -> SearchPlan | None:
    """The plan for policy and PPM of one shape on one host's chips; None where no tree fits.

    trees: that each group has to search in all. dtype: of weights and caches.
    """
    group = choose_group(settings, chips, bytes_of_chip, shape, trees, dtype)
    return group and group.plan()


def choose_group(
    settings: Config,
    chips: Sequence[Any],
    bytes_of_chip: float,
    shape: models.Config,
    trees: int = MANY,
    dtype: jnp.dtype = DTYPE,
) -> Group | None:
    """Which chips share the weights, with its trees and slots; as `plan_search`, nothing compiled.

    Larger groups read the weights for more sequences at once, smaller ones exchange less: takes the
    fewest chips a group, `settings.tensor` or more, whose limit by reading is near the best.
    """
    groups = []
    for tensor in range(settings.tensor, len(chips) + 1):
        if len(chips) % tensor == 0:
            mesh = parallel.local_mesh(tensor, chips)
            group = Group(settings, mesh, shape, dtype)
            if group.choose(bytes_of_chip, trees):
                groups.append(group)
    best = max((group.speed() for group in groups), default=0.0)
    return next((group for group in groups if group.speed() >= NEAR * best), None)


class Group:
    """One choice of how many chips share the weights: a search's arrays as shapes, in their places.

    Attributes:
      weights: bytes a chip, of policy and PPM.
      chosen: trees and slots; decoded, scored: what `decode.decode` takes before its settings, and
        `prefill.score` before its tokens; all after `choose`.
    """

    def __init__(self, settings: Config, mesh, shape: models.Config, dtype=DTYPE):
        """mesh: local mesh (data, tensor); `tensor` chips share the weights."""
        self.settings, self.mesh, self.shape, self.dtype = settings, mesh, shape, dtype
        trunk = models.decoder.abstract_params(shape, dtype, headless=True)
        head = jax.eval_shape(lambda: heads.init_value_head(shape.embed_dim, jax.random.key(0)))
        self.policy = self._params(models.decoder.abstract_params(shape, dtype))
        self.ppm = self._params({'decoder': trunk, 'value_head': head})
        self.weights = parallel.bytes_on_a_device((self.policy, self.ppm))

    def choose(self, bytes_of_chip: float, trees: int = MANY) -> bool:
        """Takes the engine's own choice of trees and slots; False where not one tree fits."""
        step = self.settings.step_tokens
        cell = sizes.scored_room(step)
        networks = [
            memory.Network(self.shape, self.dtype, step),
            memory.Network(self.shape, self.dtype, cell, scored=True),
        ]
        limits = sizes.of(self.mesh).slots, int(bytes_of_chip - self.weights)
        try:
            self.chosen = memory.plan(self.settings, networks, self.mesh, trees, *limits)
        except UserError:
            return False
        cells = self.chosen.trees * self.settings.candidates
        longest = sizes.path_room(self.settings.path_tokens, self.settings.path_tokens)
        prefix = self._made(state.empty_kv, 1, 0)
        path = self._made(state.empty_path, self.chosen.trees, longest)
        of_step = (
            self._made(state.empty_cells, cells, step),
            self._made(state.empty_slots, self.chosen.slots, step),
        )
        table = self._whole((MARK_STATES, self.shape.vocab_size), jnp.uint8)
        kinds, vocab = self._whole((MARK_STATES,), jnp.uint8), self._whole((), jnp.int32)
        stops = state.Stops(table, kinds, vocab)
        self.decoded = self.policy, stops, prefix, path, *of_step
        self.scored = self.ppm, prefix, path, self._made(state.empty_kv, cells, cell)
        return True

    def speed(self) -> float:
        """Sequences that a host decodes for a byte that each chip reads."""
        return self.mesh.shape['data'] * self.chosen.slots / self.floor()

    def plan(self) -> SearchPlan:
        """What was chosen, compiled."""
        chosen = self.chosen
        start = time.perf_counter()
        lowered = self.lower_decode(), self.lower_score()
        with ThreadPoolExecutor() as threads:  # the compiler uses one core for each
            decoding, scoring = threads.map(lambda x: x.compile(), lowered)
        seconds = time.perf_counter() - start
        at_hand = self.mesh.devices.flat[0] in jax.local_devices()
        cost, held = decoding.cost_analysis(), self.resident()
        return SearchPlan(
            tensor=self.mesh.shape['tensor'],
            groups=self.mesh.shape['data'],
            slots=chosen.slots,
            trees=chosen.trees,
            most=chosen.largest(MANY, lambda count: {'trees': count, 'kept': 0}),
            weights=self.weights,
            planned=self.weights + chosen.most,
            tree=chosen.tree + chosen.path,
            decode=held + _temporary(decoding),
            score=held + _temporary(scoring),
            flops=cost['flops'],
            traffic=cost['bytes accessed'],
            floor=self.floor(),
            step=self.measure(decoding) if at_hand else 0.0,
            seconds=seconds,
        )

    def resident(self) -> int:
        """Bytes a chip of all that stays in memory with what was chosen."""
        trees, kept = self.chosen.trees, memory.kept_room(self.chosen.kept)
        nodes = devices.shapes(self.mesh, tree.init, trees, self.settings.nodes)
        of_both = [self._made(state.empty_kv, trees, kept)] * 2
        return parallel.bytes_on_a_device((self.decoded, self.scored, nodes, of_both))

    def floor(self) -> int:
        """Bytes a chip that a decode step reads, were everything read once."""
        *_, path, _, slots = self.decoded
        rows = ('embed',) if 'output' in self.policy else ()  # of the table a few rows are read
        weights = {name: part for name, part in self.policy.items() if name not in rows}
        return parallel.bytes_on_a_device((weights, path.kv, slots.kv))

    def lower_decode(self) -> jax.stages.Lowered:
        settings = self.settings
        variant = Variant(
            self.shape,
            settings.candidates,
            near=sizes.of(self.mesh).near,
            repetition=settings.repetition,
        )
        how = sampling.Settings.of(settings, (1, 1))
        how = jax.tree.map(lambda x: self._whole(x.shape, x.dtype), how)
        return programs.DECODE(self.mesh, variant=variant).lower(*self.decoded, how)

    def measure(self, decode: jax.stages.Compiled) -> float:
        """Seconds of a decode step in which every slot is written to."""

        def zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)

        # Zeros are slots that write the first cell, and weights take no longer for being others.
        arrays = list(jax.tree.map(zeros, self.decoded))
        # No step ends within three calls.
        count = max(1, min(MEASURED, self.settings.step_tokens // 3))
        how = sampling.Settings.of(self.settings, (count, count))

        def run() -> None:
            *arrays[-2:], done = decode(*arrays, how)
            done.block_until_ready()

        run()
        return min(timeit.repeat(run, number=1, repeat=2)) / count

    def lower_score(self) -> jax.stages.Lowered:
        f = programs.SCORE(self.mesh, config=self.shape, squash='tanh')
        rows, length = sizes.of(self.mesh).largest_call(self.settings.step_tokens, scored=True)
        integers = devices.shapes(self.mesh, jnp.zeros, rows, jnp.int32)
        tokens = devices.shapes(self.mesh, jnp.zeros, (rows, length), jnp.int32)
        return f.lower(*self.scored, batch.Known(integers, tokens, *[integers] * 3))

    def _made(self, f: Callable, rows: int, positions: int) -> Any:
        return devices.shapes(self.mesh, f, self.shape, rows, positions, self.dtype)

    def _params(self, shapes: Any) -> Any:
        places = sharding.shardings(shapes, self.mesh, self.shape)
        return jax.tree.map(lambda x, where: x.update(sharding=where), shapes, places)

    def _whole(self, shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, P()))


def _temporary(compiled: jax.stages.Compiled) -> int:
    """Bytes a chip that a compiled function needs beyond its arguments."""
    arguments = compiled.memory_analysis().argument_size_in_bytes
    return parallel.bytes_of_program(compiled) - arguments
