"""The table that a run ends with: what each stage made, how accurate the rounds are, the paths."""

import pathlib
from collections.abc import Iterator
from typing import Any

from rstar_jax import ledger, steps
from rstar_jax.evals import report, tables
from rstar_jax.progress import clock, percent, table

Figures = dict[str, Any]

STAGES = (  # name, folder
    ('bootstrap', 'policy'),
    ('search', 'search'),
    ('curate', 'curate'),
    ('sft', 'policy'),
    ('ppm', 'ppm'),
    ('eval', 'eval'),
    ('export', 'export'),
)


def summary(root: pathlib.Path) -> str:
    """Everything that a workdir's complete stages say of themselves, as text."""
    results = report.read(root)
    parts = [_stages(root), report.table(results)]
    parts += [table(rows, right=range(3, len(rows[0]))) for rows in _details(results)]
    parts.append(_paths(root))
    return '\n\n'.join(['', *(part for part in parts if part)])


def _details(results: list[Figures]) -> list[tables.Rows]:
    return [rows for rows in (tables.strategies(results), tables.judges(results)) if rows]


def _rounds(root: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    found = [(int(path.name[5:]), path) for path in root.glob('round*') if path.name[5:].isdigit()]
    return sorted(found)


def _done(root: pathlib.Path) -> Iterator[tuple[int, str, pathlib.Path, Figures]]:
    """(round, stage, folder, content of done.json) of every complete stage."""
    for number, path in _rounds(root):
        for name, folder in STAGES:
            if (name == 'bootstrap') != (number == 0) and folder == 'policy':
                continue
            done = ledger.read_json(path / folder / 'done.json')
            if done is not None:
                yield number, name, path / folder, done


def _stages(root: pathlib.Path) -> str:
    rows = [('round', 'stage', 'time', 'result')]
    total = 0.0
    for number, name, _, done in _done(root):
        total += done['seconds']
        text = DESCRIBE[name](done['figures'])
        rows.append((str(number), name, clock(done['seconds']), text))
    rows.append(('', 'all', clock(total), ''))
    return table(rows, right=(2,))


def _search(figures: Figures) -> str:
    return (
        f'{figures["trees"]:,} trees, {figures["nodes"]:,} nodes, {figures["tokens"]:,} tokens '
        f'generated ({figures["tokens_per_second"]:.0f}/s), '
        f'{figures["solved"]:,} of {figures["problems"]:,} problems solved'
    )


def _curate(figures: Figures) -> str:
    text = (
        f'{figures.get("sft", 0):,} SFT examples, {figures.get("pairs", 0):,} preference pairs, '
        f'{figures.get("trajectories", 0):,} trajectories'
    )
    if figures.get('overlapping'):
        text += f'; {figures["overlapping"]:,} problems left out that overlap with a benchmark'
    return text


def _sft(figures: Figures) -> str:
    return (
        f'loss {figures["loss_first"]:.3f} -> {figures["loss_last"]:.3f} in {figures["steps"]} '
        f'steps ({figures["tokens_per_second"]:.0f} tokens/s)'
    )


def _ppm(figures: Figures) -> str:
    text = _sft(figures)
    for name, pairs in (('pair', 'held_out_pairs'), ('answer', 'answer_pairs')):
        if figures.get(pairs):
            text += (
                f', held-out {name} accuracy {percent(figures.get(f"{name}_accuracy_before"))} -> '
                f'{percent(figures.get(f"{name}_accuracy_after"))} ({figures[pairs]:.0f} pairs)'
            )
    return text


def _eval(figures: Figures) -> str:
    return ', '.join(f'{name}: {row["problems"]:,} problems' for name, row in figures.items())


def _policy(figures: Figures) -> str:
    form = figures.get('form_after')
    if not form:
        return _sft(figures)
    shares = {mark: n / due for mark, (n, due) in form.items() if mark not in steps.OUTPUT_MARKS}
    mark = min(shares, key=shares.get)
    return f'{_sft(figures)}, marks likeliest where due: at least {percent(shares[mark])} ({mark})'


DESCRIBE = {
    'bootstrap': _policy,
    'search': _search,
    'curate': _curate,
    'sft': _policy,
    'ppm': _ppm,
    'eval': _eval,
    'export': lambda figures: ', '.join(figures),
}


def _paths(root: pathlib.Path) -> str:
    rows = []
    for number, name, folder, done in _done(root):
        if name == 'export':
            figures = done['figures'].items()
            rows += [(f'round {number} {kind}', str(folder / path)) for kind, path in figures]
        elif name == 'search':
            rows.append((f'round {number} trees', str(folder)))
        elif name == 'curate':
            rows.append((f'round {number} examples', str(folder)))
        elif name == 'eval':
            rows.append((f'round {number} results', str(folder / 'results.json')))
    page = root / 'report' / 'index.html'
    if page.exists():
        rows.append(('report', str(page)))
    if (root / 'events').exists():
        rows.append(('TensorBoard', str(root / 'events')))
    return table(rows) if rows else ''
