"""Training data out of a round's trees, by all processes of a job.

    trees, ordered by problem -> as many runs of problems as there are processes
        -> each run's examples and counts, in curate/partK -> joined, in their order

So the examples, their order and counts.json are the same whatever the number of processes.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from rstar_jax import data, steps
from rstar_jax.data.record import Record
from rstar_jax.job import hosts, ledger
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import problems
from rstar_jax.stages.round import Round
from rstar_jax.stages.stage import Ahead, Figures, Stage, Work


class Curate(Stage):
    """Makes SFT examples, preference pairs and trajectories out of the round's trees.

    With curate.rounds=all those of the rounds before it are among them. Or takes those of files,
    where the config names some: then it needs no trees.
    """

    name = 'curate'
    folder = 'curate'
    needs = ('search',)

    def needed(self, round_: Round) -> tuple[str, ...]:
        return () if given(round_) else super().needed(round_)

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        return [] if given(round_) else searches(round_)

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        for kind, path in given(round_).items():
            if path and next(data.IMPORTS[kind](path), None) is None:
                raise UserError(f'curate.{kind}', path, 'holds no example')
        if given(round_):
            problems.overlap(round_)  # the benchmarks can be read
        return []

    def run(self, round_: Round, work: Work) -> Figures:
        if files := given(round_):
            return _store(round_, files, work.folder) if hosts.is_first() else {}
        rules = round_.config.curate.to_dict()
        for key in ('rounds', 'sft', 'pairs'):
            del rules[key]
        find, left_out = _finder(round_), set()

        def kept(trees: Iterable[Record]) -> Iterator[Record]:
            """Those of problems that are in no benchmark, of one named later included."""
            for tree in trees:
                if find(tree.problem.question):
                    left_out.add(tree.problem.index)
                else:
                    yield tree

        counts: dict[str, int] = {}
        writer = 0 if hosts.is_first() else None
        with contextlib.ExitStack() as stack:
            stores = [
                stack.enter_context(data.TreeStore(path, writer)) for path in searches(round_)
            ]
            shares, number = _shares(stores), jax.process_index()
            folders = [work.folder / f'part{n:05d}' for n in range(len(shares))]
            if len(shares) == 1:
                folders = [work.folder]
            if number < len(shares):
                if not len(stores[-1]):
                    where = str(stores[-1].directory)
                    raise UserError(where, expected='holds no trees', remedy='--stages=search')
                trees = data.in_order(stores, *shares[number])
                counts = data.curate_to(kept(trees), folders[number], **rules)
        overlapping = sum(hosts.gathered(len(left_out)))
        if hosts.is_first():
            if len(shares) > 1:
                counts = data.join(folders, work.folder)
            # A run that was killed, of more processes, has left some, too.
            for folder in work.folder.glob('part*'):
                shutil.rmtree(folder)
        return {**counts, 'overlapping': overlapping}

    def describe(self, figures: Figures) -> str:
        text = (
            f'{figures.get("sft", 0):,} SFT examples, {figures.get("pairs", 0):,} preference '
            f'pairs, {figures.get("trajectories", 0):,} trajectories'
        )
        if figures.get('overlapping'):
            text += f'; {figures["overlapping"]:,} problems left out that overlap with a benchmark'
        return text

    def results(self, figures: Figures) -> Mapping[str, str]:
        return {'examples': ''}


def given(round_: Round) -> dict[str, str]:
    """{kind of examples: file} where they come from files in place of trees; '' is an empty set."""
    files = {kind: round_.config.curate[kind] for kind in ('sft', 'pairs')}
    return files if any(files.values()) else {}


def check_examples(round_: Round, stage: str, kind: str, ahead: Ahead) -> None:
    """Raises UserError where the files that stand for trees have no examples for a training.

    kind: of the examples that the stage learns from.
    """
    folder = Curate().place(round_)
    curated = ledger.Stage(folder)
    complete = folder not in ahead.made and curated.done is not None
    # A complete curation has what it was made from, whatever the config names now.
    settings = curated.made_with if complete else round_.settings
    files = {name: settings.get(f'curate.{name}') for name in ('sft', 'pairs')}
    if not any(files.values()) or not (complete or folder in ahead.made):
        return
    if kind not in files:
        raise UserError(
            'training.ppm.loss',
            round_.config.training.ppm.loss,
            f'learns from {kind}, which no file holds',
            'use pairwise, or leave ppm out with --stages',
        )
    if not (len(data.load_examples(folder, kind)) if complete else files[kind]):
        remedy = f'name one and delete {folder}' if complete else 'name one'
        raise UserError(
            f'curate.{kind}',
            files[kind],
            f'{stage} has nothing to train on, as examples come from files',
            f'{remedy}, or leave {stage} out with --stages',
        )


def _finder(round_: Round) -> Callable[[str], str | None]:
    """Finds the benchmark that has a question; a problem has many trees, and examples."""
    return functools.lru_cache(1000)(problems.overlap(round_).find)


def _store(round_: Round, files: dict[str, str], folder: pathlib.Path) -> Figures:
    """Stores the examples of files, without those of problems that are in a benchmark.

    files: as of `given`.
    """
    counts, left_out = {}, set()
    find = _finder(round_)

    def kept(kind: str, path: str) -> Iterator[dict[str, Any]]:
        for example in data.IMPORTS[kind](path):
            question, _ = steps.split_prompt(example['query' if kind == 'sft' else 'prompt'])
            if find(question):
                left_out.add(question)
            else:
                yield example

    for kind, path in files.items():
        counts[kind] = data.store_examples(folder, kind, kept(kind, path) if path else ())
        if path and not counts[kind] and left_out:
            why = 'every example is of a problem in a benchmark'
            raise UserError(f'curate.{kind}', path, why, problems.EVERY)
    return {**counts, 'overlapping': len(left_out)}


def _shares(stores: Sequence[data.TreeStore]) -> list[tuple[float, float]]:
    """What each process curates: problems with an index from the first number on, below the other.

    One share, the first process's, where not all see the same trees: a shared disk may tell late
    of files that others have made.
    """
    keys = [sorted(store.keys()) for store in stores]
    count = jax.process_count() if hosts.alike(keys) else 1
    indices = sorted(index for part in keys for index, _ in part)
    bounds = [indices[n * len(indices) // count] for n in range(1, count)] if indices else []
    bounds = [-math.inf, *bounds, math.inf]
    return list(itertools.pairwise(bounds))


def searches(round_: Round) -> list[pathlib.Path]:
    """The folders of the trees that the round's examples come from, its own last."""
    earlier = round_.earlier('search') if round_.config.curate.rounds == 'all' else []
    return [*earlier, round_.folder / 'search']
