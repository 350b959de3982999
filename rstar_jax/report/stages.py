"""A run's stages: what each took and made, where it lies, and what is asked of it first."""

import pathlib

from rstar_jax.job.progress import clock, mean, percent
from rstar_jax.report import tables
from rstar_jax.report.run import BASE, Figures, Run
from rstar_jax.report.tables import Rows


def table(run: Run) -> Rows:
    """What each stage took and made."""
    rows = [['round', 'stage', 'time', 'result']]
    for stage in run.stages:
        text = 'in progress, or stopped'
        if stage.figures is not None:
            text = stage.kind.describe(stage.figures)
        rows.append([str(stage.round), stage.name, clock(stage.seconds), text])
    rows.append(['', 'all', clock(sum(stage.seconds for stage in run.stages)), ''])
    return rows


def paths(run: Run) -> Rows:
    """Where what a run made lies; without a heading."""
    rows = []
    for stage in run.stages:
        if stage.figures is not None:
            name = BASE if stage.name == BASE else f'round {stage.round}'
            made = stage.kind.results(stage.figures)
            rows += [[f'{name} {what}', str(stage.folder / path)] for what, path in made.items()]
    others = {'report': pathlib.Path('report', 'index.html'), 'TensorBoard': pathlib.Path('events')}
    return rows + [
        [name, str(run.root / path)] for name, path in others.items() if (run.root / path).exists()
    ]


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, more) of what is asked first; fewer while a run has not come to them."""
    made = []
    for name in tables.benchmarks(run.results)[:1]:
        rows = [(r['round'], r['benchmarks'][name]) for r in run.results if name in r['benchmarks']]
        (first, start), (last, end) = rows[0], rows[-1]
        more = f'{tables.policy_name(last)}, {end["problems"]} problems'
        if last != first:
            more = f'{tables.policy_name(last)}; {tables.policy_name(first)}: '
            more += percent(start['greedy'])
        made.append((f'{name}, policy alone', percent(end['greedy']), more))
        searched = [(number, row) for number, row in rows if row['search']]
        if searched:
            number, row = searched[-1]
            search = row['search']
            trees = search['trajectories']
            chosen = f'majority of {mean(trees)} trees' if trees > 1 else 'one tree a problem'
            more = f'{tables.policy_name(number)}, {chosen}'
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
