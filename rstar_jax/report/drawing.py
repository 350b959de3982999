"""How plots are drawn, by matplotlib: SVG that takes the page's colours, and a PNG for papers.

A plot is as wide as a phone; the page sets several beside each other. Its colours are those of
COLOURS; in the SVG they become the page's variables, so that it can be dark as well.
"""

import dataclasses
import functools
import html
import io
import math
import pathlib
import pickle
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rstar_jax.job import atomic

COLOURS = {
    'ink': '#1f2933',
    'muted': '#66727f',
    'line': '#dde3e9',
    'paper': '#98a3ae',
    'blue': '#2f6fdb',
    'teal': '#0c9488',
    'violet': '#7d4fd6',
    'amber': '#c97a0a',
    'green': '#1d9a55',
    'red': '#d6453d',
    'card': '#ffffff',  # what they are drawn on
}
WIDTH, HEIGHT = 3.75, 2.6  # inches
DPI = 240
MOST_POINTS = 200  # of a curve; more are averaged over as many steps as it takes

STYLE = {
    'font.family': 'DejaVu Sans',
    'font.size': 8.8,
    'text.color': COLOURS['ink'],
    'axes.labelcolor': COLOURS['muted'],
    'axes.edgecolor': COLOURS['line'],
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': COLOURS['line'],
    'grid.linewidth': 0.6,
    'xtick.color': COLOURS['line'],
    'ytick.color': COLOURS['line'],
    'xtick.labelcolor': COLOURS['muted'],
    'ytick.labelcolor': COLOURS['muted'],
    'lines.linewidth': 1.6,
    'lines.markersize': 4,
    'legend.frameon': False,
    'legend.handlelength': 1.4,
    'legend.columnspacing': 1.2,
    'svg.fonttype': 'none',
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
      name: of its PNG, without the ending.
      title, note: what the page writes above and below it.
      svg: the <svg> element.
    """

    name: str
    title: str
    note: str
    svg: str


_drawn: dict[pathlib.Path, tuple[bytes, Plot]] = {}


def draw(
    folder: pathlib.Path,
    name: str,
    title: str,
    paint: functools.partial,
    note: str = '',
    height: float = HEIGHT,
) -> Plot:
    """Has `paint` draw into axes; writes `folder`/NAME.png and returns the plot.

    A plot of the same data as the last time, in this process, is not drawn again: a run writes its
    page after every stage.
    """
    path = folder / f'{name}.png'
    told = pickle.dumps((title, note, height, paint))
    if path in _drawn and _drawn[path][0] == told and path.exists():
        return _drawn[path][1]
    with mpl.rc_context({**STYLE, 'svg.hashsalt': name}):
        figure = Figure(figsize=(WIDTH, height), layout='constrained')
        axes = figure.add_subplot()
        paint(axes)
        figure.draw_without_rendering()  # lays it out,
        figure.set_layout_engine('none')  # once for both files
        text = io.StringIO()
        # Without a date: the same run gives the same page.
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, format='png', dpi=DPI, facecolor=COLOURS['card'])
    plot = Plot(name, title, note, _inline(text.getvalue(), title))
    _drawn[path] = told, plot
    return plot


def _inline(svg: str, title: str) -> str:
    """The <svg> element for an HTML page: its colours and its font are the page's."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    used = set(re.findall(r'#([\w.-]+)["\)]', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else '', svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", 'var(--font)', svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f'var(--{name})')
    return svg.replace('<svg ', f'<svg role="img" aria-label="{html.escape(title)}" ', 1).strip()


def legend(axes: Axes, columns: int = 3) -> None:
    """Below the axes; none where nothing has a label."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(loc='outside lower center', ncols=min(columns, len(handles)))


def bars(
    axes: Axes,
    rows: Mapping[str, Mapping[int, float]],
    colours: Mapping[str, str],
    unit: str,
) -> None:
    """A bar for each round, of parts: {part: {round: length}}, {part: name of its colour}."""
    rounds = _rounds(rows)[::-1]
    left = np.zeros(len(rounds))
    for part, row in rows.items():
        lengths = np.array([row.get(number, 0.0) for number in rounds])
        axes.barh(range(len(rounds)), lengths, 0.62, left, color=COLOURS[colours[part]], label=part)
        left += lengths
    names = [f'round {number}' if number else 'start' for number in rounds]
    axes.set_yticks(range(len(rounds)), names)
    axes.tick_params(axis='y', length=0, labelcolor=COLOURS['ink'])
    axes.set_xlabel(unit)
    axes.grid(axis='y', visible=False)
    axes.spines['left'].set_visible(False)
    legend(axes)


def bars_height(rows: Mapping[str, Mapping[int, float]]) -> float:
    """Inches that `bars` need."""
    return 1.35 + 0.28 * len(_rounds(rows))


def _rounds(rows: Mapping[str, Mapping[int, float]]) -> list[int]:
    return sorted({number for row in rows.values() for number in row})


def thinned(values: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of at most MOST_POINTS points, each the mean of as many neighbours as that takes."""
    width = max(1, math.ceil(len(values) / MOST_POINTS))
    chunks = [np.mean(values[i : i + width], axis=0) for i in range(0, len(values), width)]
    x, y = np.array(chunks).T
    return x, y


def steps_axis(axes: Axes) -> None:
    """Across go the steps of a training."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel('optimiser step')
