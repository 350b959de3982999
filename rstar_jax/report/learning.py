"""Plots of what was learnt: how trainings went, what Q values and PPM scores are worth."""

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rstar_jax.evals import metrics
from rstar_jax.report.drawing import COLOURS, Plot, draw, legend, steps_axis, thinned
from rstar_jax.report.run import Run
from rstar_jax.report.trees import Sample

# --- how training went ---

ROUND_COLOURS = ('muted', 'blue', 'teal', 'violet', 'amber', 'green', 'red')


def training(run: Run, folder: pathlib.Path) -> list[Plot]:
    """Losses by step, of the PPM its held-out accuracy too; a line for each round."""
    made = []
    titles = {'bootstrap': 'First policy: loss', 'sft': 'SFT: loss', 'ppm': 'PPM: loss'}
    for name, title in titles.items():
        logs = {number: log for (number, kind), log in run.trainings.items() if kind == name}
        if logs:
            before = 'held_out_loss_before'
            befores = {number: run.figures(number, name).get(before) for number in logs}
            measured = any('held_out_loss' in line for log in logs.values() for line in log)
            note = 'Line: on the examples of each step; points: on problems held out.'
            how = {'logs': logs, 'befores': befores, 'unit': LOSS_UNITS[name]}
            paint = functools.partial(_paint_losses, **how)
            made.append(draw(folder, f'{name}-loss', title, paint, note if measured else ''))
    judged = {number: _judged(run, number) for number, name in run.trainings if name == 'ppm'}
    judged = {number: points for number, points in judged.items() if points}
    if judged:
        paint = functools.partial(_paint_judged, judged=judged)
        note = (
            'Solid: of pairs of a better and a worse step. Dashed: of pairs of a right and a '
            'wrong answer to the same held-out problem. 50: chance.'
        )
        made.append(draw(folder, 'ppm-accuracy', 'PPM: held-out accuracy', paint, note))
    return made


LOSS_UNITS = {'bootstrap': 'loss, nats a token', 'sft': 'loss, nats a token', 'ppm': 'loss'}
# What is ranked, and how it is drawn.
JUDGED = {'pair_accuracy': '-', 'held_out_accuracy': '-', 'answer_accuracy': '--'}


def _judged(run: Run, number: int) -> dict[str, list[tuple[int, float]]]:
    """{what is ranked: [(step, percent), ...]}, from before the training on."""
    figures, points = run.figures(number, 'ppm'), {}
    for key in JUDGED:
        before = figures.get(f'{key}_before')
        rows = [] if before is None else [(0, 100 * before)]
        log = run.trainings[number, 'ppm']
        rows += [(line['step'], 100 * line[key]) for line in log if key in line]
        if rows:
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

# Kind -> title, what is measured, what else has to be known.
VALUES = {
    'q': ('Q values of steps', 'Q value',
          ' Q is the mean reward of the answers below a step: it knows which are right.'),
    'scores': ('PPM scores of steps', 'PPM score', ' Answers are apart.'),
    'answers': ('PPM scores of answers', 'PPM score', ''),
}  # fmt: skip


def values(samples: Iterable[Sample], folder: pathlib.Path) -> list[Plot]:
    """Q values and PPM scores of steps in right and in wrong solutions.

    Q values are of the newest search that knew the right answers, scores of the newest PPM.
    """
    made = []
    for kind, (title, unit, further) in VALUES.items():
        sides = [(s, getattr(s.steps, kind)) for s in samples if s.source.graded or kind != 'q']
        sides = [(s, rows, *_sides(rows)) for s, rows in sides]
        sides = [row for row in sides if all(row[2:])]
        if not sides:
            continue
        chosen, rows, wrong, right = sides[-1]
        what = 'answers' if kind == 'answers' else 'steps'
        sides_told = f'{len(right):,} right and {len(wrong):,} wrong answers'
        if what == 'steps':
            sides_told = f'{len(right):,} steps of right solutions, {len(wrong):,} of wrong ones'
        trees = f'{len(chosen.entries):,} of {chosen.total:,} trees'
        note = f'{chosen.source.label}, {trees}: {sides_told}.'
        ranked = metrics.ranked_rightly(*zip(*rows))
        if ranked['pairs']:
            note += (
                ' Of a right and a wrong one in the same tree, the right one has the higher value '
                f'in {100 * ranked["share"]:.0f} % of {ranked["pairs"]:,} pairs.'
            )
        paint = functools.partial(_paint_values, pair=(wrong, right), unit=unit, what=what)
        made.append(draw(folder, kind, title, paint, note + further))
    return made


def _sides(rows: Sequence[tuple[list[float], list[bool]]]) -> tuple[list[float], list[float]]:
    """Values of wrong and of right ones, of all trees."""
    found: tuple[list[float], list[float]] = [], []
    for values, right in rows:
        for value, side in zip(values, right, strict=True):
            found[side].append(value)
    return found


def _paint_values(axes: Axes, pair: Sequence[Sequence[float]], unit: str, what: str) -> None:
    bins = np.linspace(-1, 1, 41)
    for values, name, colour in zip(pair, ('wrong', 'right'), ('red', 'green'), strict=True):
        label = f'{name} answers' if what == 'answers' else f'in {name} solutions'
        shares = np.full(len(values), 100 / len(values))
        axes.hist(
            np.clip(values, -1, 1), bins, weights=shares, histtype='stepfilled', alpha=0.45,
            color=COLOURS[colour], edgecolor=COLOURS[colour], label=label,
        )  # fmt: skip
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_xlabel(unit)
    axes.set_ylabel(f'% of {what}')
    axes.grid(axis='x', visible=False)
    legend(axes)
