"""Tables beside the main one: what each strategy finds at what cost, and how well judges judge."""

from collections.abc import Mapping, Sequence
from typing import Any

from rstar_jax.evals import report, selection

Rows = list[tuple[str, ...]]


def strategies(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Every strategy of every round, cells by columns, heading first; [] where only greedy ran."""
    rows: Rows = []
    for result, name, strategy, figures in _each(results):
        shares = [_share(figures, mode) for mode in ('greedy', *selection.MODES)]
        flops = figures['flops_per_problem']
        rows.append(
            (
                name,
                report.policy_name(result['round']),
                strategy,
                str(figures['trajectories']),
                *shares,
                f'{figures["tokens_per_problem"]:,.0f}',
                f'{figures["seconds_per_problem"]:.2f}',
                '-' if flops is None else f'{flops / 1e12:.3g}',
            )
        )
    if all(row[2] == 'greedy' for row in rows):
        return []
    heading = (
        *('benchmark', 'policy', 'strategy', 'trees', 'greedy', 'best', 'majority', 'weighted'),
        *('any', 'tokens', 'seconds', 'TFLOPs'),
    )
    return [heading, *rows]


def judges(results: Sequence[Mapping[str, Any]]) -> Rows:
    """How often PPM and policy rank a right answer above a wrong one; [] where nothing tells."""
    rows: Rows = []
    for result, name, strategy, figures in _each(results):
        judge = figures['judge']
        if not judge or not judge['pairs']:
            continue
        rows.append(
            (
                name,
                report.policy_name(result['round']),
                strategy,
                f'{judge["pairs"]:,} of {judge["problems"]:,} problems',
                _share(judge, 'auc'),
                _share(judge, 'auc_likelihood'),
            )
        )
    heading = (
        *('benchmark', 'policy', 'answers of', 'pairs right-wrong', 'PPM ranks rightly'),
        'likelihood does',
    )
    return [heading, *rows] if rows else []


def _each(results: Sequence[Mapping[str, Any]]):
    for name in dict.fromkeys(name for result in results for name in result['benchmarks']):
        for result in results:
            row = result['benchmarks'].get(name, {})
            for strategy, figures in row.get('strategies', {}).items():
                yield result, name, strategy, figures


def _share(figures: Mapping[str, Any], key: str) -> str:
    """'58.0 [51-65]', percent and the 95 % interval; '-' where there is none."""
    if figures.get(key) is None:
        return '-'
    low, high = figures['interval95'][key]
    return f'{100 * figures[key]:.1f} [{100 * low:.0f}-{100 * high:.0f}]'
