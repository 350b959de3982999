"""What the trees and examples of a small run are like, to plan the whole job by.

    WORKDIR/roundK/{search,curate,policy,ppm,eval} -> Statistics: of a tree, of a problem, of an
    example

The round is the small run's last that has curated.
"""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from rstar_jax import data, search
from rstar_jax.job import ledger
from rstar_jax.settings.errors import UserError

SECTIONS = {'sft': ('policy', 'sft'), 'ppm': ('ppm', 'pairs')}  # folder, kind of example


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


def statistics(workdir: pathlib.Path) -> tuple[int, Statistics]:
    """(round, what its trees and examples are like) of the last round that has curated."""
    done = [row for row in ledger.rounds(workdir) if (row[1] / 'curate' / 'done.json').exists()]
    if not done:
        raise UserError(
            str(workdir),
            expected='holds no round that has curated',
            remedy='plan from a small run, of some hundred problems with the settings of the whole',
        )
    number, folder = done[-1]
    settings = (ledger.read_json(workdir / 'config.json') or {}).get(folder.name, {})
    of_trees = _trees(folder / 'search', settings)
    searching = (ledger.read_json(folder / 'search' / 'done.json') or {}).get('figures', {})
    curated = ledger.read_json(folder / 'curate' / 'done.json')
    figures = curated['figures']
    searched = of_trees.pop('searched')
    problems = figures.get('problems') or searched  # examples out of files: none
    examples, tokens = {}, {}
    for section, (name, kind) in SECTIONS.items():
        trained = ledger.read_json(folder / name / 'done.json')
        if trained and figures.get(kind):
            told = trained['figures']
            examples[kind] = told['examples'] / problems
            seen = told['examples'] * settings[f'training.{section}.epochs']
            tokens[kind] = told['tokens'] / seen
    evaluated, evaluated_read = _evaluated(folder / 'eval')
    return number, Statistics(
        **of_trees,
        examples=examples,
        tokens=tokens,
        curate=curated['seconds'] / problems,
        evaluated=evaluated,
        slot_use=searching.get('slot_use', 1.0),
        evaluated_read=evaluated_read,
    )


def _trees(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the trees tell: fields of `Statistics`, and how many problems were searched."""
    counters: collections.Counter = collections.Counter()
    trees = longest = 0
    first: list[int] | None = None  # what all prompts begin with
    searched, solved = set(), set()
    with data.TreeStore(folder, writer=None) as store:
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
            trees += 1
            counters.update(record.counters)
            searched.add(record.problem.index)
            if record.solved:
                solved.add(record.problem.index)
    if not trees:
        raise UserError(str(folder), expected='holds no trees')
    return {
        'trees': trees,
        'path': longest - len(first or ()),
        'sampled': counters['sampled_tokens'] / trees,
        'read': max(0.0, (counters['policy_computed'] - counters['sampled_tokens']) / trees),
        'scored': counters['ppm_computed'] / trees,
        'solved': len(solved) / len(searched),
        'searched': len(searched),
    }


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
