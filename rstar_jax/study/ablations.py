"""What each part of the method is worth: the method with one part replaced, beside itself.

    seed K -> rounds    seedK/run: all rounds, with a PPM in each
           -> variants  seedK/NAME: a workdir of its own in which one thing is done differently;
                        what it has in common with the run, or with another variant, is a link
           -> rows      one number of one variant's evaluation, with what it cost
    rows of all seeds -> ablations.json, report/index.html

A variant is made of stages of `rounds`, with the settings that differ, so it goes on where it was
stopped, and nothing here searches, trains or evaluates by itself.

ablations.json: {"rows": of each seed, "table": of all seeds together, "notes": what follows, in
words}. A row's tokens and seconds are those of the evaluation for one problem; in the group `data`,
those of the search, for one training problem. `in_time` is what the same trees give in the seconds
that the plain samples of as many tokens took, where one tree is done by then; `samples` and
`samples_in_time`, what the majority of plain samples gives for the row's tokens and in its seconds,
where there are so many samples.
"""

import collections
import contextlib
import dataclasses
import math
import os
import pathlib
import statistics
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import evals, report, rounds
from rstar_jax.evals import comparison
from rstar_jax.job import ledger
from rstar_jax.job.progress import clock
from rstar_jax.models import trained
from rstar_jax.report import terminal
from rstar_jax.settings import configs
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import BY_NAME, STAGES, Round, problems, running

Figures = dict[str, Any]
RUN, SEARCHES = 'run', 'searches'
PLAIN, MANY = 'plain', 'many-samples'  # without a PPM
JUDGES = {'ORM': 'orm', 'PQM': 'pqm', 'PRM': 'prm', 'PPM': 'pairwise'}
FORMS = {
    'greedy': (PLAIN, 'greedy', 'greedy'),
    'majority': (PLAIN, 'sampled', 'majority'),
    'best of n': (SEARCHES, 'sampled', 'best'),
    'beam': (SEARCHES, 'beam', 'majority'),
    'DVTS': (SEARCHES, 'dvts', 'majority'),
    'MCTS': (SEARCHES, 'mcts', 'majority'),
    'PUCT': (SEARCHES, 'puct', 'majority'),
}
TITLES = {
    'data': 'What SFT learns from: greedy after one round, for as many tokens of search',
    'judge': 'Judge: models of the last round, for as many tokens',
    'strength': 'PPM of each round, with the policy of the first, for as many tokens',
    'form': 'Form of the search: models of the last round, for as many tokens',
    'rollouts': 'Rollouts of one tree: models of the last round',
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A workdir in which something is done differently.

    Attributes:
      name: of its folder.
      round: the one whose stages it runs.
      shared: {its folder: the folder that is linked there}, below `round` or the seed's folder.
      stages: those that it runs itself.
      settings: what differs, by key of the config.
    """

    name: str
    round: int
    shared: Mapping[str, str]
    stages: tuple[str, ...]
    settings: Mapping[str, Any]


ITSELF = Variant(RUN, 1, {}, (), {})  # the run, in which nothing differs; its row is of round 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One number: of which variant, of which strategy of its evaluation, chosen how."""

    group: str
    name: str
    variant: str
    strategy: str = 'greedy'
    mode: str = 'greedy'


def variants(config: ConfigDict, tokens: int = 0) -> dict[str, list[Variant]]:
    """{group: its variants}; in the group '' those that several groups use.

    tokens: that the run's first search sampled for a problem; as many samples are trained on.
    """
    last, judged = config.last_round, _judged(config)

    def of(number: int, *names: str, other: int | None = None) -> dict[str, str]:
        return {f'round{number}/{name}': f'{RUN}/round{other or number}/{name}' for name in names}

    start = of(0, 'policy') if config.bootstrap.demonstrations else {}
    searched = start | of(1, 'synthesize')  # where the run has written problems
    learn = 'curate', 'sft', 'eval'
    samples = {'strategy': 'mcts', 'candidates': 1, 'rollouts': 1, 'mean_tokens': tokens}
    samples = {f'search.{key}': value for key, value in samples.items()}
    samples['search.more_rollouts'] = ()
    from_samples = start | {'round1/search': 'self-samples/round1/search'}
    alone = {'eval.strategies': 'greedy', 'eval.mean_tokens': 0}
    right, random = {'curate.choice': 'right'} | alone, {'curate.choice': 'any'} | alone
    own = of(last, 'policy', 'ppm')
    few = {'eval.mean_tokens': 0, 'eval.limit': config.ablations.problems or config.eval.limit}
    one_tree = few | {'eval.strategies': 'mcts', 'eval.trajectories': 1}
    most = max(config.ablations.rollouts, default=1)
    many = few | {'eval.strategies': 'sampled', 'eval.samples': most}
    return {
        'data': [
            Variant('self-samples', 1, searched, ('search', *learn), samples | random),
            Variant('rejection', 1, from_samples, learn, right),
            Variant('unranked', 1, start | of(1, 'search'), learn, right),
        ],
        '': [
            Variant(
                PLAIN, last, of(last, 'policy'), ('eval',), {'eval.strategies': 'sampled,unguided'}
            ),
            Variant(
                SEARCHES, last, own, ('eval',), {'eval.strategies': 'sampled,beam,dvts,mcts,puct'}
            ),
        ],
        'judge': [
            Variant(
                loss, last, of(last, 'policy', 'curate'), ('ppm', 'eval'),
                {'training.ppm.loss': loss, 'eval.strategies': 'sampled,mcts'},
            )
            for loss in JUDGES.values()
            if loss != config.training.ppm.loss
        ],
        'strength': [
            Variant(
                f'ppm{number}', 1, of(1, 'policy') | of(1, 'ppm', other=number), ('eval',),
                {'eval.strategies': 'unguided,mcts' if number == judged[0] else 'mcts'},
            )
            for number in judged
        ],
        'rollouts': [
            Variant(MANY, last, of(last, 'policy'), ('eval',), many),
            *(
                Variant(f'rollouts{n}', last, own, ('eval',), one_tree | {'eval.rollouts': n})
                for n in config.ablations.rollouts
            ),
        ],
    }  # fmt: skip


def check(config: ConfigDict, stages: str) -> None:
    """Raises UserError for what ablations cannot do."""
    if not config.eval.benchmarks:
        raise UserError('--config.eval.benchmarks=: ablations compare what is right of some')
    if config.first_round > 1:
        raise UserError(f'--config.first_round={config.first_round}: ablations begin with round 1')
    for number in range(1, config.last_round + 1):
        settings = configs.for_round(config, number).eval
        for key in ('tokens', 'agree'):
            if settings[key]:
                raise UserError(
                    f'--config.eval.{key}={settings[key]}: ablations need as many trees of each '
                    f'problem: set it to 0 in round {number}'
                )
        if not settings.trajectories:
            raise UserError(
                '--config.eval.trajectories=0: ablations compare searches: needs at least 1 in '
                f'round {number}'
            )
    first = configs.for_round(config, 1)
    if 'data' in configs.groups_of(config.ablations.groups):
        ran = rounds.rows(config, configs.stages_of(config.stages))
        ran = {stage.name for number, stage in ran if number == 1}
        lacking = [x for x in ('search', 'curate', 'sft', 'eval') if x not in ran]
        given = first.curate.sft or first.curate.pairs
        if lacking or given:
            why = f'examples come from {given}' if given else f'round 1 has no {lacking[0]}'
            raise UserError(
                f'--config.ablations.groups: data compares what round 1 learns from, and {why}: '
                'change that, or name other groups'
            )
        if first.search.candidates == 1:
            raise UserError(
                '--config.ablations.groups: data compares trees with samples, and round 1 draws '
                'samples (search.candidates=1): give it trees, as by --config.search.candidates=3 '
                '--config.search.rollouts=4 --config.search.trees=1 --config.curate.choice=best'
            )
    if stages:
        raise UserError(
            f'--stages={stages}: ablations run all; --config.stages says which the rounds have, '
            '--config.ablations.groups what is compared'
        )
    if jax.process_count() > 1:
        raise UserError(
            f'--config.ablations.seeds: needs one process, {jax.process_count()} were started'
        )


def _judged(config: ConfigDict) -> list[int]:
    """The rounds that train a PPM."""
    names = configs.stages_of(config.stages)
    return [number for number, stage in rounds.rows(config, names) if stage.name == 'ppm']


def rows_of(config: ConfigDict) -> Iterator[Row]:
    """All rows, group by group, in the order of the table."""
    yield Row('data', 'self-samples', 'self-samples')
    yield Row('data', 'rejection sampling', 'rejection')
    yield Row('data', 'trees, any right trajectory', 'unranked')
    yield Row('data', 'trees, best by Q value', RUN)
    yield Row('judge', 'no judge, MCTS', PLAIN, 'unguided', 'majority')
    for name, loss in JUDGES.items():
        variant = SEARCHES if loss == config.training.ppm.loss else loss
        yield Row('judge', f'{name}, best of n', variant, 'sampled', 'best')
        yield Row('judge', f'{name}, MCTS', variant, 'mcts', 'majority')
    judged = _judged(config)
    yield Row('strength', 'no PPM', f'ppm{judged[0]}', 'unguided', 'majority')
    for number in judged:
        yield Row('strength', f'PPM of round {number}', f'ppm{number}', 'mcts', 'majority')
    for name, (variant, strategy, mode) in FORMS.items():
        yield Row('form', name, variant, strategy, mode)
    for number in config.ablations.rollouts:
        yield Row('rollouts', str(number), f'rollouts{number}', 'mcts', 'majority')


def ours(config: ConfigDict) -> dict[str, str]:
    """{group: the row that has all parts of the method}."""
    return {
        'data': 'trees, best by Q value',
        'judge': 'PPM, MCTS',
        'strength': f'PPM of round {config.last_round}',
        'form': 'MCTS',
    }


def run(config: ConfigDict, workdir: str) -> None:
    """Runs what is not complete yet, for all seeds and chosen groups, and writes what came of it.

    Raises:
      UserError: as `rounds.run`; or the last round trains no PPM.
    """
    if config.last_round not in _judged(config):
        raise UserError(
            f'--config.stages={config.stages}: ablations need a PPM of the last round: add ppm '
            f'here, and to --config.schedule.round{config.last_round}.stages where it is set'
        )
    root = pathlib.Path(workdir)
    first = config.seed
    seeds = [Seed(config, root, first + i) for i in range(config.ablations.seeds)]
    chosen = configs.groups_of(config.ablations.groups)
    with ledger.lock(root):
        progress = _Progress(seeds, chosen)
        for seed in seeds:
            with progress.part(seed, RUN):
                seed.run_rounds()
            for variant in seed.variants(chosen):
                with progress.part(seed, variant.name):
                    seed.run_variant(variant)
                _write(config, root, seeds, chosen)
            report.write(root, STAGES)
    terminal.show(root, STAGES)


class Seed:
    """One seed's run and its variants, in a folder of their own."""

    def __init__(self, config: ConfigDict, root: pathlib.Path, seed: int):
        self.config, self.seed = config.copy_and_resolve_references(), seed
        self.root = root / f'seed{seed}'
        self.config.seed = seed
        self._rows: dict[Row, Figures] = {}

    def run_rounds(self) -> None:
        """The whole run, which all variants differ from."""
        names = configs.stages_of(self.config.stages)
        running.run_all(
            [
                (Round(configs.for_round(self.config, number), self.root / RUN, number), stage)
                for number, stage in rounds.rows(self.config, names)
            ]
        )

    def variants(self, groups: Sequence[str]) -> list[Variant]:
        """Those of the groups; the run has to be complete, but for their number and names."""
        done = ledger.read_json(self.root / RUN / 'round1' / 'search' / 'done.json')
        figures = done['figures'] if done else {'tokens': 0, 'problems': 1}
        found = variants(self.config, round(figures['tokens'] / figures['problems']))
        used = [''] if {'judge', 'form'} & set(groups) else []
        return [variant for group in (*used, *groups) for variant in found.get(group, ())]

    def run_variant(self, variant: Variant) -> None:
        """Links what it shares, and runs its stages."""
        root = self.root / variant.name
        round_ = self.round(variant)
        shared = dict(variant.shared)
        policy = shared.get(f'round{variant.round}/policy')
        if policy:  # whose greedy solutions are there already
            for name in problems.benchmarks(round_):
                greedy = pathlib.PurePath('eval', name, 'greedy')
                shared[f'round{variant.round}/{greedy}'] = f'{policy.rpartition("/")[0]}/{greedy}'
        for place, target in shared.items():
            link, there = root / place, self.root / target
            if link.is_symlink() and not link.exists():
                link.unlink()
            if there.exists() and not link.exists():  # not every round is evaluated
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(there, link.parent))
        running.run_all([(round_, BY_NAME[name]) for name in variant.stages])

    def round(self, variant: Variant) -> Round:
        """The round of a variant."""
        config = self.config.copy_and_resolve_references()
        configs.command_line_wins(config, variant.settings)
        config.update_from_flattened_dict(variant.settings)
        made = configs.for_round(config, variant.round)
        return Round(made, self.root / variant.name, variant.round)

    def seconds(self, name: str) -> float:
        """What the stages of a part have taken, all commands together."""
        done = (self.root / name).glob('*/*/done.json')
        own = [path for path in done if not path.parent.is_symlink()]
        return sum(ledger.read_json(path)['seconds'] for path in own)

    def rows(self, groups: Sequence[str]) -> Iterator[Figures]:
        """The rows of the groups whose variants are complete."""
        found = {variant.name: variant for variant in (ITSELF, *self.variants(groups))}
        for row in rows_of(self.config):
            if row.group not in groups:
                continue
            variant = found[row.variant]
            done = self.root / variant.name / f'round{variant.round}' / 'eval' / 'done.json'
            if row not in self._rows and done.exists():
                name = {'group': row.group, 'row': row.name, 'seed': self.seed}
                samples = found.get(MANY if row.group == 'rollouts' else PLAIN)
                samples = samples and self.round(samples)
                self._rows[row] = name | _figures(row, self.round(variant), samples)
            if row in self._rows:
                yield self._rows[row]


def _figures(row: Row, round_: Round, samples: Round | None) -> Figures:
    """What a row came to, with its costs.

    samples: the evaluation that holds plain samples for as many tokens.
    """
    made = _measured(round_, row.strategy, row.mode)
    if row.group == 'data':
        done = ledger.read_json(round_.folder / 'search' / 'done.json')
        figures = {**done['figures'], 'seconds': done['seconds']}
        for key in ('trees', 'tokens', 'seconds'):
            made[key] = figures[key] / figures['problems']
    elif samples is not None and row.group != 'strength' and row.strategy != 'greedy':
        plain = _measured(samples, 'sampled', 'majority')
        if row.group == 'rollouts':
            for name, key in (('samples', 'tokens'), ('samples_in_time', 'seconds')):
                count = round(plain['trees'] * made[key] / plain[key])
                if 1 <= count <= plain['trees']:  # else there are not so many
                    part = count / plain['trees']
                    made[name] = _first(samples, round_, 'sampled', 'majority', plain, part)
        else:
            part = min(1.0, plain['seconds'] / made['seconds'])
            if part * made['trees'] >= 1:  # else not even one tree is done in the time
                made['in_time'] = _first(round_, round_, row.strategy, row.mode, made, part)
    return made


def _measured(round_: Round, strategy: str, mode: str) -> Figures:
    """What a complete evaluation tells of a strategy, all benchmarks together."""
    results = ledger.read_json(round_.folder / 'eval' / 'results.json')['benchmarks']
    made = comparison.pooled(
        {name: (row['problems'], row['strategies'][strategy]) for name, row in results.items()},
        mode,
    )
    if all('asked' in row for row in results.values()):  # not of an earlier version
        made['asked'] = {
            name: [zlib.crc32(repr(row['asked']).encode()), row['problems']]
            for name, row in results.items()
        }
    return made


def _first(
    round_: Round, asked: Round, strategy: str, mode: str, whole: Figures, part: float
) -> Figures:
    """What a part of the trees of each problem, the first ones, would have given.

    Of several benchmarks, which may have other numbers of trees, it is the same part.

    asked: whose problems. whole: what all trees gave, and took.
    """
    results = ledger.read_json(round_.folder / 'eval' / 'results.json')['benchmarks']
    scored = strategy != 'unguided' and trained.holds(round_.folder / 'ppm')
    found = {}
    for name, own in problems.benchmarks(asked).items():
        trees = part * results[name]['strategies'][strategy]['trajectories']
        figures = evals.read(
            round_.folder / 'eval', name, own, strategy, max(1, int(trees + 1e-9)),
            scored=scored, top=round_.config.eval.top,
        )  # fmt: skip
        found[name] = len(own), figures
    made = comparison.pooled(found, mode)
    return made | {'seconds': whole['seconds'] * made['trees'] / whole['trees']}


def _write(config: ConfigDict, root: pathlib.Path, seeds: Sequence[Seed], groups) -> None:
    """Writes ablations.json, of what is complete."""
    rows = [row for seed in seeds for row in seed.rows(groups)]
    best = ours(config)
    made = {
        'titles': {name: TITLES[name] for name in groups},
        'rows': rows,
        'table': comparison.table(rows),
        'notes': comparison.notes(rows, best),
    }
    ledger.write_json(root / 'ablations.json', made)


class _Progress:
    """Tells which part of how many runs, and what is left, by what the same part took before."""

    def __init__(self, seeds: Sequence[Seed], groups: Sequence[str]):
        self._left = [(seed, name) for seed in seeds for name in _parts(seed, groups)]
        self._count, self._spent = len(self._left), collections.defaultdict(list)
        self._started = time.monotonic()

    @contextlib.contextmanager
    def part(self, seed: Seed, name: str) -> Iterator[None]:
        """Around the work of a part, in their order."""
        number = self._count - len(self._left) + 1
        gone = clock(time.monotonic() - self._started)
        print(
            f'ablations: part {number} of {self._count}, seed {seed.seed}, {name}: {gone} gone, '
            f'about {clock(self._seconds_left())} left',
            flush=True,
        )
        yield
        self._left.pop(0)
        self._spent[name].append(seed.seconds(name))

    def _seconds_left(self) -> float:
        """nan while no variant is complete. Parts that were complete before count as others do."""
        known = {name: statistics.mean(spent) for name, spent in self._spent.items()}
        others = [seconds for name, seconds in known.items() if name != RUN]
        if not others:
            return math.nan
        mean = statistics.mean(others)
        return sum(known.get(name, mean) for _, name in self._left)


def _parts(seed: Seed, groups: Sequence[str]) -> list[str]:
    return [RUN, *(variant.name for variant in seed.variants(groups))]
