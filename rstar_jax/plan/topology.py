"""Plans without hardware: a run's own functions compiled for a TPU slice.

    --plan=TOPOLOGY[,TOPOLOGY] -> the chips of a slice, described
        search     those of one host -> search.planning -> memory a chip, trees that fit, limits
        sft, ppm   all of them -> training.planning -> memory a chip, does it fit, limits

A search has the policy and the PPM, of one shape, both in memory; paths are planned at their
longest (`search.path_tokens`), trainings at rows of `length`. What the compiler says of memory and
work is reported.
"""

import functools
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import models, parallel, training
from rstar_jax.models import published
from rstar_jax.parallel.chips import CHIPS, Chip, find_chip
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan import searches as searches
from rstar_jax.plan import trainings as trainings
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError, one_line
from rstar_jax.settings.kinds import STAGES
from rstar_jax.settings.table import PREVIOUS
from rstar_jax.stages import sources

SLICE = re.compile(r'\w+:[1-9]\d*(x[1-9]\d*)*')
# Eight chips are to be had as one machine: v5litepod-8, v6e-8.
ONE_HOST = {'v5e:2x4': (2, 4, 1), 'v6e:2x4': (2, 4, 1)}
# The compiler's library asks for a TPU's host, and says at length that there is none.
QUIET = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several may compile at once: no chip is touched
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
}


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
    compiled = functools.cache(functools.partial(searches.plan, settings, chips, chip.memory))
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
        settings = training.settings(kind, config.training[kind])
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


def _cells(plan: searches.Plan | None, chip: Chip) -> list[str]:
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
    """Of a step of what fits: by FLOPs, by bytes from other chips; the longer one bounds it.

    By bytes it is 0 where the speed of the chip's links is not known, as of those that are no TPU.
    """
    received = sum(exchange.bytes for exchange in plan.work.exchanged.values())
    return plan.computed / chip.flops, received / (chip.links or math.inf)


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
    if path in ('', PREVIOUS, table.TINY):
        return {name: published.SHAPES[name] for name in published.PAPER}
    folder = pathlib.Path(os.path.expanduser(path))
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
    bounds = (1, 1, 1) if single else ONE_HOST.get(topology)
    options = {'chips_per_host_bounds': bounds} if bounds else {}
    if topology.startswith('v4:'):  # as on the chip itself, where its two cores are one device
        options['chip_config_name'] = 'megacore'
    try:
        if not SLICE.fullmatch(topology):  # of 0x0 the compiler's library dies
            raise ValueError('not the name of a generation, a colon and chips of each dimension')
        return list(topologies.get_topology_desc(topology, platform='tpu', **options).devices)
    except Exception as error:  # the compiler's library raises many kinds
        raise UserError(
            f'--plan={topology}: expected a TPU slice such as v5e:2x4, and the compiler for it '
            f'(pip install "jax[tpu]"): {one_line(error)}'
        ) from None


def host_chips(chips: Sequence[Any]) -> list[Any]:
    """Those of a slice's chips that its first host drives: a search needs no others."""
    return [chip for chip in chips if chip.process_index == chips[0].process_index]
