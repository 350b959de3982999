"""Pairs of answers graded a second; precision and recall on the table of the tests."""

from __future__ import annotations

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
        raise UserError(f'{path}: cannot be read ({error.strerror}); set --table=FILE') from None
    out = []
    for line in lines:
        if line and not line.startswith('#'):
            truth, same, other = line.split(' | ')
            out += [(answer, truth, True) for answer in same.split(' ;; ')]
            out += [(answer, truth, False) for answer in other.split(' ;; ')]
    return out


def run(*, table: str = str(TABLE), workers: int = 0, repeats: int = 3) -> dict[str, float]:
    """Median of `repeats`, each with a new grader, so that nothing is remembered."""
    pairs = _table(pathlib.Path(table))
    rates, found = [], []
    for _ in range(repeats):
        with grading.Grader(workers or None) as grader:
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
