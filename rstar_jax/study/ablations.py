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
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rstar_jax import report, rounds
from rstar_jax.evals import comparison
from rstar_jax.job import ledger
from rstar_jax.job.progress import clock
from rstar_jax.report import terminal
from rstar_jax.settings import command_line_wins, for_round, groups_of, stages_of
from rstar_jax.stages import BY_NAME, STAGES, Round, problems, running
from rstar_jax.study.figures import Figures, figures
from rstar_jax.study.variants import (
    ITSELF,
    MANY,
    PLAIN,
    RUN,
    TITLES,
    Row,
    Variant,
    ours,
    rows_of,
    variants,
)

RunStages = Callable[[list[rounds.Row]], Any]


def run(config: ConfigDict, workdir: str, run_stages: RunStages = running.run_all) -> None:
    """Runs what is not complete yet, for all seeds and chosen groups, and writes what came of it.

    run_stages: does the stages that are not complete.

    Raises:
      UserError: as `rounds.run`.
    """
    root = pathlib.Path(workdir)
    first = config.seed
    seeds = [Seed(config, root, first + i, run_stages) for i in range(config.ablations.seeds)]
    chosen = groups_of(config.ablations.groups)
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

    def __init__(self, config: ConfigDict, root: pathlib.Path, seed: int, run_stages: RunStages):
        self.config, self.seed = config.copy_and_resolve_references(), seed
        self.root = root / f'seed{seed}'
        self.config.seed = seed
        self._run_stages = run_stages
        self._rows: dict[Row, Figures] = {}

    def run_rounds(self) -> None:
        """The whole run, which all variants differ from."""
        names = stages_of(self.config.stages)
        self._run_stages(
            [
                (Round(for_round(self.config, number), self.root / RUN, number), stage)
                for number, stage in rounds.rows(self.config, names)
            ]
        )

    def variants(self, groups: Sequence[str]) -> list[Variant]:
        """Those of the groups; the run has to be complete, but for their number and names."""
        done = ledger.read_json(self.root / RUN / 'round1' / 'search' / 'done.json')
        told = done['figures'] if done else {'tokens': 0, 'problems': 1}
        found = variants(self.config, round(told['tokens'] / told['problems']))
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
        self._run_stages([(round_, BY_NAME[name]) for name in variant.stages])

    def round(self, variant: Variant) -> Round:
        """The round of a variant."""
        config = self.config.copy_and_resolve_references()
        command_line_wins(config, variant.settings)
        config.update_from_flattened_dict(variant.settings)
        made = for_round(config, variant.round)
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
                self._rows[row] = name | figures(row, self.round(variant), samples)
            if row in self._rows:
                yield self._rows[row]


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
