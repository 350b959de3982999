"""A run's stages, as rows of cells: what each took and made, and where it lies."""

import pathlib
from collections.abc import Callable

from rstar_jax import steps
from rstar_jax.evals import metrics
from rstar_jax.job.progress import clock, percent
from rstar_jax.report.run import Figures, Run
from rstar_jax.report.tables import Rows
from rstar_jax.settings.kinds import BASE


def table(run: Run) -> Rows:
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


def _search(figures: Figures) -> str:
    return (
        f'{figures["trees"]:,} trees, {figures["nodes"]:,} nodes, {figures["tokens"]:,} tokens '
        f'generated ({figures["tokens_per_second"]:.0f}/s), '
        f'{figures["solved"]:,} of {figures["problems"]:,} problems solved'
    )


def _synthesize(figures: Figures) -> str:
    known = 'written', 'new', 'kept', 'tokens'
    dropped = [f'{n:,} {why}' for why, n in figures.items() if why not in known]
    text = (
        f'{figures.get("kept", 0):,} of {figures["written"]:,} written problems kept, '
        f'{figures["tokens"]:,} tokens generated'
    )
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
    for name, key in (('pair', 'held_out'), ('answer', 'answer')):
        pairs = figures.get(f'{key}_pairs')
        if pairs:
            before, after = (figures.get(f'{name}_accuracy_{when}') for when in ('before', 'after'))
            problems = figures[f'{key}_problems']
            text += (
                f', held-out {name} accuracy {percent(before)} -> {percent(after)} '
                f'({pairs:.0f} pairs of {problems:.0f} problems{_chance(after, problems)})'
            )
    return text


def _chance(share: float | None, problems: int) -> str:
    """Says where a judge is not told from one that guesses: a PPM that has learnt nothing.

    Pairs of one problem are not independent, so the interval is of as many pairs as problems.
    """
    low = 0.0 if share is None else metrics.wilson(share, int(problems))[0]
    return '' if share is None or low > 0.5 else ': WITHIN CHANCE'


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
