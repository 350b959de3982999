"""The page's plots: what is drawn of a run, section by section."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rstar_jax.report import paper, tables
from rstar_jax.report.drawing import (
    COLOURS,
    HEIGHT,
    Plot,
    bars,
    bars_height,
    draw,
    legend,
    steps_axis,
    thinned,
)
from rstar_jax.report.run import Results, Run
from rstar_jax.report.trees import RIGHT, WRONG, Sample
from rstar_jax.search.record import Status

# --- did it get better ---

INTERVALS = ('greedy', 'majority')

# Mode -> colour, line style. The search's own answer is the vote among its best trajectories.
MODES = {
    'greedy': ('blue', '-'),
    'majority': ('teal', '-'),
    'best': ('violet', '-'),
    'weighted': ('amber', '-'),
    'any': ('muted', ':'),
}


def accuracy(runs: Sequence[Run], folder: pathlib.Path, prefix: str = '') -> list[Plot]:
    """Percent right by round: for each benchmark the policy alone, and with search."""
    made = []
    for name in tables.benchmarks(result for run in runs for result in run.results):
        modes = ('majority', 'best', 'weighted', 'any') if len(runs) == 1 else ('majority',)
        curves = {
            'alone': _curves(runs, name, ('greedy',)),
            'search': _curves(runs, name, modes),
        }
        rounds = sorted({x for part in curves.values() for curve in part for x, *_ in curve.points})
        known = {
            'alone': _until(paper.ALONE.get(name), rounds),
            'search': _until(paper.SEARCH.get(name), rounds),
        }
        flat = [y for part in curves.values() for c in part for _, *ys in c.points for y in ys]
        limits = _limits([*flat, *(y for part in known.values() for _, y in part)])
        for part, title in (('alone', 'policy alone'), ('search', 'with search')):
            if curves[part]:
                paint = functools.partial(
                    _paint_accuracy, curves=curves[part], known=known[part], limits=limits
                )
                file_name = re.sub(r'[^\w.-]', '_', f'{prefix}{name}-{part}')
                height = HEIGHT + 0.13 * (len(curves[part]) // 2)
                note = 'Bars: 95 % intervals' + (', of the majority.' if part == 'search' else '.')
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


def _curves(runs: Sequence[Run], name: str, modes: Sequence[str]) -> list[_Curve]:
    found = []
    for place, run in enumerate(runs):
        for mode in modes:
            colour, style = MODES[mode]
            label = tables.HEADINGS[mode]
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
    limits: tuple[float, float],
) -> None:
    if known:
        axes.plot(
            *zip(*known), '--', marker='D', color=COLOURS['paper'], markersize=3, linewidth=1.0,
            label=f'paper, {paper.MODEL}',
        )  # fmt: skip
    for place, curve in enumerate(curves):
        x, y, low, high = np.array(curve.points).T
        beside = 0.06 * (place - (len(curves) - 1) / 2)  # intervals do not cover each other
        errors = np.maximum([y - low, high - y], 0) if curve.interval else None
        axes.errorbar(
            x + beside, y, errors, color=COLOURS[curve.colour], linestyle=curve.style, marker='o',
            elinewidth=0.8, capsize=2, capthick=0.8, label=curve.label,
        )  # fmt: skip
    ticks = sorted({*(x for c in curves for x, *_ in c.points), *(x for x, _ in known)})
    axes.set_xticks(ticks, [_round_name(x) for x in ticks])
    axes.set_xlim(ticks[0] - 0.4, ticks[-1] + 0.4)
    axes.set_ylim(*limits)
    axes.set_ylabel('problems solved, %')
    axes.set_xlabel('policy after round')
    axes.grid(axis='x', visible=False)
    legend(axes, 2)


def _round_name(number: int) -> str:
    return {-1: 'base', 0: 'start'}.get(number, str(number))


# --- what is each part worth ---


def ablations(run: Run, folder: pathlib.Path) -> dict[str, Plot]:
    """{group: its rows beside each other}; of the rollouts, a curve over tokens."""
    made = {}
    for group, title in run.ablations['titles'].items() if run.ablations else ():
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
    for line in lines:
        axes.annotate(
            line['row'], (line['tokens'], 100 * line['right']), (3, 4),
            textcoords='offset points', fontsize=7, color=COLOURS['muted'],
        )  # fmt: skip
    axes.set_xscale('log', base=2)
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
    used = tables.tokens(run)
    word, size = _token_unit(max((x for row in used.values() for x in row.values()), default=0.0))
    used = {name: {k: x / size for k, x in row.items()} for name, row in used.items() if row}
    made = []
    if times:
        made.append(
            draw(
                folder,
                'time',
                'Time by stage',
                functools.partial(bars, rows=times, colours=STAGE_COLOURS, unit=unit),
                height=bars_height(times),
            )
        )
    if used:
        made.append(
            draw(
                folder,
                'tokens',
                'Tokens',
                functools.partial(bars, rows=used, colours=TOKEN_COLOURS, unit=word),
                'Sampled in searches and evaluations, computed in trainings.',
                height=bars_height(used),
            )
        )
    return made


TOKEN_COLOURS = {'search': 'blue', 'training': 'teal', 'evaluation': 'amber'}


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
    solved = {
        stage.round: 100 * stage.figures['solved'] / stage.figures['problems']
        for stage in run.stages
        if stage.name == 'search' and stage.figures and stage.figures['problems']
    }
    if len(solved) > 1:
        made.append(
            draw(
                folder,
                'solved',
                'Training problems solved',
                functools.partial(_paint_solved, solved=solved),
            )
        )
    if run.counts:
        number, counts = max(run.counts.items())
        rows = {key: counts[key] for key in FUNNEL if key in counts}
        made.append(
            draw(
                folder,
                'found',
                f'From problems to examples, round {number}',
                functools.partial(_paint_funnel, counts=rows),
                height=0.7 + 0.26 * len(rows),
            )
        )
    endings = {s.source.round: s.steps.endings for s in samples if s.source.graded}
    endings = {number: counts for number, counts in endings.items() if counts}
    if endings:
        rows = {
            text: {number: 100 * counts[key] / counts.total() for number, counts in endings.items()}
            for key, (text, _) in ENDINGS.items()
            if any(counts[key] for counts in endings.values())
        }
        title, colours = 'How the steps that were tried ended', dict(ENDINGS.values())
        paint = functools.partial(bars, rows=rows, colours=colours, unit='% of nodes')
        note = 'Of the trees that are listed below.'
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
    int(Status.EXHAUSTED): ('exhausted', 'teal'),
    int(Status.OPEN): ('open', 'paper'),
}


def _paint_solved(axes: Axes, solved: Mapping[int, float]) -> None:
    theirs = [(x, y) for x, y in enumerate(paper.SOLVED) if y is not None and x <= max(solved)]
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


# --- how training went ---

ROUND_COLOURS = ('muted', 'blue', 'teal', 'violet', 'amber', 'green', 'red')


def training(run: Run, folder: pathlib.Path) -> list[Plot]:
    """Losses by step, of the PPM its held-out accuracy too; a line for each round."""
    made = []
    titles = {'bootstrap': 'First policy: loss', 'sft': 'SFT: loss', 'ppm': 'PPM: loss'}
    for name, title in titles.items():
        logs = {number: log for (number, kind), log in run.trainings.items() if kind == name}
        if logs:
            befores = {number: _before(run, number, name) for number in logs}
            made.append(
                draw(
                    folder,
                    f'{name}-loss',
                    title,
                    functools.partial(
                        _paint_losses, logs=logs, befores=befores, unit=LOSS_UNITS[name]
                    ),
                    'Line: on the examples of each step; points: on problems held out.'
                    if any('held_out_loss' in line for log in logs.values() for line in log)
                    else '',
                )
            )
    judged = {number: _judged(run, number) for number, name in run.trainings if name == 'ppm'}
    judged = {number: points for number, points in judged.items() if points}
    if judged:
        made.append(
            draw(
                folder,
                'ppm-accuracy',
                'PPM: held-out accuracy',
                functools.partial(_paint_judged, judged=judged),
                'Solid: of pairs of a better and a worse step. Dashed: of pairs of a right and a '
                'wrong answer to the same held-out problem. 50: chance.',
            )
        )
    return made


LOSS_UNITS = {'bootstrap': 'loss, nats a token', 'sft': 'loss, nats a token', 'ppm': 'loss'}
JUDGED = {'pair_accuracy': '-', 'accuracy': '-', 'answer_accuracy': '--'}  # and how it is drawn


def _before(run: Run, number: int, name: str) -> float | None:
    stage = run.stage(number, name)
    return (stage.figures or {}).get('held_out_loss_before') if stage else None


def _judged(run: Run, number: int) -> dict[str, list[tuple[int, float]]]:
    """{what is ranked: [(step, percent), ...]}, from before the training on."""
    stage, points = run.stage(number, 'ppm'), {}
    for key in JUDGED:
        before = ((stage and stage.figures) or {}).get(f'{key}_before')
        rows = [] if before is None else [(0, 100 * before)]
        # A step's line has the accuracy on its own pairs; held-out lines have a held-out loss.
        rows += [
            (line['step'], 100 * line[key])
            for line in run.trainings[number, 'ppm']
            if key in line and 'held_out_loss' in line
        ]
        if rows and not (key == 'accuracy' and 'pair_accuracy' in points):
            points[key] = rows
    return points


def _paint_losses(
    axes: Axes,
    logs: Mapping[int, list[dict[str, Any]]],
    befores: Mapping[int, float | None],
    unit: str,
) -> None:
    for number, log in sorted(logs.items()):
        colour = COLOURS[ROUND_COLOURS[number % len(ROUND_COLOURS)]]
        label = f'round {number}' if number else 'first policy'
        axes.plot(
            *thinned([(line['step'], line['loss']) for line in log]), color=colour, label=label
        )
        held = [(line['step'], line['held_out_loss']) for line in log if 'held_out_loss' in line]
        if befores[number] is not None:
            held.insert(0, (0, befores[number]))
        if held:
            axes.plot(*zip(*held), 'o', color=colour, markeredgecolor=COLOURS['card'], markersize=5)
    steps_axis(axes)
    axes.set_ylabel(unit)
    if len(logs) > 1:
        legend(axes, 4)


def _paint_judged(axes: Axes, judged: Mapping[int, dict[str, list[tuple[int, float]]]]) -> None:
    for number, rows in sorted(judged.items()):
        colour = COLOURS[ROUND_COLOURS[number % len(ROUND_COLOURS)]]
        for key, points in rows.items():
            label = f'round {number}' if key == next(iter(rows)) else None
            axes.plot(*zip(*points), JUDGED[key], marker='o', color=colour, label=label)
    axes.axhline(50, color=COLOURS['paper'], linewidth=0.8, linestyle=':')
    steps_axis(axes)
    axes.set_ylabel('ranked rightly, %')
    if len(judged) > 1:
        legend(axes, 4)


# --- what its values are worth ---


def values(samples: Iterable[Sample], folder: pathlib.Path) -> list[Plot]:
    """Q values and PPM scores of steps in right and in wrong solutions.

    Q values are of the newest search that knew the right answers, scores of the newest PPM.
    """
    made = []
    by_itself = ' Q is the mean reward of the answers below a step: it knows which are right.'
    for kind, title, known in (('q', 'Q values', by_itself), ('scores', 'PPM scores', '')):
        sides = [(s, getattr(s.steps, kind)) for s in samples if s.source.graded or kind != 'q']
        sides = [(s, pair) for s, pair in sides if all(pair)]
        if not sides:
            continue
        chosen, pair = sides[-1]
        made.append(
            draw(
                folder,
                kind,
                f'{title} of steps',
                functools.partial(_paint_values, pair=pair, unit=title[:-1]),
                f'{chosen.source.label}, {len(chosen.entries):,} of {chosen.total:,} trees: '
                f'{len(pair[RIGHT]):,} steps of right solutions, '
                f'{len(pair[WRONG]):,} of wrong ones. A right one has the higher value in '
                f'{100 * _ranked(*pair):.0f} % of their pairs.{known}',
            )
        )
    return made


def _ranked(wrong: Sequence[float], right: Sequence[float]) -> float:
    """Mann and Whitney's: how often a right one is above a wrong one; ties count half."""
    from scipy import stats

    return float(stats.mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))


def _paint_values(axes: Axes, pair: Sequence[Sequence[float]], unit: str) -> None:
    bins = np.linspace(-1, 1, 41)
    for values, name, colour in zip(pair, ('wrong', 'right'), ('red', 'green'), strict=True):
        shares = np.full(len(values), 100 / len(values))
        axes.hist(
            np.clip(values, -1, 1), bins, weights=shares, histtype='stepfilled', alpha=0.45,
            color=COLOURS[colour], edgecolor=COLOURS[colour], label=f'in {name} solutions',
        )  # fmt: skip
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlabel(unit)
    axes.set_ylabel('% of steps')
    axes.grid(axis='x', visible=False)
    legend(axes)
