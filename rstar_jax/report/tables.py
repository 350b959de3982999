"""The tables of accuracies, as rows of cells: one source for the terminal and for the page.

A table's first row is its heading.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rstar_jax.evals import metrics, selection
from rstar_jax.job.progress import mean, percent
from rstar_jax.report.run import Figures, Results, Run

Rows = list[list[str]]

HEADINGS = {
    'greedy': 'policy alone',
    'best': 'best score',
    'majority': 'majority',
    'weighted': 'weighted',
    'pooled': 'all answers',
    'any': 'any right',
}


def policy_name(number: int | None) -> str:
    """How a round's policy is called: round 0 is what the run started from, None the base model."""
    if number is None:
        return 'base'
    return f'round {number}' if number else 'start'


def accuracy(results: Sequence[Results]) -> Rows:
    """Percent right with the ends of the 95 % interval; a benchmark's rounds follow each other.

    Tokens, seconds and FLOPs are those of the search for one problem, or of the policy alone where
    there was no search. What no round tells has no column.
    """
    modes = modes_of(results)
    table = [
        [
            *('benchmark', 'problems', 'policy', HEADINGS['greedy'], 'answered'),
            *modes.values(),
            *('tokens', 'seconds', 'FLOPs'),
        ]
    ]
    for name in benchmarks(results):
        shown, before = name, None
        for result in results:
            figures = result['benchmarks'].get(name)
            if figures is None:
                continue
            table.append(
                [
                    shown,
                    str(figures['problems']),
                    policy_name(result['round']) + _worse(before, figures),
                    share(figures, 'greedy'),
                    percent(figures.get('answered')),
                    *(share(figures, mode) for mode in modes),
                    *_cost(figures),
                ]
            )
            shown, before = '', figures if result['round'] is not None else None
    columns = [column for column in zip(*table) if set(column[1:]) != {'-'}]
    return [list(row) for row in zip(*columns)] if len(table) > 1 else []


def modes_of(results: Iterable[Results]) -> dict[str, str]:
    """{how a search's answer is chosen: heading}; of one tree a problem, its best or by all."""
    rows = [row['search'] for result in results for row in result['benchmarks'].values()]
    if {row['trajectories'] for row in rows if row} == {1}:
        return {'majority': 'with search', 'pooled': HEADINGS['pooled']}
    return {mode: HEADINGS[mode] for mode in selection.MODES}


def _cost(figures: Figures) -> list[str]:
    """Tokens, seconds and FLOPs for a problem."""
    flops = figures.get('flops_per_problem')
    return [
        f'{figures["tokens_per_problem"]:,.0f}',
        f'{figures["seconds_per_problem"]:.2f}',
        '-' if flops is None else _with_prefix(flops),
    ]


def _with_prefix(count: float) -> str:
    """1234567 -> '1.23 M'."""
    for size, letter in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G')):
        if count >= size:
            return f'{count / size:.3g} {letter}'
    return f'{count / 1e6:.3g} M'


def _worse(before: Figures | None, after: Figures) -> str:
    """What stands beside a policy that solves fewer problems alone than the one before it."""
    solved = _solved(before or {}, after)
    if solved is None:
        return ''
    won, lost, chance = metrics.mcnemar(*solved[:2])
    if won >= lost:
        return ''
    return ' WORSE than the one before' if chance < 0.05 else ' (lower)'


def _solved(before: Figures, after: Figures) -> tuple[list[int], list[int], str] | None:
    """What two policies solve alone of the problems that both were asked, and how many these are.

    The number is '' where it is all; the whole is None where it is none, or nothing is known. An
    earlier version did not keep what was asked: then the same indices are the same problems.
    """
    solved = [figures.get('greedy_solved') for figures in (before, after)]
    asked = [figures.get('asked') for figures in (before, after)]
    if None in solved:
        return None
    if None in asked:
        return *solved, ''
    both = {int(index) for index, question in asked[0].items() if asked[1].get(index) == question}
    if not both:
        return None
    fewer = f', of the {len(both):,} asked of both' if len(both) < max(map(len, asked)) else ''
    return *([i for i in one if i in both] for one in solved), fewer


def strategies(results: Sequence[Results]) -> Rows:
    """What each strategy finds at what cost; [] where the table of accuracies has told it all."""
    told = [row for result in results for row in result['benchmarks'].values()]
    if all(len(row.get('strategies', ())) <= 1 + bool(row['search']) for row in told):
        return []
    rows = []
    for result, name, strategy, figures in _strategies(results):
        rows.append(
            [
                name,
                policy_name(result['round']),
                strategy,
                mean(figures['trajectories']),
                *(_share(figures, figures, mode) for mode in HEADINGS),
                *_cost(figures),
            ]
        )
    heading = [*('benchmark', 'policy', 'strategy', 'trees'), *HEADINGS.values()]
    return [[*heading, 'tokens', 'seconds', 'FLOPs'], *rows]


def judges(results: Sequence[Results]) -> Rows:
    """How often PPM and policy rank a right answer above a wrong one; [] where nothing tells."""
    rows = []
    for result, name, strategy, figures in _strategies(results):
        judge = figures['judge']
        if judge and judge['pairs']:
            rows.append(
                [
                    name,
                    policy_name(result['round']),
                    strategy,
                    f'{judge["pairs"]:,} of {judge["problems"]:,} problems',
                    _share(judge, judge, 'auc'),
                    _share(judge, judge, 'auc_likelihood'),
                ]
            )
    heading = ['benchmark', 'policy', 'answers of', 'pairs right-wrong']
    return [[*heading, 'PPM ranks rightly, %', 'likelihood, %'], *rows] if rows else []


def _strategies(results: Sequence[Results]) -> Iterator[tuple[Results, str, str, Figures]]:
    for name in benchmarks(results):
        for result in results:
            row = result['benchmarks'].get(name, {})
            for strategy, figures in row.get('strategies', {}).items():
                yield result, name, strategy, figures


def benchmarks(results: Iterable[Results]) -> list[str]:
    """The names of all benchmarks, in their order."""
    return list(dict.fromkeys(name for result in results for name in result['benchmarks']))


def share(figures: Mapping[str, Any], mode: str) -> str:
    """A share of a benchmark's problems, '58.0 [51-65]'; '-' where there is none."""
    return _share(figures if mode == 'greedy' else figures['search'] or {}, figures, mode)


def _share(source: Mapping[str, Any], about: Mapping[str, Any], key: str) -> str:
    if source.get(key) is None:
        return '-'
    low, high = about['interval95'][key]
    return f'{100 * source[key]:.1f} [{100 * low:.0f}-{100 * high:.0f}]'


def accuracy_notes(results: Sequence[Results]) -> list[str]:
    """What has to be known to read the table, and what each round, and all, have won or lost."""
    figures = [row for result in results for row in result['benchmarks'].values()]
    counts = {row['search']['trajectories'] for row in figures if row['search']}
    if not figures:
        return []
    searched = ''
    if counts:
        of = ' or '.join(map(mean, sorted(counts))) + ' trees' if counts != {1} else 'one tree'
        searched = f' and of the search with {of} a problem'
    notes = [f'Percent right [95 % interval] of the policy alone{searched}.']
    if any('answered' in row for row in figures):
        notes.append('Answered: the share of solutions of the policy alone that reach an answer.')
    notes.append('Tokens, seconds and FLOPs are for one problem, of the search where there is one.')
    if any((row['search'] or {}).get('pooled') is not None for row in figures):
        one = '; weighted: the best of each' if counts != {1} else ''
        notes.append(f'All answers: those of all trees vote, weighted by their PPM scores{one}.')
    if judges(results):
        notes.append(
            'Ranks rightly: how often the PPM scores a right answer above a wrong one of the same '
            "problem; likelihood: how often the policy's own does."
        )
    if strategies(results):
        notes.append(
            'Majority and any right count one answer a tree, its best by score; without a PPM, all.'
        )
    rounds = [result for result in results if result['round'] is not None]
    pairs = [*itertools.pairwise(rounds)]
    if len(rounds) > 2:
        pairs.append((rounds[0], rounds[-1]))
    return notes + [
        note
        for before, after in pairs
        for note in compared(
            before, after, policy_name(before['round']), policy_name(after['round'])
        )
    ]


def compared(before: Results, after: Results, old: str, new: str) -> Iterator[str]:
    """What the policy alone has won and lost from `before` to `after`, by benchmark.

    Of the problems that both were asked; nothing where there are none.
    """
    for name, figures in after['benchmarks'].items():
        solved = _solved(before['benchmarks'].get(name, {}), figures)
        if solved is None:
            continue
        won, lost, chance = metrics.mcnemar(*solved[:2])
        verdict = 'better' if won > lost else 'WORSE'
        if chance >= 0.05:
            verdict = 'no certain difference'
        yield (
            f'{name}, policy alone, {new} against {old}: {won} problems won, {lost} lost'
            f"{solved[2]}: {verdict} (p = {chance:.2g}, McNemar's test)"
        )


def side_by_side(one: Run, other: Run) -> Iterator[str]:
    """What the policy of the latest round that both have has won and lost in the other run."""
    before, after = ({row['round']: row for row in run.results} for run in (one, other))
    for number in [number for number in before if number in after][-1:]:
        for note in compared(before[number], after[number], one.name, other.name):
            yield f'{policy_name(number)}: {note}'


def ablations(made: Mapping[str, Any], group: str) -> Rows:
    """The lines of one group of ablations.json, of all seeds together."""
    lines = [line for line in made['table'] if line['group'] == group]
    others = {key: text for key, text in BESIDE.items() if any(key in line for line in lines)}
    heading = ['', 'right', 'seeds', 'trees', 'tokens', 'seconds', *others.values()]
    optional = {'any': HEADINGS['any'], 'judge': 'ranks rightly'}
    optional = {k: text for k, text in optional.items() if any(x[k] is not None for x in lines)}
    rows = [[*heading, *optional.values()]]
    for line in lines:
        spread = f'{100 * line["least"]:.0f}-{100 * line["most"]:.0f}'
        cells = [
            line['row'],
            _share(line, {'interval95': {'right': line['interval95']}}, 'right'),
            f'{line["seeds"]}: {spread}',
            f'{line["trees"]:.3g}',
            f'{line["tokens"]:,.0f}',
            f'{line["seconds"]:.2f}',
        ]
        for key in others:
            other = line.get(key)
            trees = f'{other["trees"]:.3g} tree{"s" * (other["trees"] != 1)}' if other else ''
            cells.append(f'{percent(other["right"])} ({trees})' if other else '-')
        rows.append([*cells, *(percent(line[key]) for key in optional)])
    return rows if lines else []


BESIDE = {
    'in_time': "in the samples' time",
    'samples': 'samples, same tokens',
    'samples_in_time': 'samples, same time',
}
