"""What a round of the whole job takes: --plan=TOPOLOGY --problems=N --workdir=SMALL_RUN.

    small run    -> tokens of a tree, examples of a problem, tokens of an example   (`Statistics`)
    topology     -> least time of a decode step and of an optimiser step, compiled  (`planning`)
    ASSUMED      -> how much longer they take in practice
        -> hours, chip-hours and share of each stage

It plans the small run's last round that has curated, with more problems and the config's model.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rstar_jax import data, ledger, parallel, planning, sources, training
from rstar_jax.errors import UserError
from rstar_jax.parallel.chips import Chip, find_chip
from rstar_jax.progress import percent
from rstar_jax.training import planning as trainings

SECTIONS = {'sft': ('policy', 'sft'), 'ppm': ('ppm', 'pairs')}  # folder, kind of example


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no compiler knows. Shares are of the limits that `--plan` prints.

    decode: of the lower of a decode step's two limits. prefill: of the chips' FLOP/s, when paths
    are read in and steps scored. train: of the shortest time of an optimiser step. idle: of the
    hosts' time until the last tree is done (`python -m rstar_jax.bench leases`). start: seconds of
    a stage before its first step: models read, programs compiled.
    """

    decode: float = 0.5
    prefill: float = 0.4
    train: float = 0.6
    idle: float = 0.05
    start: float = 600.0


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of a small run, on average.

    sampled: tokens of a tree. read, scored: tokens of a tree that policy and PPM are run on besides
    sampling. solved: share of the problems. examples, tokens: of a problem, by kind ('sft',
    'pairs'), and of one example. curate: seconds of a problem. evaluated: tokens that an evaluation
    samples in all. trees: how many these are means of.
    """

    sampled: float
    read: float
    scored: float
    solved: float
    examples: dict[str, float]
    tokens: dict[str, float]
    curate: float
    evaluated: float
    trees: int


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of a slice at its limits. decoded: tokens a second of all hosts. flops: of all chips.
    parameters: of one model. steps: kind -> (seconds of an optimiser step, tokens in it)."""

    decoded: float
    flops: float
    parameters: float
    steps: dict[str, tuple[float, int]]


def plan(
    config: ConfigDict, topology: str, problems: int, workdir: str, stages: Sequence[str]
) -> Iterator[str]:
    """The lines of the plan.

    Raises:
      UserError: the workdir has no round that has curated; as `planning.plan`.
    """
    if ',' in topology or problems < 1:
        raise UserError(f'--plan={topology} --problems={problems}: needs one topology, 1 problem')
    number, found = statistics(pathlib.Path(workdir))
    kinds = [f'{n:.2f} {k} of {found.tokens[k]:,.0f} tokens' for k, n in found.examples.items()]
    yield (
        f'{workdir}, round {number}, {found.trees} trees: {found.sampled:,.0f} tokens sampled for '
        f'a tree, {found.read:,.0f} read in, {found.scored:,.0f} scored; {percent(found.solved)} '
        f'of the problems solved; of a problem {", ".join(kinds) or "no examples"}'
    )
    chips = planning.slice_chips(topology)
    chip = find_chip(chips[0].device_kind)
    if chip is None:
        raise UserError(f'--plan={topology}: the limits of {chips[0].device_kind} are not known')
    assumed = Assumed()
    yield 'assumed: ' + ', '.join(
        f'{field.name} {getattr(assumed, field.name):g}' for field in dataclasses.fields(Assumed)
    )
    models = planning.models_of(config.policy.path, config.base.path)
    for name, shape in models.items():
        speed = limits(config, chips, chip, shape, stages)
        yield f'{name} on {topology}, {len(chips)} chips, {problems:,} problems\n'
        yield from table(hours(config, problems, found, speed, assumed, stages), len(chips))


def table(rows: dict[str, float], chips: int) -> Iterator[str]:
    """Hours, chip-hours and share of each stage, and their sum."""
    total = sum(rows.values())
    yield f'{"stage":8} {"hours":>9} {"chip-hours":>12} {"share":>8}'
    for name, value in [*rows.items(), ('round', total)]:
        yield f'{name:8} {value:>9.2f} {value * chips:>12,.0f} {percent(value / total):>8}'


def statistics(workdir: pathlib.Path) -> tuple[int, Statistics]:
    """(round, what its trees and examples are like) of the last round that has curated."""
    done = sorted(workdir.glob('round*/curate/done.json'), key=_number)
    if not done:
        raise UserError(
            f'--workdir={workdir}: holds no round that has curated: plan from a small run, of some '
            'hundred problems with the settings of the whole one'
        )
    folder = done[-1].parents[1]
    with data.TreeStore(folder / 'search', writer=None) as store:
        counters = [record.counters for record in store]
        solved = sum(record.solved for record in store)
    count = len(counters)

    def mean(name: str) -> float:
        return sum(row.get(name, 0.0) for row in counters) / count

    curated = ledger.read_json(done[-1])
    figures, problems = curated['figures'], curated['figures']['problems']
    settings = (ledger.read_json(workdir / 'config.json') or {}).get(folder.name, {})
    examples, tokens = {}, {}
    for section, (name, kind) in SECTIONS.items():
        trained = ledger.read_json(folder / name / 'done.json')
        if trained and figures.get(kind):
            examples[kind] = figures[kind] / problems
            epochs = settings[f'training.{section}.epochs']
            tokens[kind] = trained['figures']['tokens'] / (figures[kind] * epochs)
    sampled = mean('sampled_tokens')
    return int(folder.name.removeprefix('round')), Statistics(
        sampled=sampled,
        read=max(0.0, mean('policy_computed') - sampled),
        scored=mean('ppm_computed'),
        solved=solved / count,
        examples=examples,
        tokens=tokens,
        curate=curated['seconds'] / problems,
        evaluated=_evaluated(folder / 'eval' / 'results.json'),
        trees=count,
    )


def _number(path: pathlib.Path) -> int:
    return int(path.parents[1].name.removeprefix('round'))


def _evaluated(path: pathlib.Path) -> float:
    """Tokens of an evaluation, 0 where there was none."""
    if not path.exists():
        return 0.0
    rows = json.loads(path.read_text(encoding='utf-8'))['benchmarks'].values()
    return sum(
        row['problems'] * strategy['tokens_per_problem']
        for row in rows
        for strategy in row['strategies'].values()
    )


def limits(
    config: ConfigDict, chips: Sequence[Any], chip: Chip, shape: Any, stages: Sequence[str]
) -> Speed:
    """Compiles the search and the trainings for the slice."""
    host = planning.host_chips(chips)
    found = planning.plan_model(sources.search_config(config), host, chip.memory, shape)
    if found is None:
        raise UserError('--plan: the search does not fit into the chips of a host')
    hosts = len(chips) // len(host)
    slots = hosts * found.groups * found.slots
    decoded = slots * min(chip.flops / found.flops, chip.bandwidth / found.floor)
    steps = {}
    mesh = parallel.global_mesh(devices=chips)
    for section, default in (('sft', training.default_sft()), ('ppm', training.default_ppm())):
        if section not in stages:
            continue
        default.update(config.training[section])
        one = trainings.plan(section, default, shape, mesh, chip.memory)
        if one.work is None:
            raise UserError(f'--plan: {section} does not fit into {chip.memory / 2**30:g} GiB')
        received = sum(exchange.bytes for exchange in one.work.exchanged.values())
        seconds = max(
            one.computed / chip.flops,
            one.work.traffic / chip.bandwidth,
            received / (chip.links or float('inf')),
        )
        tokens = sum(rows * length * n for (rows, length), n in one.micros.items())
        steps[section] = seconds, tokens
    parameters = found.weights * found.tensor / 4  # two models, two bytes each
    return Speed(decoded, len(chips) * chip.flops, parameters, steps)


def hours(
    config: ConfigDict,
    problems: int,
    found: Statistics,
    speed: Speed,
    assumed: Assumed,
    stages: Sequence[str],
) -> dict[str, float]:
    """Hours of each stage of a round.

    Trees of `search.more_rollouts` are those of the problems that are not solved, as long as the
    first ones by their rollouts.
    """
    trees = problems * config.search.trees
    unsolved = problems * (1 - found.solved)
    trees += unsolved * sum(n / config.search.rollouts for n in config.search.more_rollouts)
    decode = 1 / (assumed.decode * speed.decoded)
    reading = 2 * speed.parameters / (assumed.prefill * speed.flops)
    rows = {}
    if 'search' in stages:
        tree = found.sampled * decode + (found.read + found.scored) * reading
        rows['search'] = assumed.start + trees * tree / (1 - assumed.idle)
    if 'curate' in stages:
        rows['curate'] = problems * found.curate
    for section, (_, kind) in SECTIONS.items():
        if section in speed.steps and kind in found.examples:
            seconds, tokens = speed.steps[section]
            passes = problems * found.examples[kind] * config.training[section].epochs
            rows[section] = assumed.start
            rows[section] += passes * found.tokens[kind] / tokens * seconds / assumed.train
    if 'eval' in stages and found.evaluated:
        rows['eval'] = assumed.start + found.evaluated * decode
    return {name: value / 3600 for name, value in rows.items()}
