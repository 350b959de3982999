"""Plots of what a run has come to: did it get better, what did it cost, what was found."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from rstar_jax.data.record import Status
from rstar_jax.report import paper, stages, tables
from rstar_jax.report.drawing import COLOURS, HEIGHT, Plot, bars, bars_height, draw, legend
from rstar_jax.report.run import Results, Run
from rstar_jax.report.trees import Sample

# --- did it get better ---

INTERVALS = ('greedy', 'majority')

# Mode -> colour, line style. The search's own answer is the vote among its best trajectories.
MODES = {
    'greedy': ('blue', '-'),
    'majority': ('teal', '-'),
    'best': ('violet', '-'),
    'weighted': ('amber', '-'),
    'pooled': ('amber', '--'),
    'any': ('muted', ':'),
}


def accuracy(runs: Sequence[Run], folder: pathlib.Path, prefix: str = '') -> list[Plot]:
    """Percent right by round: for each benchmark the policy alone, and with search."""
    made = []
    for name in tables.benchmarks(result for run in runs for result in run.results):
        modes = tables.modes_of(runs[0].results) if len(runs) == 1 else {'majority': ''}
        curves = {
            'alone': _curves(runs, name, {'greedy': tables.HEADINGS['greedy']}),
            'search': _curves(runs, name, {mode: modes[mode] for mode in MODES if mode in modes}),
        }
        if curves['search'] and len(runs) == 1:  # is compared with
            alone = [dataclasses.replace(curve, interval=False) for curve in curves['alone']]
            curves['search'] = alone + curves['search']
        rounds = sorted({x for part in curves.values() for curve in part for x, *_ in curve.points})
        known = {
            'alone': _until(paper.ALONE.get(name), rounds),
            'search': _until(paper.SEARCH.get(name), rounds),
        }
        flat = [y for part in curves.values() for c in part for _, *ys in c.points for y in ys]
        theirs = [point for part in known.values() for point in part]
        limits = _limits([*flat, *(y for _, y in theirs)])
        ticks = sorted({*rounds, *(x for x, _ in theirs)})
        for part, title in (('alone', 'policy alone'), ('search', 'with search')):
            if curves[part]:
                paint = functools.partial(
                    _paint_accuracy,
                    curves=curves[part],
                    known=known[part],
                    ticks=ticks,
                    limits=limits,
                )
                file_name = re.sub(r'[^\w.-]', '_', f'{prefix}{name}-{part}')
                height = HEIGHT + 0.13 * (len(curves[part]) // 2)
                several = len(curves[part]) > 1 and len(runs) == 1
                of = f' of "{modes["majority"]}"' if several else ''
                note = f'Bars: 95 % intervals{of}.'
                made.append(draw(folder, file_name, f'{name}: {title}', paint, note, height))
    return made


@dataclasses.dataclass(frozen=True)
class _Curve:
    """points: (round, percent right, ends of its interval); the base model is round -1.

    interval: whether they are drawn: all of them would hide each other.
    """

    label: str
    colour: str
    style: str
    interval: bool
    points: list[tuple[float, ...]]


def _curves(runs: Sequence[Run], name: str, modes: Mapping[str, str]) -> list[_Curve]:
    found = []
    for place, run in enumerate(runs):
        for mode, label in modes.items():
            colour, style = MODES[mode]
            if len(runs) > 1:
                colour, label = ('blue', 'amber')[place], run.name
            if points := _points(run.results, name, mode):
                found.append(_Curve(label, colour, style, mode in INTERVALS, points))
    return found


def _points(results: Sequence[Results], name: str, mode: str) -> list[tuple[float, ...]]:
    points = []
    for result in results:
        figures = result['benchmarks'].get(name)
        source = figures and (figures if mode == 'greedy' else figures['search'])
        if source and source.get(mode) is not None:
            number = -1 if result['round'] is None else result['round']
            values = source[mode], *figures['interval95'][mode]
            points.append((number, *(100 * value for value in values)))
    return points


def _until(
    values: Sequence[float | None] | None, rounds: Sequence[float]
) -> list[tuple[int, float]]:
    """(round, value) of the paper's, as far as the run has come; its first one is the base's."""
    last = max(rounds, default=0)
    points = [(k or -1, y) for k, y in enumerate(values or ()) if y is not None]
    return [(k, y) for k, y in points if k <= last]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=100.0)
    room = max(2.0, 0.08 * (high - low))
    return max(0.0, low - room), min(100.0, high + room)


def _paint_accuracy(
    axes: Axes,
    curves: Sequence[_Curve],
    known: Sequence[tuple[int, float]],
    ticks: Sequence[float],
    limits: tuple[float, float],
) -> None:
    if known:
        axes.plot(
            *zip(*known), '--', marker='D', color=COLOURS['paper'], markersize=3, linewidth=1.0,
            label=f'paper, {paper.MODEL}',
        )  # fmt: skip
    for place, curve in enumerate(curves):
        x, y, low, high = np.array(curve.points).T
        beside = 0.06 * place  # points do not cover each other
        errors = np.maximum([y - low, high - y], 0) if curve.interval else None
        axes.errorbar(
            x + beside, y, errors, color=COLOURS[curve.colour], linestyle=curve.style, marker='o',
            elinewidth=0.8, capsize=2, capthick=0.8, label=curve.label,
        )  # fmt: skip
    axes.set_xticks(ticks, [{-1: 'base', 0: 'start'}.get(x, str(x)) for x in ticks])
    axes.set_xlim(ticks[0] - 0.4, ticks[-1] + 0.4)
    axes.set_ylim(*limits)
    axes.set_ylabel('problems solved, %')
    axes.set_xlabel('policy after round')
    axes.grid(axis='x', visible=False)
    legend(axes, 2)


# --- what is each part worth ---


def ablations(run: Run, folder: pathlib.Path) -> dict[str, Plot]:
    """{group: its rows beside each other}; of the rollouts, a curve over tokens."""
    made = {}
    titles = run.ablations['titles'] if run.ablations else {}
    for group, title in titles.items():
        lines = [line for line in run.ablations['table'] if line['group'] == group]
        if not lines:
            continue
        over_tokens = any('samples' in line for line in lines)
        paint = functools.partial(_paint_tokens if over_tokens else _paint_rows, lines=lines)
        height = HEIGHT if over_tokens else 0.8 + 0.24 * len(lines)
        note = 'Bars: 95 % intervals.' + (' Beside the points: rollouts.' if over_tokens else '')
        made[group] = draw(folder, f'ablations-{group}', title, paint, note, height)
    return made


def _percent_of(lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """y[n] and the lengths [2, n] of its bars."""
    y, low, high = 100 * np.array([[line['right'], *line['interval95']] for line in lines]).T
    return y, np.maximum([y - low, high - y], 0)


def _paint_rows(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    places = np.arange(len(lines))[::-1]
    x, errors = _percent_of(lines)
    axes.errorbar(
        x, places, xerr=errors, fmt='o', color=COLOURS['blue'], elinewidth=0.8, capsize=2,
        capthick=0.8,
    )  # fmt: skip
    axes.set_yticks(places, [line['row'] for line in lines])
    axes.tick_params(axis='y', length=0, labelcolor=COLOURS['ink'])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.set_xlabel('problems solved, %')
    axes.spines['left'].set_visible(False)


def _paint_tokens(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    samples = [line['samples'] for line in lines if 'samples' in line]
    for label, colour, rows in (('MCTS', 'blue', lines), ('majority of samples', 'teal', samples)):
        y, errors = _percent_of(rows)
        axes.errorbar(
            [row['tokens'] for row in rows], y, errors, color=COLOURS[colour], marker='o',
            elinewidth=0.8, capsize=2, capthick=0.8, label=label,
        )  # fmt: skip
    near: list[list[Mapping[str, Any]]] = []  # points that would write over each other
    for line in lines:
        if near and line['tokens'] < 1.06 * near[-1][0]['tokens']:
            near[-1].append(line)
        else:
            near.append([line])
    for first, *others in near:
        text = f'{first["row"]}-{others[-1]["row"]}' if others else first['row']
        axes.annotate(
            text, (first['tokens'], 100 * first['right']), (3, 4),
            textcoords='offset points', fontsize=7, color=COLOURS['muted'],
        )  # fmt: skip
    axes.set_xscale('log')
    wide = lines[-1]['tokens'] > 5 * lines[0]['tokens']
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else range(1, 10)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.set_ylabel('problems solved, %')
    axes.set_xlabel('sampled tokens for a problem')
    legend(axes, 2)


# --- what did it cost ---

STAGE_COLOURS = {
    'bootstrap': 'muted',
    'synthesize': 'ink',
    'search': 'blue',
    'curate': 'green',
    'sft': 'teal',
    'ppm': 'violet',
    'eval': 'amber',
    'base': 'red',
    'export': 'paper',
}


def cost(run: Run, folder: pathlib.Path) -> list[Plot]:
    """Time by stage, and tokens by what they were for; a bar for each round."""
    seconds = {
        name: {s.round: s.seconds for s in run.stages if s.name == name} for name in STAGE_COLOURS
    }
    unit, size = _time_unit(max((s.seconds for s in run.stages), default=0.0))
    times = {name: {k: x / size for k, x in row.items()} for name, row in seconds.items() if row}
    used = stages.tokens(run)
    word, size = _token_unit(max((x for row in used.values() for x in row.values()), default=0.0))
    used = {name: {k: x / size for k, x in row.items()} for name, row in used.items() if row}
    made = []
    if times:
        paint = functools.partial(bars, rows=times, colours=STAGE_COLOURS, unit=unit)
        made.append(draw(folder, 'time', 'Time by stage', paint, height=bars_height(times)))
    if used:
        paint = functools.partial(bars, rows=used, colours=TOKEN_COLOURS, unit=word)
        note = 'Sampled for new problems, in searches and evaluations; computed in trainings.'
        made.append(draw(folder, 'tokens', 'Tokens', paint, note, bars_height(used)))
    return made


TOKEN_COLOURS = {
    'synthesize': 'ink',
    'search': 'blue',
    'training': 'teal',
    'evaluation': 'amber',
}


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds >= 2 * 3600:
        return 'hours', 3600.0
    return ('minutes', 60.0) if seconds >= 120 else ('seconds', 1.0)


def _token_unit(count: float) -> tuple[str, float]:
    for word, size in (('thousand million', 1e9), ('million', 1e6), ('thousand', 1e3)):
        if count >= 2 * size:
            return f'{word} tokens', size
    return 'tokens', 1.0


# --- what was found ---


def found(run: Run, samples: Sequence[Sample], folder: pathlib.Path) -> list[Plot]:
    """Problems solved by round, what the newest round's trees gave, and how branches end."""
    made = []
    solved = {k: 100 * right / asked for k, (right, asked) in stages.training_solved(run).items()}
    if len(solved) > 1:
        so_far = stages.leaves_out(run)
        last = max(solved)
        theirs = [(k, y) for k, y in enumerate(paper.SOLVED) if y is not None and k <= last]
        # The paper's rounds search all of the same problems.
        paint = functools.partial(_paint_solved, solved=solved, theirs=[] if so_far else theirs)
        note = 'Solved by this round or one before, of all searched so far.' if so_far else ''
        made.append(draw(folder, 'solved', 'Training problems solved', paint, note))
    if run.counts:
        number, counts = max(run.counts.items())
        rows = {key: counts[key] for key in FUNNEL if key in counts}
        title, height = f'From problems to examples, round {number}', 0.7 + 0.26 * len(rows)
        paint = functools.partial(_paint_funnel, counts=rows)
        made.append(draw(folder, 'found', title, paint, height=height))
    endings = {s.source.round: s.steps.endings for s in samples if s.source.graded}
    endings = {number: counts for number, counts in endings.items() if counts}
    if endings:
        rows = {
            text: {number: 100 * counts[key] / counts.total() for number, counts in endings.items()}
            for key, (text, _) in ENDINGS.items()
            if any(counts[key] for counts in endings.values())
        }
        title, colours = 'What became of the steps', dict(ENDINGS.values())
        paint = functools.partial(bars, rows=rows, colours=colours, unit='% of steps')
        note = (
            'Of the trees that are listed below. Ended below: nothing is left to be tried behind '
            'the step; open: something is, or it was never gone into.'
        )
        made.append(draw(folder, 'endings', title, paint, note, 0.2 + bars_height(rows)))
    return made


FUNNEL = {
    'problems': ('problems', 'paper'),
    'problems_solved': ('problems solved', 'blue'),
    'trajectories_correct': ('right trajectories', 'green'),
    'trajectories_wrong': ('wrong trajectories', 'red'),
    'sft': ('SFT examples', 'teal'),
    'pairs': ('preference pairs', 'violet'),
}
# A node's status -> its name and colour; right answers are -1.
ENDINGS = {
    -1: ('right answer', 'green'),
    int(Status.ANSWER): ('wrong answer', 'red'),
    int(Status.CODE_ERRORS): ('code errors', 'amber'),
    int(Status.TOO_DEEP): ('too many steps', 'violet'),
    int(Status.UNPARSABLE): ('unparsable', 'muted'),
    int(Status.EXHAUSTED): ('ended below', 'teal'),
    int(Status.OPEN): ('open', 'paper'),
}


def _paint_solved(
    axes: Axes, solved: Mapping[int, float], theirs: Sequence[tuple[int, float]]
) -> None:
    if theirs:
        axes.plot(
            *zip(*theirs), '--', marker='D', markersize=3, linewidth=1.0, color=COLOURS['paper'],
            label='paper, 747k problems',
        )  # fmt: skip
    axes.plot(*zip(*sorted(solved.items())), marker='o', color=COLOURS['blue'], label='this run')
    axes.set_xticks(sorted(solved))
    axes.set_ylim(*_limits([*solved.values(), *(y for _, y in theirs)]))
    axes.set_xlabel('round')
    axes.set_ylabel('problems solved, %')
    axes.grid(axis='x', visible=False)
    legend(axes)


def _paint_funnel(axes: Axes, counts: Mapping[str, int]) -> None:
    keys = list(counts)[::-1]
    longest = max(counts.values()) or 1
    for place, key in enumerate(keys):
        axes.barh(place, counts[key], 0.62, color=COLOURS[FUNNEL[key][1]])
        axes.text(counts[key] + 0.015 * longest, place, f'{counts[key]:,}', va='center')
    axes.set_yticks(range(len(keys)), [FUNNEL[key][0] for key in keys])
    axes.tick_params(axis='y', length=0, labelcolor=COLOURS['ink'])
    axes.tick_params(axis='x', labelbottom=False, length=0)
    axes.set_xlim(0, 1.18 * longest)
    axes.grid(visible=False)
    for side in ('left', 'bottom'):
        axes.spines[side].set_visible(False)
