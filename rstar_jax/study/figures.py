"""What a row of the table came to: accuracy and costs, and the same set beside plain samples."""

import zlib
from typing import Any

from rstar_jax import evals
from rstar_jax.evals import comparison
from rstar_jax.job import ledger
from rstar_jax.models import trained
from rstar_jax.stages import Round, problems
from rstar_jax.study.variants import Row

Figures = dict[str, Any]


def figures(row: Row, round_: Round, samples: Round | None) -> Figures:
    """What a row came to, with its costs.

    samples: the evaluation that holds plain samples for as many tokens.
    """
    made = _measured(round_, row.strategy, row.mode)
    if row.group == 'data':
        done = ledger.read_json(round_.folder / 'search' / 'done.json')
        told = {**done['figures'], 'seconds': done['seconds']}
        for key in ('trees', 'tokens', 'seconds'):
            made[key] = told[key] / told['problems']
    elif samples is not None and row.group != 'strength' and row.strategy != 'greedy':
        plain = _measured(samples, 'sampled', 'majority')
        if row.group == 'rollouts':
            for name, key in (('samples', 'tokens'), ('samples_in_time', 'seconds')):
                count = round(plain['trees'] * made[key] / plain[key])
                if 1 <= count <= plain['trees']:  # else there are not so many
                    part = count / plain['trees']
                    made[name] = _first(samples, round_, 'sampled', 'majority', plain, part)
        else:
            part = min(1.0, plain['seconds'] / made['seconds'])
            if part * made['trees'] >= 1:  # else not even one tree is done in the time
                made['in_time'] = _first(round_, round_, row.strategy, row.mode, made, part)
    return made


def _measured(round_: Round, strategy: str, mode: str) -> Figures:
    """What a complete evaluation tells of a strategy, all benchmarks together."""
    results = ledger.read_json(round_.folder / 'eval' / 'results.json')['benchmarks']
    made = comparison.pooled(
        {name: (row['problems'], row['strategies'][strategy]) for name, row in results.items()},
        mode,
    )
    if all('asked' in row for row in results.values()):  # not of an earlier version
        made['asked'] = {
            name: [zlib.crc32(repr(row['asked']).encode()), row['problems']]
            for name, row in results.items()
        }
    return made


def _first(
    round_: Round, asked: Round, strategy: str, mode: str, whole: Figures, part: float
) -> Figures:
    """What a part of the trees of each problem, the first ones, would have given.

    Of several benchmarks, which may have other numbers of trees, it is the same part.

    asked: whose problems. whole: what all trees gave, and took.
    """
    results = ledger.read_json(round_.folder / 'eval' / 'results.json')['benchmarks']
    scored = strategy != 'unguided' and trained.holds(round_.folder / 'ppm')
    found = {}
    for name, own in problems.benchmarks(asked).items():
        trees = part * results[name]['strategies'][strategy]['trajectories']
        figures = evals.read(
            round_.folder / 'eval', name, own, strategy, max(1, int(trees + 1e-9)),
            scored=scored,
        )  # fmt: skip
        found[name] = len(own), figures
    made = comparison.pooled(found, mode)
    return made | {'seconds': whole['seconds'] * made['trees'] / whole['trees']}
