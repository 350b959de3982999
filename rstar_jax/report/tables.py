"""A run's tables, as rows of cells: one source for the terminal and for the page.

A table's first row is its heading.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rstar_jax import steps
from rstar_jax.evals import metrics, selection
from rstar_jax.progress import clock, percent
from rstar_jax.report.run import BASE, Figures, Results, Run

Rows = list[list[str]]

HEADINGS = {
    'greedy': 'policy alone',
    'best': 'best score',
    'majority': 'majority',
    'weighted': 'weighted',
    'any': 'any right',
}


def policy_name(number: int | None) -> str:
    """How a round's policy is called: round 0 is what the run started from, None the base model."""
    if number is None:
        return 'base'
    return f'round {number}' if number else 'start'


def accuracy(results: Sequence[Results]) -> Rows:
    """Percent right with the ends of the 95 % interval; a benchmark's rounds follow each other.

    Tokens and seconds are those of the search for one problem, or of the policy alone where there
    was no search.
    """
    table = [
        [
            *('benchmark', 'problems', 'policy', HEADINGS['greedy'], 'answered'),
            *(HEADINGS[mode] for mode in selection.MODES),
            *('tokens', 'seconds'),
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
                    *(share(figures, mode) for mode in selection.MODES),
                    f'{figures["tokens_per_problem"]:,.0f}',
                    f'{figures["seconds_per_problem"]:.2f}',
                ]
            )
            shown, before = '', figures if result['round'] is not None else None
    return table if len(table) > 1 else []


def _worse(before: Figures | None, after: Figures) -> str:
    """What stands beside a policy that solves fewer problems alone than the one before it."""
    if not before or 'greedy_solved' not in before or 'greedy_solved' not in after:
        return ''
    won, lost, chance = metrics.mcnemar(before['greedy_solved'], after['greedy_solved'])
    if won >= lost:
        return ''
    return ' WORSE than the one before' if chance < 0.05 else ' (lower)'


def strategies(results: Sequence[Results]) -> Rows:
    """What each strategy finds at what cost; [] where none but the policy alone was run."""
    rows = []
    for result, name, strategy, figures in _strategies(results):
        flops = figures['flops_per_problem']
        rows.append(
            [
                name,
                policy_name(result['round']),
                strategy,
                str(figures['trajectories']),
                *(_share(figures, figures, mode) for mode in HEADINGS),
                f'{figures["tokens_per_problem"]:,.0f}',
                f'{figures["seconds_per_problem"]:.2f}',
                '-' if flops is None else f'{flops / 1e12:.3g}',
            ]
        )
    if all(row[2] == 'greedy' for row in rows):
        return []
    heading = [*('benchmark', 'policy', 'strategy', 'trees'), *HEADINGS.values()]
    return [[*heading, 'tokens', 'seconds', 'TFLOPs'], *rows]


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
    return [[*heading, 'PPM ranks rightly', 'likelihood does'], *rows] if rows else []


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
    """What has to be known to read the table, and what each round has won or lost."""
    figures = [row for result in results for row in result['benchmarks'].values()]
    counts = {row['search']['trajectories'] for row in figures if row['search']}
    notes = []
    if any('answered' in row for row in figures):
        notes.append('Answered: the share of solutions of the policy alone that reach an answer.')
    if counts:
        of = ' or '.join(map(str, sorted(counts)))
        notes.append(
            f'Percent right [95 % interval]. All but "policy alone": search, {of} trees a problem.'
        )
    return notes + [
        note
        for before, after in itertools.pairwise(results)
        if before['round'] is not None
        for note in compared(
            before, after, policy_name(before['round']), policy_name(after['round'])
        )
    ]


def compared(before: Results, after: Results, old: str, new: str) -> Iterator[str]:
    """What the policy alone has won and lost from `before` to `after`, by benchmark."""
    for name, figures in after['benchmarks'].items():
        other = before['benchmarks'].get(name, {})
        if 'greedy_solved' not in other or 'greedy_solved' not in figures:
            continue
        won, lost, chance = metrics.mcnemar(other['greedy_solved'], figures['greedy_solved'])
        verdict = 'better' if won > lost else 'WORSE'
        if chance >= 0.05:
            verdict = 'no certain difference'
        yield (
            f'{name}, policy alone, {new} against {old}: {won} problems won, {lost} lost: '
            f"{verdict} (p = {chance:.2g}, McNemar's test)"
        )


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, more) of what is asked first; fewer while a run has not come to them."""
    made = []
    for name in benchmarks(run.results)[:1]:
        rows = [(r['round'], r['benchmarks'][name]) for r in run.results if name in r['benchmarks']]
        (first, start), (last, end) = rows[0], rows[-1]
        more = f'{policy_name(last)}, {end["problems"]} problems'
        if last != first:
            more += f'; {policy_name(first)}: {percent(start["greedy"])}'
        made.append((f'{name}, policy alone', percent(end['greedy']), more))
        searched = [(number, row) for number, row in rows if row['search']]
        if searched:
            number, row = searched[-1]
            search = row['search']
            trees = search['trajectories']
            chosen = f'majority of {trees} trees' if trees > 1 else 'one tree'
            more = f'{policy_name(number)}, {chosen}'
            if search.get('any') is not None:
                more += f'; any right: {percent(search["any"])}'
            made.append((f'{name}, with search', percent(search.get('majority')), more))
    searches = [s for s in run.stages if s.name == 'search' and s.figures and s.figures['problems']]
    if searches:
        figures = searches[-1].figures
        part = percent(figures['solved'] / figures['problems'])
        more = f'{figures["solved"]:,} of {figures["problems"]:,}, round {searches[-1].round}'
        made.append(('training problems solved', part, more))
    used = sum(count for row in tokens(run).values() for count in row.values())
    if run.stages:
        total = clock(sum(stage.seconds for stage in run.stages))
        made.append(('time', total, f'{_short(used)} tokens' if used else ''))
    return made


def tokens(run: Run) -> dict[str, dict[int, float]]:
    """{what for: {round: tokens}}: sampled in searches and evaluations, computed in trainings."""
    used: dict[str, dict[int, float]] = {'search': {}, 'training': {}, 'evaluation': {}}
    for stage in run.stages:
        figures = stage.figures or {}
        if stage.name == 'search':
            name, count = 'search', figures.get('tokens', 0)
        elif stage.name in ('eval', BASE):
            rows = figures.values()
            name = 'evaluation'
            count = sum(row['tokens_per_problem'] * row['problems'] for row in rows)
        else:
            name, count = 'training', figures.get('tokens', 0)
        if count:
            used[name][stage.round] = used[name].get(stage.round, 0) + count
    return used


def _short(count: float) -> str:
    """1234567 -> '1.2 million'."""
    for size, word in ((1e9, 'thousand million'), (1e6, 'million'), (1e3, 'thousand')):
        if count >= size:
            return f'{count / size:.1f} {word}'
    return f'{count:.0f}'


def stages(run: Run) -> Rows:
    """What each stage took and made."""
    rows = [['round', 'stage', 'time', 'result']]
    for stage in run.stages:
        text = 'in progress, or stopped'
        if stage.figures is not None:
            text = DESCRIBE[stage.name](stage.figures)
        rows.append([str(stage.round), stage.name, clock(stage.seconds), text])
    rows.append(['', 'all', clock(sum(stage.seconds for stage in run.stages)), ''])
    return rows


def paths(run: Run) -> Rows:
    """Where what a run made lies; without a heading."""
    rows = []
    for stage in run.stages:
        if stage.figures is None:
            continue
        name = BASE if stage.name == BASE else f'round {stage.round}'
        if stage.name == 'export':
            rows += [[f'{name} {kind}', str(stage.folder / p)] for kind, p in stage.figures.items()]
        elif stage.name == 'search':
            rows.append([f'{name} trees', str(stage.folder)])
        elif stage.name == 'curate':
            rows.append([f'{name} examples', str(stage.folder)])
        elif stage.name in ('eval', BASE):
            rows.append([f'{name} results', str(stage.folder / 'results.json')])
    others = {'report': pathlib.Path('report', 'index.html'), 'TensorBoard': pathlib.Path('events')}
    return rows + [
        [name, str(run.root / path)] for name, path in others.items() if (run.root / path).exists()
    ]


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
            trees = f'{other["trees"]:.3g} trees' if other else ''
            cells.append(f'{percent(other["right"])} ({trees})' if other else '-')
        rows.append([*cells, *(percent(line[key]) for key in optional)])
    return rows if lines else []


BESIDE = {
    'in_time': "in the samples' time",
    'samples': 'samples, same tokens',
    'samples_in_time': 'samples, same time',
}


def found(run: Run) -> Rows:
    """From problems to training examples, by round."""
    rows = [['', *(f'round {number}' for number in run.counts)]]
    for key, text in FOUND.items():
        if any(counts.get(key) for counts in run.counts.values()):
            rows.append([text, *(f'{counts.get(key, 0):,}' for counts in run.counts.values())])
    return rows if len(rows) > 1 else []


# What a curation counts, and how it is called.
FOUND = {
    'problems': 'problems searched',
    'problems_solved': 'problems solved',
    'overlapping': 'dropped: problems that overlap with a benchmark',
    'problems_dropped_synthetic': 'dropped: synthetic problems of which too few answers are right',
    'trees': 'trees',
    'trees_solved': 'trees with a right answer',
    'trajectories_correct': 'right trajectories',
    'trajectories_wrong': 'wrong trajectories',
    'trajectories_malformed': 'dropped: right trajectories that leave the form of a solution',
    'steps_cut': 'steps that were stopped: too long, or repeating themselves',
    'trajectories_cut': 'trajectories with such a step',
    'sft': 'SFT examples',
    'sft_dropped_error': 'dropped: "error" in the text of an SFT example',
    'nodes_paired': 'nodes with right and wrong children',
    'pairs': 'preference pairs',
    'pairs_of_trajectories': 'of them, pairs of whole trajectories',
    'pairs_not_ordered': 'dropped: the better step has not the higher Q value',
    'pairs_dropped_margin': 'dropped: Q values too close',
    'pairs_dropped_alike': 'dropped: texts too alike',
    'trajectories': 'trajectories for reward models',
}


def _search(figures: Figures) -> str:
    return (
        f'{figures["trees"]:,} trees, {figures["nodes"]:,} nodes, {figures["tokens"]:,} tokens '
        f'generated ({figures["tokens_per_second"]:.0f}/s), '
        f'{figures["solved"]:,} of {figures["problems"]:,} problems solved'
    )


def _synthesize(figures: Figures) -> str:
    others = {why: n for why, n in figures.items() if why not in ('written', 'new', 'kept')}
    dropped = [f'{n:,} {why}' for why, n in others.items()]
    text = f'{figures.get("kept", 0):,} of {figures["written"]:,} written problems kept'
    return text + (f'; dropped: {", ".join(dropped)}' if dropped else '')


def _curate(figures: Figures) -> str:
    text = (
        f'{figures.get("sft", 0):,} SFT examples, {figures.get("pairs", 0):,} preference pairs, '
        f'{figures.get("trajectories", 0):,} trajectories'
    )
    if figures.get('overlapping'):
        text += f'; {figures["overlapping"]:,} problems left out that overlap with a benchmark'
    return text


def _training(figures: Figures) -> str:
    return (
        f'loss {figures["loss_first"]:.3f} -> {figures["loss_last"]:.3f} in {figures["steps"]} '
        f'steps ({figures["tokens_per_second"]:.0f} tokens/s)'
    )


def _policy(figures: Figures) -> str:
    form = figures.get('form_after')
    if not form:
        return _training(figures)
    shares = {mark: n / due for mark, (n, due) in form.items() if mark not in steps.OUTPUT_MARKS}
    mark = min(shares, key=shares.get)
    least = f'at least {percent(shares[mark])} ({mark})'
    return f'{_training(figures)}, marks likeliest where due: {least}'


def _ppm(figures: Figures) -> str:
    text = _training(figures)
    for name, pairs in (('pair', 'held_out_pairs'), ('answer', 'answer_pairs')):
        if figures.get(pairs):
            text += (
                f', held-out {name} accuracy {percent(figures.get(f"{name}_accuracy_before"))} -> '
                f'{percent(figures.get(f"{name}_accuracy_after"))} ({figures[pairs]:.0f} pairs)'
            )
    return text


def _eval(figures: Figures) -> str:
    return ', '.join(f'{name}: {row["problems"]:,} problems' for name, row in figures.items())


DESCRIBE: dict[str, Callable[[Figures], str]] = {
    'bootstrap': _policy,
    'synthesize': _synthesize,
    'search': _search,
    'curate': _curate,
    'sft': _policy,
    'ppm': _ppm,
    'eval': _eval,
    BASE: _eval,
    'export': lambda figures: ', '.join(figures),
}
