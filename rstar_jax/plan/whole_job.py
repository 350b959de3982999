"""What a round of the whole job takes: --plan=TOPOLOGY --problems=N --workdir=SMALL_RUN.

    small run    -> tokens of a tree, examples of a problem, tokens of an example   (`Statistics`)
    topology     -> least time of a decode step and of an optimiser step, compiled  (`planning`);
                    the decode step is measured where the chips are at hand
    Assumed      -> how much longer they take in practice
        -> hours, chip-hours and share of each stage

It plans the small run's last round that has curated, with more problems and the config's model.
`--plan=here` is this machine: its limits are measured, where its chips' are not known, and a step
of decoding.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rstar_jax import data, models, parallel, search, training
from rstar_jax.job import ledger
from rstar_jax.job.progress import percent
from rstar_jax.models.checkpoint import default_dtype
from rstar_jax.parallel.chips import Chip, find_chip, here
from rstar_jax.parallel.memory import GIB
from rstar_jax.plan import searches as searches
from rstar_jax.plan import topology
from rstar_jax.plan import trainings as trainings
from rstar_jax.search.engine import sizes
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.kinds import STAGES
from rstar_jax.stages import sources
from rstar_jax.training.defaults import HEAD_MOST

HERE = 'here'
SECTIONS = {'sft': ('policy', 'sft'), 'ppm': ('ppm', 'pairs')}  # folder, kind of example


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no compiler knows.

    decode: share of a decode step's speed, at its limits or as measured. prefill: of the chips'
    FLOP/s, when paths are read in and steps scored. train: of the speed of an optimiser step at its
    limits. idle: of the hosts' time until the last tree is done, at least (experiments/LOG.md). start:
    seconds of a stage before its first step: models read, programs compiled.
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
class Statistics:
    """Of a small run, on average; trees of `search.more_rollouts` count for `path` alone.

    sampled: tokens of a tree. path: of its longest path, the most of any tree, without what all
    prompts begin with. read, scored: tokens of a tree that policy and PPM are run on besides
    sampling. solved: share of the problems. examples: that are trained on, of a problem, by kind
    ('sft', 'pairs'); tokens: of one. curate: seconds of a problem. evaluated: tokens that an
    evaluation samples in all; evaluated_read: that it reads in or scores besides. trees: how many
    these are means of. slot_use: share of the slots' steps in which something was written, to the
    end of the last tree.
    """

    sampled: float
    path: int
    read: float
    scored: float
    solved: float
    examples: dict[str, float]
    tokens: dict[str, float]
    curate: float
    evaluated: float
    trees: int
    slot_use: float = 1.0
    evaluated_read: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plans:
    """Of the search and of the trainings, by their section. parameters: of a model, without the
    output: known tokens need none."""

    search: searches.Plan | None
    trainings: dict[str, trainings.Plan]
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
    known = {'search', 'curate'} | {k for k, (_, kind) in SECTIONS.items() if kind in found.tokens}
    known |= {'eval'} if found.evaluated else set()
    if not known & set(stages):
        raise UserError(
            f'--stages={",".join(stages)}: {workdir} tells nothing of how long these take; '
            f'expected some of {", ".join(name for name in STAGES if name in known)}'
        )
    kinds = [f'{n:.2f} {k} of {found.tokens[k]:,.0f} tokens' for k, n in found.examples.items()]
    yield (
        f'{workdir}, round {number}, {found.trees} trees: {found.sampled:,.0f} tokens sampled for '
        f'a tree, {found.read:,.0f} read in, {found.scored:,.0f} scored; {percent(found.solved)} '
        f'of the problems solved; of a problem {", ".join(kinds) or "no examples"}'
    )
    chips = jax.devices() if topology == HERE else topology.slice_chips(topology)
    chip = find_chip(chips[0].device_kind)
    if topology == HERE:
        parallel.keep_compiled(config.compiled)
        chip = here(default_dtype())
        yield (
            f'{chips[0].device_kind}: {chip.flops / 1e9:,.0f} GFLOP/s in {default_dtype()}, '
            f'{chip.bandwidth / 1e9:,.1f} GB/s of each device'
        )
    if chip is None:
        raise UserError(f'--plan={topology}: the limits of {chips[0].device_kind} are not known')
    assumed = PROCESSOR if chips[0].platform == 'cpu' else Assumed()
    if topology == HERE:
        assumed = dataclasses.replace(assumed, decode=1.0)
    yield 'assumed: ' + ', '.join(
        f'{field.name} {getattr(assumed, field.name):g}' for field in dataclasses.fields(Assumed)
    )
    for name, shape in topology.models_of(config.policy.path, config.base.path).items():
        plans = compiled(config, problems, found, chips, chip.memory, shape, stages)
        speed = limits(plans, chips, chip)
        yield f'{name} on {topology}, {len(chips)} chips, {problems:,} problems\n'
        yield from table(hours(config, problems, found, speed, assumed, stages), len(chips))


def table(rows: dict[str, float], chips: int) -> Iterator[str]:
    """Hours, chip-hours and share of each stage, and their sum."""
    total = sum(rows.values())
    places = 2 if total >= 1 else 4
    yield f'{"stage":8} {"hours":>9} {"chip-hours":>12} {"share":>8}'
    for name, value in [*rows.items(), ('round', total)]:
        chip_hours = f'{value * chips:,.{places - 2}f}'
        yield f'{name:8} {value:>9.{places}f} {chip_hours:>12} {percent(value / total):>8}'


def statistics(workdir: pathlib.Path) -> tuple[int, Statistics]:
    """(round, what its trees and examples are like) of the last round that has curated."""
    done = [row for row in ledger.rounds(workdir) if (row[1] / 'curate' / 'done.json').exists()]
    if not done:
        raise UserError(
            f'--workdir={workdir}: holds no round that has curated: plan from a small run, of some '
            'hundred problems with the settings of the whole one'
        )
    number, folder = done[-1]
    settings = (ledger.read_json(workdir / 'config.json') or {}).get(folder.name, {})
    counters, longest = [], 0
    first: list[int] | None = None  # what all prompts begin with
    searched, solved = set(), set()
    with data.TreeStore(folder / 'search', writer=None) as store:
        most = settings.get('search.trees', 1)
        if tokens_asked := settings.get('search.mean_tokens', 0):
            most = search.trees_for(
                tokens_asked, [r.counters['sampled_tokens'] for r in store if r.tree == 0]
            )
        for record in store:
            longest = max(longest, _longest_path(record))
            prompt = record.tokens[0]
            first = prompt if first is None else _common(first, prompt)
            if record.tree >= most:
                continue
            counters.append(record.counters)
            searched.add(record.problem['index'])
            if record.solved:
                solved.add(record.problem['index'])
    trees = len(counters)
    if not trees:
        raise UserError(f'--workdir={workdir}: {folder.name} holds no trees')

    def mean(name: str) -> float:
        return sum(row.get(name, 0.0) for row in counters) / trees

    searching = (ledger.read_json(folder / 'search' / 'done.json') or {}).get('figures', {})
    curated = ledger.read_json(folder / 'curate' / 'done.json')
    figures = curated['figures']
    problems = figures.get('problems') or len(searched)  # examples out of files: none
    examples, tokens = {}, {}
    for section, (name, kind) in SECTIONS.items():
        trained = ledger.read_json(folder / name / 'done.json')
        if trained and figures.get(kind):
            told = trained['figures']
            examples[kind] = told['examples'] / problems
            seen = told['examples'] * settings[f'training.{section}.epochs']
            tokens[kind] = told['tokens'] / seen
    sampled = mean('sampled_tokens')
    evaluated, evaluated_read = _evaluated(folder / 'eval')
    return number, Statistics(
        sampled=sampled,
        path=longest - len(first or ()),
        read=max(0.0, mean('policy_computed') - sampled),
        scored=mean('ppm_computed'),
        solved=len(solved) / len(searched),
        examples=examples,
        tokens=tokens,
        curate=curated['seconds'] / problems,
        evaluated=evaluated,
        trees=trees,
        slot_use=searching.get('slot_use', 1.0),
        evaluated_read=evaluated_read,
    )


def _first_trees(config: ConfigDict, found: Statistics) -> int:
    """Trees of each problem, without those of `search.more_rollouts`."""
    if config.search.mean_tokens:
        return search.trees_for(config.search.mean_tokens, [found.sampled])
    return config.search.trees


def _common(one: list[int], other: list[int]) -> list[int]:
    """What both begin with."""
    return [x for x, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))]


def _longest_path(record: search.Record) -> int:
    """Tokens of the longest way down from the root, the prompt included."""
    ends: list[int] = []
    for tokens, parent in zip(record.tokens, record.parent.tolist()):
        ends.append(len(tokens) + (ends[parent] if parent >= 0 else 0))
    return max(ends)


def _evaluated(folder: pathlib.Path) -> tuple[float, float]:
    """Tokens that an evaluation samples, and reads in or scores besides; 0 where there was none.

    The latter for each sampled one as in its trees: greedy reads little, only a PPM scores.
    """
    sampled, read = 0.0, 0.0
    results = ledger.read_json(folder / 'results.json') or {'benchmarks': {}}
    for name, row in results['benchmarks'].items():
        for strategy, figures in row['strategies'].items():
            tokens = row['problems'] * figures['tokens_per_problem']
            of_trees, besides = 0.0, 0.0
            with data.TreeStore(folder / name / strategy, writer=None) as store:
                for record in store:
                    told = collections.Counter(record.counters)
                    of_trees += told['sampled_tokens']
                    besides += max(0.0, told['policy_computed'] - told['sampled_tokens'])
                    besides += told['ppm_computed']
            sampled += tokens
            read += tokens * besides / of_trees if of_trees else 0.0
    return sampled, read


def compiled(
    config: ConfigDict,
    problems: int,
    found: Statistics,
    chips: Sequence[Any],
    memory: float,
    shape: models.Config,
    stages: Sequence[str],
) -> Plans:
    """Compiles the search and the trainings for the chips, described ones or those at hand.

    memory: bytes that a program may use on a chip.
    """
    processor, one = chips[0].platform == 'cpu', None
    if 'search' in stages or 'eval' in stages:
        settings = sources.search_config(config)
        longest = min(settings.path_tokens, sizes.path_room(found.path, settings.path_tokens))
        settings = dataclasses.replace(settings, path_tokens=longest)
        dtype = searches.DTYPE
        if processor:
            dtype = jnp.dtype(config.policy.dtype or default_dtype())
        trees = -(-problems * _first_trees(config, found) // len(chips))
        host = topology.host_chips(chips)
        one = searches.plan(settings, host, memory, shape, trees, dtype)
        if one is None:
            raise UserError('--plan: the search does not fit into the chips of a host')
    made = {}
    for section in ('sft', 'ppm'):
        kind = SECTIONS[section][1]
        if section not in stages or kind not in found.tokens:
            continue
        how = training.settings(section, config.training[section])
        if processor:
            how.dtype = how.dtype or default_dtype()
        mesh = parallel.training_mesh(how.batch_size, shape, chips)
        made[section] = trainings.plan(section, how, shape, mesh, memory, round(found.tokens[kind]))
        if made[section].work is None:
            raise UserError(f'--plan: {section} does not fit into {memory / GIB:g} GiB')
    trunk = models.decoder.abstract_params(shape, headless=True)
    return Plans(one, made, sum(x.size for x in jax.tree.leaves(trunk)))


def limits(plans: Plans, chips: Sequence[Any], chip: Chip) -> Speed:
    """What the chips do at most, each of them like `chip`."""
    # A processor reads and computes by turns.
    both = sum if chips[0].platform == 'cpu' else max
    decoded, read, flight = 0.0, 0.0, 0
    if (search := plans.search) is not None:
        least = both([search.flops / chip.flops, search.floor / chip.bandwidth])
        step = search.step or least
        groups = len(chips) // search.tensor
        decoded, flight = groups * search.slots / step, groups * search.trees
        read = len(chips) * chip.flops / (2 * plans.parameters)
    steps = {}
    for section, one in plans.trainings.items():
        computing = max(topology.least_seconds(one, chip))
        # Parameters and moments are read and written.
        steps[section] = computing + 2 * one.held / chip.bandwidth
    hosts = len({chip.process_index for chip in chips})
    return Speed(decoded, read, steps, hosts, flight)


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
    first ones by their rollouts. When no tree is left to begin, those in flight end one by one, and
    leave as many slots idle as those of the small run did.
    """
    trees = problems * _first_trees(config, found)
    unsolved = problems * (1 - found.solved)
    trees += unsolved * sum(n / config.search.rollouts for n in config.search.more_rollouts)
    rows = {}
    if 'search' in stages:
        tree = found.sampled / (assumed.decode * speed.decoded)
        tree += (found.read + found.scored) / (assumed.prefill * speed.read)
        waves = max(1.0, found.trees / max(speed.flight, 1))  # of the small run
        last = min(trees, speed.flight) * (1 / found.slot_use - 1) * waves
        rows['search'] = assumed.start + max(trees / (1 - assumed.idle), trees + last) * tree
    if 'curate' in stages:
        rows['curate'] = problems * found.curate / speed.hosts
    for section, seconds in speed.steps.items():
        settings = config.training[section]
        examples = problems * found.examples[SECTIONS[section][1]]
        steps = settings.epochs * examples / settings.batch_size  # a last one of few is short
        if settings.get('head') == 'fitted':  # forwards alone, a third of a step
            steps += min(examples, HEAD_MOST) / settings.batch_size / 3
        rows[section] = assumed.start + steps * seconds / assumed.train
    if 'eval' in stages and found.evaluated:
        seconds = found.evaluated / (assumed.decode * speed.decoded)
        seconds += found.evaluated_read / (assumed.prefill * speed.read)
        rows['eval'] = assumed.start + seconds
    return {name: value / 3600 for name, value in rows.items()}
