"""The stage curate: training data out of a round's trees, by all processes of a job.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from rstar_jax import data, search, steps
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Line
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import sources
from rstar_jax.stages.sources import Round


def curate(round_: Round, stage: ledger.Stage, line: Line) -> dict[str, Any]:
    """Makes SFT examples, preference pairs and trajectories out of the round's trees.

    With curate.rounds=all those of the rounds before it are among them.

    Or takes those of files, where the config names some: then it needs no trees.

    Raises:
      UserError: there are no trees; all examples of a file are of problems in a benchmark.
    """
    rules = round_.config.curate.to_dict()
    del rules['rounds']
    given = {kind: rules.pop(kind) for kind in ('sft', 'pairs')}
    if any(given.values()):
        return _given(round_, given, stage.folder) if hosts.is_first() else {}
    find, left_out = _finder(round_), set()

    def kept(trees: Iterable[search.Record]) -> Iterator[search.Record]:
        """Those of problems that are in no benchmark, of one that was named later included."""
        for tree in trees:
            if find(tree.problem.question):
                left_out.add(tree.problem.index)
            else:
                yield tree

    counts: dict[str, int] = {}
    writer = 0 if hosts.is_first() else None
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(data.TreeStore(path, writer)) for path in searches(round_)]
        shares, number = _shares(stores), jax.process_index()
        folders = [stage.folder / f'part{n:05d}' for n in range(len(shares))]
        if len(shares) == 1:
            folders = [stage.folder]
        if number < len(shares):
            if not len(stores[-1]):
                raise UserError(
                    f'{stores[-1].directory}: holds no trees: run the search stage first'
                )
            trees = data.in_order(stores, *shares[number])
            counts = data.curate_to(kept(trees), folders[number], **rules)
    overlapping = sum(hosts.gathered(len(left_out)))
    if hosts.is_first():
        if len(shares) > 1:
            counts = data.join(folders, stage.folder)
        # A run that was killed, of more processes, has left some, too.
        for folder in stage.folder.glob('part*'):
            shutil.rmtree(folder)
    return {**counts, 'overlapping': overlapping}


def _finder(round_: Round) -> Callable[[str], str | None]:
    """Finds the benchmark that has a question; a problem has many trees, and examples."""
    return functools.lru_cache(1000)(sources.overlap(round_).find)


def _given(round_: Round, given: dict[str, str], folder: pathlib.Path) -> dict[str, int]:
    """Stores the examples of files, without those of problems that are in a benchmark.

    given: {kind of examples: file}; '' is an empty set.
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

    for kind, path in given.items():
        counts[kind] = data.store_examples(folder, kind, kept(kind, path) if path else ())
        if path and not counts[kind] and left_out:
            raise UserError(
                f'--config.curate.{kind}={path}: every example is of a problem in a benchmark: '
                'train on others, or on these all the same with --config.data.overlap=0'
            )
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
    earlier = sources.earlier_searches(round_) if round_.config.curate.rounds == 'all' else []
    return [*earlier, round_.folder / 'search']
