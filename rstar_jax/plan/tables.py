"""The tables of `--plan`: a run's own functions, compiled for TPU slices without hardware.

    TOPOLOGY[,TOPOLOGY] --slices--> the chips of a slice, described
        search     those of one host --compiled_search--> memory a chip, trees that fit, limits
        sft, ppm   all of them --compiled_training--> memory a chip, does it fit, limits

A search has the policy and the PPM, of one shape, both in memory; paths are planned at their
longest (`search.path_tokens`), trainings at rows of `length`. What the compiler says of memory and
work is reported.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rstar_jax import models, parallel, training
from rstar_jax.parallel.chips import CHIPS, Chip, find_chip
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan.compiled_search import SearchPlan, plan_search
from rstar_jax.plan.compiled_training import DTYPE, TrainingPlan, plan_training
from rstar_jax.plan.slices import host_chips, models_of, slice_chips
from rstar_jax.settings import training_values
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import searches

STAGES = ('search', 'sft', 'ppm')  # that are planned


def on_slices(config: ConfigDict, topologies: str, stages: Sequence[str] = STAGES) -> Iterator[str]:
    """The lines for `--plan=topologies`: the config's model, or all of the paper's.

    topologies: one or several, by commas. stages: of the run; planned are search, sft and ppm.

    Raises UserError: no such topology, no compiler for it, a chip whose limits are not known.
    """
    names = [name.strip() for name in topologies.split(',') if name.strip()]
    planned = [name for name in STAGES if name in stages]
    if not names:
        raise UserError('topology', topologies, 'needs a TPU slice such as v5e:2x4')
    if 'here' in names:
        raise UserError('topology', 'here', 'needs --problems=N and the --workdir of a small run')
    if not planned:
        raise UserError('stages', ','.join(stages), 'a plan needs search, sft or ppm')
    slices = {name: slice_chips(name) for name in names}
    for topology, chips in slices.items():
        if find_chip(chips[0].device_kind) is None:
            known = ', '.join(name for name in CHIPS if name.startswith('TPU'))
            raise UserError('topology', topology, f'{chips[0].device_kind} is none of {known}')
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
    settings = searches.search_config(config)
    yield (
        f'search, bfloat16, {settings.candidates} candidates, steps of {settings.step_tokens} and '
        f'paths of {settings.path_tokens} tokens; policy and PPM in memory together\n'
    )
    yield ROW.format(*HEADER)
    # Models of one shape need one plan.
    compiled = functools.cache(functools.partial(plan_search, settings, chips, chip.memory))
    for name, shape in models_of(config.policy.path, config.base.path).items():
        yield search_row(name, compiled(shape), chip)
    yield f'\n{NOTES}\n'


def _trainings(
    config: ConfigDict, kinds: Sequence[str], chips: Sequence[Any], chip: Chip
) -> Iterator[str]:
    kinds = [kind for kind in kinds if kind != 'search']
    for kind in kinds:
        yield f'{kind}: {_settings_line(training.settings(kind, training_values(config, kind)))}'
    yield '\n' + TRAINING_ROW.format(*TRAINING_HEADER)

    @functools.cache
    def compiled(kind: str, shape: models.Config) -> TrainingPlan:
        settings = training.settings(kind, training_values(config, kind))
        mesh = parallel.training_mesh(settings.batch_size, shape, chips)
        return plan_training(kind, settings, shape, mesh, chip.memory)

    for name, shape in models_of(config.base.path or config.policy.path).items():
        for kind in kinds:
            yield training_row(name, kind, compiled(kind, shape), chip)
    yield f'\n{TRAINING_NOTES}\n'


def _settings_line(settings: ConfigDict) -> str:
    lora = f'LoRA of rank {settings.lora}' if settings.lora else 'all weights'
    return (
        f'{lora}, {settings.dtype or DTYPE}, first moments in {settings.moments}, '
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


def search_row(name: str, plan: SearchPlan | None, chip: Chip) -> str:
    """A line under HEADER, in the terms of NOTES."""
    if plan is None:
        return ROW.format(name, 'does not fit', *[''] * (len(HEADER) - 2))
    sequences = plan.groups * plan.slots
    sizes = plan.weights, plan.planned, plan.decode, plan.score, plan.tree
    gib = (f'{x / GIB:.2f}' for x in sizes)
    limits = sequences * chip.flops / plan.flops, sequences * chip.bandwidth / plan.floor
    return ROW.format(
        name,
        *map(str, (plan.tensor, plan.trees, plan.most, plan.slots)),
        *gib,
        f'{plan.seconds:.0f}',
        f'{plan.flops / plan.slots / 1e9:.2f}',
        f'{plan.traffic / plan.slots / 1e6:.0f}',
        ', '.join(f'{limit:,.0f}' for limit in limits),
    )


TRAINING_ROW = '{:18} {:5} {:>6} {:>12} {:>6} {:>6}  {:12} {:12} {:>4} {:>7}  {}'
TRAINING_HEADER = (
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


def training_row(name: str, kind: str, plan: TrainingPlan, chip: Chip) -> str:
    """A line under TRAINING_HEADER, in the terms of TRAINING_NOTES."""
    micros = ' + '.join(f'{n} x {rows}x{length}' for (rows, length), n in plan.micros.items())
    fsdp = 'x'.join(str(n) for n in (plan.mesh['fsdp'], plan.mesh['tensor']) if n > 1) or '1'
    about = [name, kind, fsdp, micros, f'{plan.held / GIB:.2f}', f'{plan.peak / GIB:.2f}']
    work = plan.work
    if work is None:
        fits = f'does not fit into {chip.memory / GIB:g} GiB'
        return TRAINING_ROW.format(*about, fits, '', '', '', '')
    flops = plan.needed, plan.computed
    seconds = plan.least_seconds(chip)
    return TRAINING_ROW.format(
        *about,
        ', '.join(f'{x / 1e15:.2f}' for x in flops),
        ', '.join(f'{x:.2f}' for x in seconds),
        f'{plan.needed / chip.flops / max(seconds):.0%}',
        f'{work.seconds:.0f}',
        ', '.join(f'{kind} {x.bytes / 1e9:.1f}' for kind, x in work.exchanged.items()),
    )
