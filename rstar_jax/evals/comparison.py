"""Rows of several seeds made one table, and what follows from it in words.

A row of one seed: {"group", "row", "seed", "problems": n, "solved": [[benchmark, index], ...],
"any": a or null, "trees": t, "tokens": x, "seconds": x, "judge": auc or null}; with "in_time",
"samples", "samples_in_time" it holds the same again, but for the first three. Where it is known,
"asked" is {benchmark: [a hash of its questions, problems]}.

Seeds that were asked the same questions have the same problems, and what is hard for one is hard
for the others: intervals and tests are over problems then, with what all seeds made of each. They
tell of the models that these seeds trained; other seeds' may differ by more, so a row loses to
another only if no seed says the opposite.
"""

import collections
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rstar_jax.evals import metrics

Figures = dict[str, Any]
Tally = tuple[collections.Counter, collections.Counter]
MEANS = ('trees', 'tokens', 'seconds')
OTHERS = ('in_time', 'samples', 'samples_in_time')
AS_MANY = 1.25  # times the tokens: a budget buys whole trees
FLIPS = 100_000


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
                line[other] = _line([row | row[other] for row in seeds])
        made.append(line)
    return made


def _by_name(rows: Iterable[Figures]) -> dict[tuple[str, str], list[Figures]]:
    found: dict[tuple[str, str], list[Figures]] = {}
    for row in rows:
        found.setdefault((row['group'], row['row']), []).append(row)
    return found


def _line(seeds: Sequence[Figures]) -> Figures:
    shares = [len(row['solved']) / row['problems'] for row in seeds]
    asked, solved = _tally(seeds, _known(seeds))
    made = {
        'problems': sum(count for *_, count in asked),
        'right': solved.total() / _times(asked),
        'interval95': _interval95(asked, solved),
        'least': min(shares),
        'most': max(shares),
    }
    for key in (*MEANS, 'any', 'judge'):
        known = [row[key] for row in seeds if row[key] is not None]
        made[key] = statistics.mean(known) if known else None
    return made


def _known(rows: Iterable[Figures]) -> bool:
    return all('asked' in row for row in rows)


def _tally(rows: Iterable[Figures], known: bool) -> Tally:
    """({set of problems: times it was asked}, {(set, problem): times it was solved}).

    known: whether sets are told apart by their questions; else each seed has its own. The last
    element of a set is how many problems it has.
    """
    asked, solved = collections.Counter(), collections.Counter()
    for row in rows:
        sets = {name: (name, *told) for name, told in row['asked'].items()} if known else {}
        own = 'seed', row['seed'], row['problems']
        asked.update(sets.values() or [own])
        solved.update((sets.get(name, own), name, index) for name, index in row['solved'])
    return asked, solved


def _times(asked: collections.Counter) -> int:
    """How often all problems were asked."""
    return sum(times * count for (*_, count), times in asked.items())


def _interval95(asked: collections.Counter, solved: collections.Counter) -> list[float]:
    """Of the share right: Wilson's, or the middle 95 % of it over problems drawn again."""
    problems = sum(count for *_, count in asked)
    kinds = collections.Counter((asked[where], times) for (where, *_), times in solved.items())
    told = collections.Counter(where for where, *_ in solved)
    for where, times in asked.items():
        kinds[times, 0] += where[-1] - told[where]
    alike = len({right / times for (times, right), count in kinds.items() if count}) == 1
    if max(asked.values()) == 1 or problems < metrics.FEW or alike:
        return metrics.wilson(solved.total() / _times(asked), problems)
    pairs, counts = np.array([*kinds]), np.array([*kinds.values()])
    drawn = np.random.default_rng(0).multinomial(
        counts.sum(), counts / counts.sum(), size=metrics.RESAMPLES
    )
    shares = drawn @ pairs[:, 1] / (drawn @ pairs[:, 0])
    return [float(x) for x in np.quantile(shares, [0.025, 0.975])]


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
        pairs = [(' for as many tokens' if _as_many(mine, other) else '', mine, other)]
        if all('in_time' in row for row in (*mine, *other)):
            pairs.append(
                (' in the same time', *([r | r['in_time'] for r in x] for x in (mine, other)))
            )
        for how, a, b in pairs:
            text = _loses(a, b)
            if text:
                beaten = True
                yield f'{ours} {text[0]} {name}{how}: {text[1]}'
    if not beaten and len(names) > 1:
        yield f'Nothing is above {ours}.'


def _against_samples(name: str, rows: Sequence[Figures]) -> Iterator[str]:
    for how, key in (('of as many tokens', 'samples'), ('of the same time', 'samples_in_time')):
        if all(key in row for row in rows):
            text = _loses(rows, [row | row[key] for row in rows])
            if text:
                yield f'{name} {text[0]} the majority of plain samples {how}: {text[1]}'


def _of_both(mine: Sequence[Figures], other: Sequence[Figures]) -> list[list[Figures]]:
    """Of each, the rows of the seeds that both have."""
    seeds = {row['seed'] for row in mine} & {row['seed'] for row in other}
    return [[row for row in rows if row['seed'] in seeds] for rows in (mine, other)]


def _as_many(mine: Sequence[Figures], other: Sequence[Figures]) -> bool:
    """Whether both spend about as many tokens."""
    tokens = sorted(sum(row['tokens'] for row in rows) for rows in _of_both(mine, other))
    return tokens[1] <= AS_MANY * tokens[0]


def _loses(mine: Sequence[Figures], other: Sequence[Figures]) -> tuple[str, str] | None:
    """('LOSES to', 'figures') where `other` solves more of the problems that both have."""
    both = _of_both(mine, other)
    per_seed = collections.defaultdict(list)
    for rows in both:
        for row in rows:
            per_seed[row['seed']].append(len(row['solved']))
    known = _known(row for rows in both for row in rows)
    (asked, solved), (_, more) = (_tally(rows, known) for rows in both)
    if solved.total() >= more.total():
        return None
    gaps = [gap for key in solved | more if (gap := more[key] - solved[key])]
    won, lost = sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    if max(asked.values()) == 1:
        *_, chance = metrics.mcnemar(solved, more)
        test = "McNemar's test"
    else:
        chance, test = _chance(gaps), 'permutation test by problems'
    below = sum(a < b for a, b in per_seed.values())
    alike = all(a <= b for a, b in per_seed.values())
    word = 'LOSES to' if chance < 0.05 and alike else 'is below, with no certain difference,'
    if len(per_seed) > 1:
        test += f'; in {below} of {len(per_seed)} seeds'
    a, b = (100 * x.total() / _times(asked) for x in (solved, more))
    return word, (
        f'{a:.1f} against {b:.1f} %, {won} problems won, {lost} lost (p = {chance:.2g}, {test})'
    )


def _chance(gaps: Sequence[int]) -> float:
    """The probability of a sum at least as far from 0, were the sign of each a coin's (Fisher)."""
    sizes, counts = np.unique(np.abs(gaps), return_counts=True)
    heads = np.random.default_rng(0).binomial(counts, 0.5, size=(FLIPS, len(counts)))
    sums = (2 * heads - counts) @ sizes
    return float(1 + (np.abs(sums) >= abs(sum(gaps))).sum()) / (1 + FLIPS)
