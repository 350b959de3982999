"""Rows of several seeds made one table, and what follows from it in words.

A row of one seed: {"group", "row", "seed", "problems": n, "solved": [[benchmark, index], ...],
"any": a or null, "trees": t, "tokens": x, "seconds": x, "judge": auc or null}; with "in_time",
"samples", "samples_in_time" it holds the same again, but for the first three.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rstar_jax.evals import metrics

Figures = dict[str, Any]
MEANS = ('trees', 'tokens', 'seconds')
OTHERS = ('in_time', 'samples', 'samples_in_time')


def pooled(benchmarks: Mapping[str, tuple[int, Figures]], mode: str) -> Figures:
    """One row of what an evaluation tells of a strategy: {benchmark: (problems, its figures)}.

    mode: of its accuracies.
    """
    total = sum(count for count, _ in benchmarks.values())

    def mean(key: str) -> float | None:
        if any(figures.get(key) is None for _, figures in benchmarks.values()):
            return None
        return sum(count * figures[key] for count, figures in benchmarks.values()) / total

    judges = [figures['judge'] for _, figures in benchmarks.values() if figures['judge']]
    ranked = [(judge['pairs'], judge['auc']) for judge in judges if judge['auc'] is not None]
    pairs = sum(count for count, _ in ranked)
    return {
        'problems': total,
        'solved': [[name, i] for name, (_, f) in benchmarks.items() for i in f['solved'][mode]],
        'any': mean('any'),
        'trees': mean('trajectories'),
        'tokens': mean('tokens_per_problem'),
        'seconds': mean('seconds_per_problem'),
        'judge': sum(count * auc for count, auc in ranked) / pairs if pairs else None,
    }


def table(rows: Iterable[Figures]) -> list[Figures]:
    """One line for each row, of all seeds together: 'right' of all their problems, with its 95 %
    interval; 'least' and 'most' of the seeds; means over the seeds of the rest."""
    made = []
    for (group, name), seeds in _by_name(rows).items():
        line = {'group': group, 'row': name, 'seeds': len(seeds), **_line(seeds)}
        for other in OTHERS:
            if all(other in row for row in seeds):
                line[other] = _line([row[other] for row in seeds])
        made.append(line)
    return made


def _by_name(rows: Iterable[Figures]) -> dict[tuple[str, str], list[Figures]]:
    found: dict[tuple[str, str], list[Figures]] = {}
    for row in rows:
        found.setdefault((row['group'], row['row']), []).append(row)
    return found


def _line(seeds: Sequence[Figures]) -> Figures:
    shares = [len(row['solved']) / row['problems'] for row in seeds]
    solved, problems = (sum(x) for x in zip(*((len(r['solved']), r['problems']) for r in seeds)))
    flags = [True] * solved + [False] * (problems - solved)
    made = {
        'problems': problems,
        'right': metrics.accuracy(flags),
        'interval95': metrics.interval95(flags),
        'least': min(shares),
        'most': max(shares),
    }
    for key in (*MEANS, 'any', 'judge'):
        known = [row[key] for row in seeds if row[key] is not None]
        made[key] = statistics.mean(known) if known else None
    return made


def notes(rows: Sequence[Figures], ours: Mapping[str, str]) -> dict[str, list[str]]:
    """{group: sentences}: what beats the method's own row, or that nothing does.

    ours: {group: its row}. In a group without one, each row is compared with the plain samples that
    it holds.
    """
    found = _by_name(rows)
    made: dict[str, list[str]] = {}
    for group in dict.fromkeys(row['group'] for row in rows):
        names = [name for other, name in found if other == group]
        said = made.setdefault(group, [])
        if group not in ours:
            for name in names:
                said += _against_samples(f'MCTS ({group}: {name})', found[group, name])
        elif ours[group] in names:
            said += _against_all(group, ours[group], names, found)
    return made


def _against_all(group: str, ours: str, names: Sequence[str], found) -> Iterator[str]:
    mine, beaten = found[group, ours], False
    for name in names:
        if name == ours:
            continue
        other = found[group, name]
        pairs = [('for as many tokens', mine, other)]
        if all('in_time' in row for row in (*mine, *other)):
            pairs.append(
                ('in the same time', *([r | r['in_time'] for r in x] for x in (mine, other)))
            )
        for how, a, b in pairs:
            text = _loses(a, b)
            if text:
                beaten = True
                yield f'{ours} {text[0]} {name} {how}: {text[1]}'
    if not beaten and len(names) > 1:
        yield f'Nothing is above {ours}.'


def _against_samples(name: str, rows: Sequence[Figures]) -> Iterator[str]:
    for how, key in (('of as many tokens', 'samples'), ('of the same time', 'samples_in_time')):
        if all(key in row for row in rows):
            text = _loses(rows, [row | row[key] for row in rows])
            if text:
                yield f'{name} {text[0]} the majority of plain samples {how}: {text[1]}'


def _loses(mine: Sequence[Figures], other: Sequence[Figures]) -> tuple[str, str] | None:
    """('LOSES to', 'figures') where `other` solves more of the problems that both have."""
    seeds = {row['seed'] for row in mine} & {row['seed'] for row in other}
    solved, problems = [], 0
    for rows in (mine, other):
        kept = [row for row in rows if row['seed'] in seeds]
        solved.append({(row['seed'], *key) for row in kept for key in row['solved']})
        problems = sum(row['problems'] for row in kept)
    if len(solved[0]) >= len(solved[1]):
        return None
    won, lost, chance = metrics.mcnemar(solved[1], solved[0])
    word = 'LOSES to' if chance < 0.05 else 'is below, with no certain difference,'
    a, b = (100 * len(x) / problems for x in solved)
    return word, (
        f'{a:.1f} against {b:.1f} %, {won} problems won, {lost} lost (p = {chance:.2g}, '
        "McNemar's test)"
    )
