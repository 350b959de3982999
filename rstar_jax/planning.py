"""Plans without hardware: a run's own functions compiled for a TPU slice.

    --plan=TOPOLOGY[,TOPOLOGY] -> the chips of a slice, described
        search     those of one host -> mesh (data, tensor) -> shapes of the search's state
                   -> decode and score, compiled -> memory a chip, trees that fit, limits
        sft, ppm   all of them -> training.planning -> memory a chip, does it fit, limits

A search has the policy and the PPM, of one shape, both in memory; paths are planned at their
longest (`search.path_tokens`), trainings at rows of `length`. What the compiler says of memory and
work is reported.
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from rstar_jax import ledger, models, parallel, search, sources, training
from rstar_jax.errors import UserError
from rstar_jax.keys import PREVIOUS, STAGES
from rstar_jax.models import heads, published, sharding
from rstar_jax.parallel.chips import CHIPS, Chip, find_chip
from rstar_jax.parallel.memory import GIB
from rstar_jax.search import tree
from rstar_jax.search.engine import devices, memory, programs, sampling, sizes, state
from rstar_jax.training import planning as trainings

# The compiler's library asks for a TPU's host, and says at length that there is none.
QUIET = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several may compile at once: no chip is touched
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
}
DTYPE = jnp.dtype(jnp.bfloat16)
MANY = 1 << 30  # trees to search in all: as many as one likes
NEAR = 0.8  # of the best speed, see `plan_model`
MEASURED = 4  # decode steps that are measured at once
MARK_STATES = 64  # of the automaton that finds the stop marks: a few dozen in real tokenizers


@dataclasses.dataclass(frozen=True)
class Plan:
    """One model's plan; bytes, FLOPs and seconds are of one chip.

    tensor: chips that share the weights; groups: of them on a host. trees: in flight on each group,
    as the search would choose, and compiled; most: that would fit. weights: bytes of both models.
    planned: bytes that the search counts with at most, weights included. decode, score: bytes in
    use while decoding and while scoring, the other model's and the trees' included, by the
    compiler. tree: bytes that one more tree takes. flops, traffic: of one decode step of all
    `slots`, as the compiler counts them, bytes read and written; floor: bytes that it must read,
    weights and caches once. step: seconds of one, measured; 0 where the chips are not at hand.
    seconds: of compiling both functions side by side.
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


def plan(config: ConfigDict, topologies: str, stages: Sequence[str] = STAGES) -> Iterator[str]:
    """The lines for `--plan=topologies`: the config's model, or all of the paper's.

    topologies: one or several, by commas. stages: of the run; planned are search, sft and ppm.

    Raises UserError: no such topology, no compiler for it, a chip whose limits are not known.
    """
    names = [name.strip() for name in topologies.split(',') if name.strip()]
    planned = [name for name in ('search', 'sft', 'ppm') if name in stages]
    if not names:
        raise UserError(f'--plan={topologies}: expected a TPU slice such as v5e:2x4')
    if 'here' in names:
        raise UserError('--plan=here: needs --problems=N and the --workdir of a small run')
    if not planned:
        raise UserError(f'--stages={",".join(stages)}: a plan needs search, sft or ppm')
    slices = {name: slice_chips(name) for name in names}
    for topology, chips in slices.items():
        if find_chip(chips[0].device_kind) is None:
            known = ', '.join(name for name in CHIPS if name.startswith('TPU'))
            raise UserError(f'--plan={topology}: {chips[0].device_kind} is none of {known}')
    for topology, chips in slices.items():
        chip, host = find_chip(chips[0].device_kind), host_chips(chips)
        yield (
            f'{topology}: {len(chips)} {chips[0].device_kind}, {len(host)} a host, each '
            f'{chip.memory / GIB:g} GiB, {chip.flops / 1e12:g} TFLOP/s, '
            f'{chip.bandwidth / 1e9:g} GB/s, {chip.links / 1e9:g} GB/s from other chips\n'
        )
        if 'search' in planned:
            yield from _searches(config, host, chip)
        if planned != ['search']:
            yield from _trainings(config, planned, chips, chip)


def _searches(config: ConfigDict, chips: Sequence[Any], chip: Chip) -> Iterator[str]:
    settings = sources.search_config(config)
    yield (
        f'search, bfloat16, {settings.candidates} candidates, steps of {settings.step_tokens} and '
        f'paths of {settings.path_tokens} tokens; policy and PPM in memory together\n'
    )
    yield ROW.format(*HEADER)
    # Models of one shape need one plan.
    compiled = functools.cache(functools.partial(plan_model, settings, chips, chip.memory))
    for name, shape in models_of(config.policy.path, config.base.path).items():
        yield ROW.format(name, *_cells(compiled(shape), chip))
    yield f'\n{NOTES}\n'


def _trainings(
    config: ConfigDict, kinds: Sequence[str], chips: Sequence[Any], chip: Chip
) -> Iterator[str]:
    kinds = [kind for kind in kinds if kind != 'search']
    for kind in kinds:
        yield f'{kind}: {_settings_line(config.training[kind])}'
    yield f'\n{TRAINING_HEAD}'

    @functools.cache
    def compiled(kind: str, shape: models.Config) -> trainings.Plan:
        settings = training.default_sft() if kind == 'sft' else training.default_ppm()
        settings.update(config.training[kind])
        mesh = parallel.training_mesh(settings.batch_size, shape, chips)
        return trainings.plan(kind, settings, shape, mesh, chip.memory)

    for name, shape in models_of(config.base.path or config.policy.path).items():
        for kind in kinds:
            yield training_row(name, kind, compiled(kind, shape), chip)
    yield f'\n{TRAINING_NOTES}\n'


def _settings_line(settings: ConfigDict) -> str:
    lora = f'LoRA of rank {settings.lora}' if settings.lora else 'all weights'
    return (
        f'{lora}, {settings.dtype or trainings.DTYPE}, first moments in {settings.moments}, '
        f'{settings.batch_size} examples of {settings.length} tokens a step, '
        f'{settings.micro_batch} a chip at once'
    )


HEADER = (
    *('model', 'tensor', 'trees', 'most', 'slots', 'weights', 'planned', 'decode', 'score'),
    *('a tree', 'compile', 'GFLOP', 'MB', 'tokens/s'),
)
ROW = '{:18} {:>6} {:>5} {:>5} {:>5} {:>8} {:>8} {:>7} {:>7} {:>7} {:>8} {:>7} {:>7}  {}'
NOTES = """\
tensor: chips that share the weights. trees: in flight on each such group, as the search chooses;
most: as many as would fit. weights, planned, decode, score, a tree: GiB a chip; planned: what the
search counts with at most; decode, score: by the compiler. compile: seconds here, of both functions
side by side. GFLOP, MB: a token and chip, by the compiler's count. tokens/s: the host's limits by
those FLOPs, and by reading weights and caches once a step."""


def _cells(plan: Plan | None, chip: Chip) -> list[str]:
    if plan is None:
        return ['does not fit', *[''] * (len(HEADER) - 2)]
    sequences = plan.groups * plan.slots
    sizes = plan.weights, plan.planned, plan.decode, plan.score, plan.tree
    gib = (f'{x / GIB:.2f}' for x in sizes)
    limits = sequences * chip.flops / plan.flops, sequences * chip.bandwidth / plan.floor
    return [
        *map(str, (plan.tensor, plan.trees, plan.most, plan.slots)),
        *gib,
        f'{plan.seconds:.0f}',
        f'{plan.flops / plan.slots / 1e9:.2f}',
        f'{plan.traffic / plan.slots / 1e6:.0f}',
        ', '.join(f'{limit:,.0f}' for limit in limits),
    ]


TRAINING_ROW = '{:18} {:5} {:>6} {:>12} {:>6} {:>6}  {:12} {:12} {:>4} {:>7}  {}'
TRAINING_HEAD = TRAINING_ROW.format(
    *('model', 'stage', 'fsdp', 'micros', 'held', 'peak', 'PFLOP', 'seconds', 'MFU', 'compile'),
    'received, GB',
)
TRAINING_NOTES = """\
Of a chip and one optimiser step. fsdp: chips that parameters, moments and gradients are cut over;
x those that a row's heads are cut over as well, where there are more chips than examples.
micros: micro batches, rows on all chips x tokens. held: GiB of parameters, moments and frozen
weights; peak: GiB in use, by the compiler. PFLOP: of the products, each once; with what is computed
again or masked. seconds: at least, by FLOPs (the second), by bytes from other chips.
MFU: at most, the first PFLOP in the longest of these times. compile: seconds here, of all functions
side by side. received: from other chips, by kind of collective."""


def training_row(name: str, kind: str, plan: trainings.Plan, chip: Chip) -> str:
    """A line under TRAINING_HEAD, in the terms of TRAINING_NOTES."""
    return TRAINING_ROW.format(name, kind, *_training_cells(plan, chip))


def least_seconds(plan: trainings.Plan, chip: Chip) -> tuple[float, float]:
    """Of a step of what fits: by FLOPs, by bytes from other chips; the longer one bounds it."""
    received = sum(exchange.bytes for exchange in plan.work.exchanged.values())
    return plan.computed / chip.flops, received / chip.links


def _training_cells(plan: trainings.Plan, chip: Chip) -> list[str]:
    micros = ' + '.join(f'{n} x {rows}x{length}' for (rows, length), n in plan.micros.items())
    fsdp = 'x'.join(str(n) for n in (plan.mesh['fsdp'], plan.mesh['tensor']) if n > 1) or '1'
    about = [fsdp, micros, f'{plan.held / GIB:.2f}', f'{plan.peak / GIB:.2f}']
    work = plan.work
    if work is None:
        return [*about, f'does not fit into {chip.memory / GIB:g} GiB', '', '', '', '']
    flops = plan.needed, plan.computed
    seconds = least_seconds(plan, chip)
    return [
        *about,
        ', '.join(f'{x / 1e15:.2f}' for x in flops),
        ', '.join(f'{x:.2f}' for x in seconds),
        f'{plan.needed / chip.flops / max(seconds):.0%}',
        f'{work.seconds:.0f}',
        ', '.join(f'{kind} {x.bytes / 1e9:.1f}' for kind, x in work.exchanged.items()),
    ]


def models_of(path: str, base: str = '') -> dict[str, models.Config]:
    """The model at `path`, by its name; where a run is to make it, of `base`, or the paper's.

    Raises UserError: neither a model on disk nor one whose shape is known.
    """
    path = base if base and path == PREVIOUS else path
    if path in ('', PREVIOUS, sources.TINY):
        return {name: published.SHAPES[name] for name in published.PAPER}
    folder = pathlib.Path(os.path.expanduser(path))
    if sources.holds_model(folder):  # that a training wrote
        about = ledger.read_json(folder / 'model.json')
        return {folder.name: models.Config.from_dict(about['config'])}
    if folder.exists():
        return {folder.name: models.read_config(folder)}
    return {published.find(path) or path: published.shape(path)}


def slice_chips(topology: str) -> list[Any]:
    """The chips of a TPU slice ('v5e:4x8'), as the compiler for it describes them."""
    # This machine need not be a TPU's host, and where it is one, its chips are left alone.
    jax.config.update('jax_platforms', 'cpu')
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # The compiler takes hosts of 2 x 2 chips for granted.
    single = {'1'} == set(topology.partition(':')[2].split('x'))
    bounds = {'chips_per_host_bounds': (1, 1, 1)} if single else {}
    try:
        return list(topologies.get_topology_desc(topology, platform='tpu', **bounds).devices)
    except Exception as error:  # the compiler's library raises many kinds
        reason = ' '.join(str(error).split())[:160]
        raise UserError(
            f'--plan={topology}: expected a TPU slice such as v5e:2x4, and the compiler of the '
            f'extra `plan` (pip install -e ".[plan]"): {reason}'
        ) from None


def host_chips(chips: Sequence[Any]) -> list[Any]:
    """Those of a slice's chips that its first host drives: a search needs no others."""
    return [chip for chip in chips if chip.process_index == chips[0].process_index]


def plan_model(
    settings: search.Config,
    chips: Sequence[Any],
    bytes_of_chip: float,
    shape: models.Config,
    trees: int = MANY,
    dtype: jnp.dtype = DTYPE,
    kv_dtype: jnp.dtype = DTYPE,
) -> Plan | None:
    """The plan for policy and PPM of one shape on one host's chips; None where no tree fits.

    trees: that each group has to search in all. dtype, kv_dtype: of weights, and of caches.

    Larger groups read the weights for more sequences at once, smaller ones exchange less: takes the
    fewest chips a group, `settings.tensor` or more, whose limit by reading is near the best.
    """
    groups = []
    for tensor in range(settings.tensor, len(chips) + 1):
        if len(chips) % tensor == 0:
            mesh = parallel.local_mesh(tensor, chips)
            group = _State(settings, mesh, shape, dtype, kv_dtype)
            if group.choose(bytes_of_chip, trees):
                groups.append(group)
    best = max((group.speed() for group in groups), default=0.0)
    return next((group.plan() for group in groups if group.speed() >= NEAR * best), None)


class _State:
    """Shapes of what a search has on the devices, in their sharding."""

    def __init__(
        self, settings: search.Config, mesh, shape: models.Config, dtype=DTYPE, kv_dtype=DTYPE
    ):
        self.settings, self.mesh, self.shape = settings, mesh, shape
        self.dtype, self.kv_dtype = dtype, kv_dtype
        self.step = settings.step_tokens
        self.scored = self.step + sizes.OUTPUT_ROOM
        self.longest = sizes.path_room(settings.path_tokens, settings.path_tokens)
        trunk = models.decoder.abstract_params(shape, dtype, headless=True)
        head = jax.eval_shape(lambda: heads.init_value_head(shape.embed_dim, jax.random.key(0)))
        self.policy = self._params(models.decoder.abstract_params(shape, dtype))
        self.ppm = self._params({'decoder': trunk, 'value_head': head})
        self.weights = parallel.bytes_on_a_device((self.policy, self.ppm))

    def choose(self, bytes_of_chip: float, trees: int = MANY) -> bool:
        """Takes the engine's own choice of trees and slots; False where not one tree fits."""
        self.free = int(bytes_of_chip - self.weights)
        kinds = self.shape, self.dtype, self.kv_dtype
        networks = [
            memory.Network(*kinds, self.step),
            memory.Network(*kinds, self.scored, scores=True),
        ]
        limits = sizes.default_slots(self.mesh), self.free
        try:
            self.chosen = memory.plan(self.settings, networks, self.mesh, trees, *limits)
        except UserError:
            return False
        return True

    def speed(self) -> float:
        """Sequences that a host decodes for a byte that each chip reads."""
        slots = self.mesh.shape['data'] * self.chosen.slots
        return slots / self.floor(self.chosen.trees, self.chosen.slots)

    def plan(self) -> Plan:
        """What was chosen, compiled."""
        chosen, free = self.chosen, self.free
        trees, slots = chosen.trees, chosen.slots
        start = time.perf_counter()
        lowered = self._decode(trees, slots), self._score(trees)
        with ThreadPoolExecutor() as threads:  # the compiler uses one core for each
            decoding, scoring = threads.map(lambda x: x.compile(), lowered)
        seconds = time.perf_counter() - start
        cost, held = decoding.cost_analysis(), self.resident(chosen)
        room = memory.MARGIN * free - chosen.prefill - slots * chosen.slot
        return Plan(
            tensor=self.mesh.shape['tensor'],
            groups=self.mesh.shape['data'],
            slots=slots,
            trees=trees,
            most=int(room // chosen.tree),
            weights=self.weights,
            planned=self.weights + chosen.most,
            tree=chosen.tree,
            decode=held + _temporary(decoding),
            score=held + _temporary(scoring),
            flops=cost['flops'],
            traffic=cost['bytes accessed'],
            floor=self.floor(trees, slots),
            step=self._measure(decoding, trees, slots) if self._at_hand() else 0.0,
            seconds=seconds,
        )

    def resident(self, chosen: memory.Plan) -> int:
        """Bytes a chip of all that stays in memory with what was chosen."""
        trees = chosen.trees
        nodes = devices.shapes(self.mesh, tree.init, trees, self.settings.nodes)
        kept = self._made(state.empty_kv, trees, memory.kept_room(chosen.kept), self.dtype)
        arrays = self._stops(), nodes, *self._policy(trees, chosen.slots), *self._ppm(trees)
        return self.weights + parallel.bytes_on_a_device((arrays, kept, kept))

    def floor(self, trees: int, slots: int) -> int:
        """Bytes a chip that a decode step reads, were everything read once."""
        _, path, _, slot = self._policy(trees, slots)
        rows = ('embed',) if 'output' in self.policy else ()  # of the table a few rows are read
        weights = {name: part for name, part in self.policy.items() if name not in rows}
        return parallel.bytes_on_a_device((weights, path.kv, slot.kv))

    def _decode(self, trees: int, slots: int) -> jax.stages.Lowered:
        f = programs.DECODE.on(
            self.mesh,
            config=self.shape,
            candidates=self.settings.candidates,
            near=sizes.near(self.mesh),
        )
        how = jax.tree.map(lambda x: self._whole((), x.dtype), sampling.Settings.of(self.settings))
        iterations = self._whole((2,), jnp.int32)
        return f.lower(*self._decoded(trees, slots), how, iterations)

    def _decoded(self, trees: int, slots: int) -> tuple:
        """What `decode.decode` takes, without settings and iterations."""
        return self.policy, self._stops(), *self._policy(trees, slots)

    def _at_hand(self) -> bool:
        return self.mesh.devices.flat[0] in jax.local_devices()

    def _measure(self, decode: jax.stages.Compiled, trees: int, slots: int) -> float:
        """Seconds of a decode step in which every slot is written to."""

        def zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)

        # Zeros are slots that write the first cell, and weights take no longer for being others.
        held = jax.tree.map(zeros, self._decoded(trees, slots))
        arrays, how = list(held), sampling.Settings.of(self.settings)
        count = max(1, min(MEASURED, self.step // 3))  # no step ends within three calls

        def run() -> None:
            *arrays[-2:], done = decode(*arrays, how, np.full(2, count, np.int32))
            done.block_until_ready()

        run()
        return min(_seconds(run), _seconds(run)) / count

    def _score(self, trees: int) -> jax.stages.Lowered:
        f = programs.SCORE.on(self.mesh, config=self.shape, squash='tanh')
        integers = devices.shapes(self.mesh, jnp.zeros, 1, jnp.int32)
        length = sizes.largest_call(self.mesh, self.settings, scored=True)
        tokens = devices.shapes(self.mesh, jnp.zeros, (1, length), jnp.int32)
        prefix, path, cells = self._ppm(trees)
        return f.lower(self.ppm, prefix, path, cells, integers, integers, tokens, integers)

    def _policy(self, trees: int, slots: int) -> tuple:
        """prefix, path, cells and slots, as `decode.decode` takes them."""
        cells, kinds = trees * self.settings.candidates, (self.dtype, self.kv_dtype)
        return (
            self._made(state.empty_kv, 1, 0, self.kv_dtype),
            self._made(state.empty_path, trees, self.longest, *kinds),
            self._made(state.empty_cells, cells, self.step, *kinds),
            self._made(state.empty_slots, slots, self.step, *kinds),
        )

    def _ppm(self, trees: int) -> tuple:
        """prefix, path and the cells' keys and values, as `prefill.score` takes them."""
        cells = trees * self.settings.candidates
        return (
            self._made(state.empty_kv, 1, 0, self.kv_dtype),
            self._made(state.empty_path, trees, self.longest, self.dtype, self.kv_dtype),
            self._made(state.empty_kv, cells, self.scored, self.kv_dtype),
        )

    def _made(self, f: Callable, rows: int, positions: int, *dtypes: jnp.dtype) -> Any:
        return devices.shapes(self.mesh, f, self.shape, rows, positions, *dtypes)

    def _stops(self) -> state.Stops:
        table = self._whole((MARK_STATES, self.shape.vocab_size), jnp.uint8)
        return state.Stops(
            table, self._whole((MARK_STATES,), jnp.uint8), self._whole((), jnp.int32)
        )

    def _params(self, shapes: Any) -> Any:
        places = sharding.shardings(shapes, self.mesh, self.shape)
        return jax.tree.map(_placed, shapes, places)

    def _whole(self, shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, P()))


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _placed(shape: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _temporary(compiled: jax.stages.Compiled) -> int:
    """Bytes a chip that a compiled function needs beyond its arguments."""
    arguments = compiled.memory_analysis().argument_size_in_bytes
    return parallel.bytes_of_program(compiled) - arguments
