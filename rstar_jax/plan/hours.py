"""What a round of the whole job takes: --plan=TOPOLOGY --problems=N --workdir=SMALL_RUN.

    small run    -> tokens of a tree, examples of a problem, tokens of an example   (`small_run`)
    topology     -> least time of a decode step and of an optimiser step, compiled; the decode step
                    is measured where the chips are at hand
    Assumed      -> how much longer they take in practice
        -> hours, chip-hours and share of each stage

It plans the small run's last round that has curated, with more problems and the config's model.
`--plan=here` is this machine: its limits are measured, where its chips' are not known, and a step
of decoding.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rstar_jax import models, parallel, search, training
from rstar_jax.job.progress import percent
from rstar_jax.parallel import fast_dtype
from rstar_jax.parallel.chips import Chip, find_chip, here
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan.compiled_search import DTYPE, SearchPlan, plan_search
from rstar_jax.plan.compiled_training import TrainingPlan, plan_training
from rstar_jax.plan.slices import host_chips, models_of, slice_chips
from rstar_jax.plan.small_run import SECTIONS, Statistics, statistics
from rstar_jax.search.engine import sizes
from rstar_jax.settings import training_values
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import searches
from rstar_jax.training.defaults import HEAD_MOST

HERE = 'here'
STAGES = ('search', 'curate', 'sft', 'ppm', 'eval')  # whose hours are told


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no compiler knows.

    decode: share of a decode step's speed, at its limits or as measured. prefill: of the chips'
    FLOP/s, when paths are read in and steps scored. train: of the speed of an optimiser step at its
    limits. idle: of the hosts' time until the last tree is done, at least. start: seconds before a
    stage's first step: models read, programs compiled. experiments/LOG.md has the measurements.
    """

    decode: float = 0.5
    prefill: float = 0.4
    train: float = 0.6
    idle: float = 0.03
    start: float = 600.0


# Of a processor, against its measured limits (experiments/LOG.md): it does not read and compute at
# once.
PROCESSOR = Assumed(decode=1.0, prefill=0.4, train=0.55, start=60.0)


@dataclasses.dataclass(frozen=True)
class Job:
    """A round of `problems`, whose trees and examples are like those that were `found`."""

    config: ConfigDict
    problems: int
    found: Statistics
    stages: Sequence[str] = STAGES

    @property
    def first_trees(self) -> int:
        """Trees of each problem, without those of `search.more_rollouts`."""
        if self.config.search.mean_tokens:
            return search.trees_for(self.config.search.mean_tokens, [self.found.sampled])
        return self.config.search.trees


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """Of the search and of the trainings, by their section. parameters: of a model, without the
    output: known tokens need none."""

    search: SearchPlan | None
    trainings: dict[str, TrainingPlan]
    parameters: int


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of all chips at their limits. decoded, read: tokens a second that are sampled, and of known
    ones. steps: kind -> seconds of an optimiser step of usual examples. hosts: that curate.
    flight: trees that are searched at once."""

    decoded: float
    read: float
    steps: dict[str, float]
    hosts: int = 1
    flight: int = 0


def whole_job(
    config: ConfigDict, topology: str, problems: int, workdir: str, stages: Sequence[str]
) -> Iterator[str]:
    """The lines of the plan.

    Raises:
      UserError: the workdir has no round that has curated; as `tables.on_slices`.
    """
    if ',' in topology:
        raise UserError('topology', topology, 'needs one alone, with --problems')
    if problems < 1:
        raise UserError('problems', problems, 'needs at least 1')
    number, found = statistics(pathlib.Path(workdir))
    job = Job(config, problems, found, stages)
    _check_told(job, workdir)
    kinds = [f'{n:.2f} {k} of {found.tokens[k]:,.0f} tokens' for k, n in found.examples.items()]
    yield (
        f'{workdir}, round {number}, {found.trees} trees: {found.sampled:,.0f} tokens sampled for '
        f'a tree, {found.read:,.0f} read in, {found.scored:,.0f} scored; {percent(found.solved)} '
        f'of the problems solved; of a problem {", ".join(kinds) or "no examples"}'
    )
    chips = jax.devices() if topology == HERE else slice_chips(topology)
    chip = find_chip(chips[0].device_kind)
    if topology == HERE:
        parallel.keep_compiled(config.compiled)
        chip = here(fast_dtype())
        yield (
            f'{chips[0].device_kind}: {chip.flops / 1e9:,.0f} GFLOP/s in {fast_dtype()}, '
            f'{chip.bandwidth / 1e9:,.1f} GB/s of each device'
        )
    if chip is None:
        raise UserError('topology', topology, f'has {chips[0].device_kind}, of unknown limits')
    assumed = PROCESSOR if chips[0].platform == 'cpu' else Assumed()
    if topology == HERE:
        assumed = dataclasses.replace(assumed, decode=1.0)
    yield 'assumed: ' + ', '.join(f'{name} {value:g}' for name, value in vars(assumed).items())
    for name, shape in models_of(config.policy.path, config.base.path).items():
        speed = limits(compiled(job, shape, chips, chip.memory), chips, chip)
        yield f'{name} on {topology}, {len(chips)} chips, {problems:,} problems\n'
        yield from table(hours(job, speed, assumed), len(chips))


def _check_told(job: Job, workdir: str) -> None:
    """Raises UserError where the small run tells of no stage that is asked for."""
    told = {
        'search',
        'curate',
        *(k for k, (_, kind) in SECTIONS.items() if kind in job.found.tokens),
    }
    told |= {'eval'} if job.found.evaluated else set()
    if not told & set(job.stages):
        raise UserError(
            'stages',
            ','.join(job.stages),
            f'{workdir} tells nothing of how long these take',
            f'expected some of {", ".join(name for name in STAGES if name in told)}',
        )


def table(rows: dict[str, float], chips: int) -> Iterator[str]:
    """Hours, chip-hours and share of each stage, and their sum."""
    total = sum(rows.values())
    places = 2 if total >= 1 else 4
    yield f'{"stage":8} {"hours":>9} {"chip-hours":>12} {"share":>8}'
    for name, value in [*rows.items(), ('round', total)]:
        chip_hours = f'{value * chips:,.{places - 2}f}'
        yield f'{name:8} {value:>9.{places}f} {chip_hours:>12} {percent(value / total):>8}'


def compiled(job: Job, shape: models.Config, chips: Sequence[Any], memory: float) -> JobPlan:
    """Compiles the search and the trainings for the chips, described ones or those at hand.

    memory: bytes that a program may use on a chip.

    Raises UserError: one of them does not fit.
    """
    processor, one = chips[0].platform == 'cpu', None
    if {'search', 'eval'} & set(job.stages):
        settings = searches.search_config(job.config)
        longest = sizes.path_room(job.found.path, settings.path_tokens)
        longest = min(settings.path_tokens, longest)
        settings = dataclasses.replace(settings, path_tokens=longest)
        dtype = jnp.dtype(job.config.policy.dtype or fast_dtype()) if processor else DTYPE
        trees = -(-job.problems * job.first_trees // len(chips))
        one = plan_search(settings, host_chips(chips), memory, shape, trees, dtype)
        if one is None:
            raise UserError('topology', expected='the search does not fit into the chips of a host')
    made = {}
    for section, (_, kind) in SECTIONS.items():
        if section not in job.stages or kind not in job.found.tokens:
            continue
        how = training.settings(section, training_values(job.config, section))
        if processor:
            how.dtype = how.dtype or fast_dtype()
        mesh = parallel.training_mesh(how.batch_size, shape, chips)
        size = round(job.found.tokens[kind])
        made[section] = plan_training(section, how, shape, mesh, memory, size)
        if made[section].work is None:
            raise UserError(
                'topology', expected=f'{section} does not fit into {memory / GIB:g} GiB'
            )
    trunk = models.decoder.abstract_params(shape, headless=True)
    return JobPlan(one, made, sum(x.size for x in jax.tree.leaves(trunk)))


def limits(plan: JobPlan, chips: Sequence[Any], chip: Chip) -> Speed:
    """What the chips do at most, each of them like `chip`."""
    # A processor reads and computes by turns.
    both = sum if chips[0].platform == 'cpu' else max
    decoded, read, flight = 0.0, 0.0, 0
    if (one := plan.search) is not None:
        least = both([one.flops / chip.flops, one.floor / chip.bandwidth])
        step = one.step or least
        groups = len(chips) // one.tensor
        decoded, flight = groups * one.slots / step, groups * one.trees
        read = len(chips) * chip.flops / (2 * plan.parameters)
    steps = {}
    for section, trained in plan.trainings.items():
        computing = max(trained.least_seconds(chip))
        # Parameters and moments are read and written.
        steps[section] = computing + 2 * trained.held / chip.bandwidth
    hosts = len({chip.process_index for chip in chips})
    return Speed(decoded, read, steps, hosts, flight)


def hours(job: Job, speed: Speed, assumed: Assumed) -> dict[str, float]:
    """Hours of each stage of a round.

    Trees of `search.more_rollouts` are those of the problems that are not solved, as long as the
    first ones by their rollouts. When no tree is left to begin, those in flight end one by one, and
    leave as many slots idle as those of the small run did.
    """
    config, problems, found = job.config, job.problems, job.found
    trees = problems * job.first_trees
    unsolved = problems * (1 - found.solved)
    trees += unsolved * sum(n / config.search.rollouts for n in config.search.more_rollouts)
    rows = {}
    if 'search' in job.stages:
        tree = found.sampled / (assumed.decode * speed.decoded)
        tree += (found.read + found.scored) / (assumed.prefill * speed.read)
        waves = max(1.0, found.trees / max(speed.flight, 1))  # of the small run
        last = min(trees, speed.flight) * (1 / found.slot_use - 1) * waves
        rows['search'] = assumed.start + max(trees / (1 - assumed.idle), trees + last) * tree
    if 'curate' in job.stages:
        rows['curate'] = problems * found.curate / speed.hosts
    for section, seconds in speed.steps.items():
        settings = config.training[section]
        examples = problems * found.examples[SECTIONS[section][1]]
        steps = settings.epochs * examples / settings.batch_size  # a last one of few is short
        if settings.get('head') == 'fitted':  # forwards alone, a third of a step
            steps += min(examples, HEAD_MOST) / settings.batch_size / 3
        rows[section] = assumed.start + steps * seconds / assumed.train
    if 'eval' in job.stages and found.evaluated:
        seconds = found.evaluated / (assumed.decode * speed.decoded)
        seconds += found.evaluated_read / (assumed.prefill * speed.read)
        rows['eval'] = assumed.start + seconds
    return {name: value / 3600 for name, value in rows.items()}
