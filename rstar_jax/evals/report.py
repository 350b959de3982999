"""What a run has come to: a table for the terminal, and one static page, report/index.html.

round*/eval/results.json --read--> results --table--> text
results, curves, trees   --page--> HTML with nothing outside it: no script, no network
"""

import html
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rstar_jax.data import files
from rstar_jax.errors import UserError
from rstar_jax.evals import curves, metrics, selection, treeview
from rstar_jax.progress import percent
from rstar_jax.search.record import Record

Results = dict[str, Any]

COLUMNS = ('greedy', *selection.MODES)
HEADINGS = {
    'greedy': 'policy alone',
    'best': 'best score',
    'majority': 'majority',
    'weighted': 'weighted',
    'any': 'any right',
}


def read(workdir: str | os.PathLike) -> list[Results]:
    """Returns the content of base/ and every round*/eval/results.json of a run, by round.

    Raises:
      UserError: one of them cannot be read.
    """
    found = []
    root = pathlib.Path(workdir)
    for path in [*root.glob('base/eval/results.json'), *root.glob('round*/eval/results.json')]:
        try:
            results = json.loads(path.read_text(encoding='utf-8'))
            found.append((-1 if results['round'] is None else int(results['round']), results))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}: not the results of an evaluation ({error}); delete it and run the stage '
                'eval again'
            ) from None
    return [results for _, results in sorted(found, key=lambda item: item[0])]


def rows(results: Sequence[Results]) -> list[list[str]]:
    """Returns the table's cells, the heading first: a benchmark's rounds follow each other."""
    table = [
        [
            *('benchmark', 'problems', 'policy', HEADINGS['greedy'], 'answered'),
            *(HEADINGS[mode] for mode in selection.MODES),
            *('tokens', 'seconds'),
        ]
    ]
    names = dict.fromkeys(name for result in results for name in result['benchmarks'])
    for name in names:
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
                    _share(figures, 'greedy'),
                    percent(figures.get('answered')),
                    *(_share(figures, mode) for mode in selection.MODES),
                    f'{figures["tokens_per_problem"]:,.0f}',
                    f'{figures["seconds_per_problem"]:.2f}',
                ]
            )
            shown, before = '', figures if result['round'] is not None else None
    return table


def _worse(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """What stands beside a policy that solves fewer problems alone than the one before it."""
    if not before or 'greedy_solved' not in before or 'greedy_solved' not in after:
        return ''
    won, lost, chance = metrics.mcnemar(before['greedy_solved'], after['greedy_solved'])
    if won >= lost:
        return ''
    return ' WORSE than the one before' if chance < 0.05 else ' (lower)'


def table(results: Sequence[Results]) -> str:
    """Returns the table as text, lines of at most about 130 columns; '' without results.

    Shares are in percent, with the ends of the 95 % interval. Tokens and seconds are those of the
    search for one problem, or of the policy alone where there was no search.
    """
    cells = rows(results)
    if len(cells) == 1:
        return ''
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        '  '.join(
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in cells
    ]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:], *_notes(results)])


def policy_name(number: int | None) -> str:
    """Returns how a round's policy is called: round 0 is what the run started from, None the base
    model that its rounds train from."""
    if number is None:
        return 'base'
    return f'round {number}' if number else 'start'


def write(
    path: str | os.PathLike,
    results: Sequence[Results],
    scalars: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    trees: Iterable[Record] = (),
    title: str = 'rstar_jax',
) -> None:
    """Writes the page, atomically.

    Args:
      path: .../report/index.html.
      results: as from `read`.
      scalars: {name: [(step, value), ...]}, as from `curves.read_events`; each becomes a curve.
      trees: a few trees to look at, as from `treeview.choose`.
      title: the heading.
    """
    page_ = page(results, scalars, trees, title)
    with files.replacing(path) as temporary:
        temporary.write_text(page_, encoding='utf-8')


def write_run(workdir: str | os.PathLike) -> pathlib.Path:
    """Makes report/index.html of a run out of what its workdir holds; returns its path.

    The trees shown are of the last round that searched, two solved and two unsolved problems.
    """
    root = pathlib.Path(workdir)
    searched = [p for p in root.glob('round*/search') if re.fullmatch(r'round\d+', p.parent.name)]
    trees: list[Record] = []
    if searched:
        trees = treeview.choose(max(searched, key=lambda p: int(p.parent.name[5:])))
    path = root / 'report' / 'index.html'
    write(path, read(root), curves.read_events(root / 'events'), trees, f'Run {root.name}')
    return path


def page(
    results: Sequence[Results],
    scalars: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    trees: Iterable[Record] = (),
    title: str = 'rstar_jax',
) -> str:
    """Returns the page's HTML; see `write`."""
    parts = [f'<h1>{html.escape(title)}</h1>']
    cells = rows(results)
    if len(cells) > 1:
        parts += ['<h2>Accuracy</h2>', _html_table(cells)]
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in _notes(results)]
        parts += [curves.line(name, points) for name, points in _by_round(results).items()]
    else:
        parts.append('<p>Nothing was evaluated yet.</p>')
    drawn = {name: points for name, points in (scalars or {}).items() if len(points) > 1}
    if drawn:
        parts.append('<h2>Curves</h2>')
        parts += [curves.line(name, {'': points}) for name, points in sorted(drawn.items())]
    shown = [treeview.render(tree) for tree in trees]
    if shown:
        parts += ['<h2>Trees</h2>', *shown]
    body = '\n'.join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n'
        f'<body>\n{body}\n</body></html>\n'
    )


def _share(figures: Mapping[str, Any], column: str) -> str:
    source = figures if column == 'greedy' else figures['search'] or {}
    if source.get(column) is None:
        return '-'
    low, high = figures['interval95'][column]
    return f'{100 * source[column]:.1f} [{100 * low:.0f}-{100 * high:.0f}]'


def _notes(results: Sequence[Results]) -> list[str]:
    counts = {
        figures['search']['trajectories']
        for result in results
        for figures in result['benchmarks'].values()
        if figures['search']
    }
    notes = []
    if any('answered' in f for result in results for f in result['benchmarks'].values()):
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
        for note in _compared(before, after)
    ]


def _compared(before: Results, after: Results) -> Iterator[str]:
    """What the policy alone has won and lost from one round to the next, by benchmark."""
    for name, figures in after['benchmarks'].items():
        old = before['benchmarks'].get(name, {})
        if 'greedy_solved' not in old or 'greedy_solved' not in figures:
            continue
        won, lost, chance = metrics.mcnemar(old['greedy_solved'], figures['greedy_solved'])
        verdict = 'better' if won > lost else 'WORSE'
        if chance >= 0.05:
            verdict = 'no certain difference'
        yield (
            f'{name}, policy alone, {policy_name(after["round"])} against '
            f'{policy_name(before["round"])}: {won} problems won, {lost} lost: {verdict} '
            f"(p = {chance:.2g}, McNemar's test)"
        )


def _by_round(results: Sequence[Results]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Curves of accuracy over rounds, a chart for each benchmark with more than one round."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for result in results:
        if result['round'] is None:
            continue
        for name, figures in result['benchmarks'].items():
            chart = charts.setdefault(f'{name}: percent right by round', {})
            for column in COLUMNS:
                source = figures if column == 'greedy' else figures['search'] or {}
                value = source.get(column)
                if value is not None and math.isfinite(value):
                    points = chart.setdefault(HEADINGS[column], [])
                    points.append((result['round'], 100 * value))
    return {name: chart for name, chart in charts.items() if len(chart['policy alone']) > 1}


def _html_table(cells: Sequence[Sequence[str]]) -> str:
    lines = []
    for i, row in enumerate(cells):
        tag = 'td' if i else 'th'
        lines.append(
            '<tr>' + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row) + '</tr>'
        )
    return '<table>' + '\n'.join(lines) + '</table>'


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:nth-child(1),td:nth-child(1),th:nth-child(3),td:nth-child(3){text-align:left}
.note{color:#666;font-size:13px}
figure{display:inline-block;margin:1rem 1rem 0 0;vertical-align:top}
figcaption{font-size:13px;color:#444}
svg text{font:11px system-ui,sans-serif;fill:#555}
.tree{border:1px solid #ddd;border-radius:6px;padding:.5rem 1rem;margin:1rem 0}
.tree details,.tree .leaf{margin-left:1.1rem;border-left:2px solid #eee;padding-left:.5rem}
.tree summary{cursor:pointer}
.tree pre{white-space:pre-wrap;background:#f7f7f7;padding:.4rem .6rem;margin:.2rem 0;font-size:13px}
.tree .figures{color:#777;font-size:12px;font-variant-numeric:tabular-nums}
.right{color:#157f3b}.wrong{color:#b3261e}.ended{color:#9a6700}
"""
