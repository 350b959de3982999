"""Pairs of answers graded a second; precision and recall on the table of the tests."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time

from rstar_jax import grading
from rstar_jax.settings.errors import UserError

TABLE = pathlib.Path(__file__).parents[2] / 'tests' / 'grading' / 'pairs.txt'


def _table(path: pathlib.Path) -> list[tuple[str, str, bool]]:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except OSError as error:
        what = f'cannot be read ({error.strerror})'
        raise UserError(str(path), expected=what, remedy='set --table=FILE') from None
    out = []
    for line in lines:
        if line and not line.startswith('#'):
            truth, same, other = line.split(' | ')
            out += [(answer, truth, True) for answer in same.split(' ;; ')]
            out += [(answer, truth, False) for answer in other.split(' ;; ')]
    return out


@dataclasses.dataclass(frozen=True)
class Settings:
    """table: a file of pairs; workers: 0 is one a core."""

    table: str = str(TABLE)
    workers: int = 0
    repeats: int = 3


def run(settings: Settings) -> dict[str, float]:
    """Median of `repeats`, each with a new grader, so that nothing is remembered."""
    pairs = _table(pathlib.Path(settings.table))
    rates, found = [], []
    for _ in range(settings.repeats):
        with grading.Grader(settings.workers or None) as grader:
            warm = [grader.submit(f'x+{n}', f'{n}+x') for n in range(20)]
            [future.result() for future in warm]
            started = time.perf_counter()
            futures = [grader.submit(answer, truth) for answer, truth, _ in pairs]
            found = [future.result() for future in futures]
            rates.append(len(pairs) / (time.perf_counter() - started))
    right = sum(said and same for said, (_, _, same) in zip(found, pairs))
    return {
        'pairs': len(pairs),
        'pairs_per_second': statistics.median(rates),
        'seconds_per_1000': 1000 / statistics.median(rates),
        'precision': right / max(1, sum(found)),
        'recall': right / sum(same for _, _, same in pairs),
    }
