"""A run's tables, as rows of cells: one source for the terminal and for the page.

A table's first row is its heading.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rstar_jax.evals import metrics, selection
from rstar_jax.job.progress import clock, mean, percent
from rstar_jax.report.run import Figures, Results, Run
from rstar_jax.settings.kinds import BASE

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


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, more) of what is asked first; fewer while a run has not come to them."""
    made = []
    for name in benchmarks(run.results)[:1]:
        rows = [(r['round'], r['benchmarks'][name]) for r in run.results if name in r['benchmarks']]
        (first, start), (last, end) = rows[0], rows[-1]
        more = f'{policy_name(last)}, {end["problems"]} problems'
        if last != first:
            more = f'{policy_name(last)}; {policy_name(first)}: {percent(start["greedy"])}'
        made.append((f'{name}, policy alone', percent(end['greedy']), more))
        searched = [(number, row) for number, row in rows if row['search']]
        if searched:
            number, row = searched[-1]
            search = row['search']
            trees = search['trajectories']
            chosen = f'majority of {mean(trees)} trees' if trees > 1 else 'one tree a problem'
            more = f'{policy_name(number)}, {chosen}'
            if trees > 1 and search.get('any') is not None:
                more += f'; any right: {percent(search["any"])}'
            made.append((f'{name}, with search', percent(search.get('majority')), more))
    for number, (solved, problems) in [*training_solved(run).items()][-1:]:
        by = f'rounds 1 to {number}' if number > 1 and leaves_out(run) else f'round {number}'
        more = f'{solved:,} of {problems:,}, {by}'
        made.append(('training problems solved', percent(solved / problems), more))
    used = sum(count for row in tokens(run).values() for count in row.values())
    if run.stages:
        seconds = sum(stage.seconds for stage in run.stages)
        unit = 'h:min:s' if round(seconds) >= 3600 else 'min:s'
        made.append((f'time, {unit}', clock(seconds), f'{_short(used)} tokens' if used else ''))
    return made


def training_solved(run: Run) -> dict[int, tuple[int, int]]:
    """{round: (problems solved, searched)}; all so far, where rounds leave out what is solved."""
    found = {}
    for stage in run.stages:
        if stage.name == 'search' and stage.figures:
            counts = stage.figures['so_far']
            if counts['problems']:
                found[stage.round] = counts['solved'], counts['problems']
    return found


def leaves_out(run: Run) -> bool:
    """Whether rounds leave out of their searches what earlier ones have solved."""
    return any(settings.get('data.solved') for settings in run.settings.values())


def tokens(run: Run) -> dict[str, dict[int, float]]:
    """{what for: {round: tokens}}: sampled in searches and evaluations, computed in trainings."""
    names = 'synthesize', 'search', 'training', 'evaluation'
    used: dict[str, dict[int, float]] = {name: {} for name in names}
    for stage in run.stages:
        figures = stage.figures or {}
        if stage.name in ('synthesize', 'search'):
            name, count = stage.name, figures.get('tokens', 0)
        elif stage.name in ('eval', BASE):
            name = 'evaluation'
            count = sum(map(_evaluated, figures.values()))
        else:
            name, count = 'training', figures.get('tokens', 0)
        if count:
            used[name][stage.round] = used[name].get(stage.round, 0) + count
    return used


def _evaluated(row: Figures) -> float:
    """Tokens that an evaluation sampled on a benchmark, by all strategies."""
    told = row.get('strategies', {}).values() or [row]  # an earlier version had no strategies
    return row['problems'] * sum(figures['tokens_per_problem'] for figures in told)


def _short(count: float) -> str:
    """1234567 -> '1.2 million'."""
    for size, word in ((1e9, 'thousand million'), (1e6, 'million'), (1e3, 'thousand')):
        if count >= size:
            return f'{count / size:.1f} {word}'
    return f'{count:.0f}'


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


def found(run: Run) -> Rows:
    """From problems to training examples, by round."""
    rows = [['', *(f'round {number}' for number in run.counts)]]
    for key, text in FOUND.items():
        if any(counts.get(key) for counts in run.counts.values()):
            rows.append([text, *(f'{counts.get(key, 0):,}' for counts in run.counts.values())])
    return rows if len(rows) > 1 else []


def found_note(run: Run) -> str:
    """What has to be known to read that table; '' where it is of each round's own trees."""
    if len(run.counts) < 2 or not any(
        settings.get('curate.rounds') == 'all' for settings in run.settings.values()
    ):
        return ''
    return 'Each column is of the trees of its round and of those before it (curate.rounds=all).'


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
