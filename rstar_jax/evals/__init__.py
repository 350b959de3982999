"""Evaluation: benchmarks, the choice among trajectories, intervals, results.json."""

from rstar_jax.evals import benchmarks, comparison, metrics, selection
from rstar_jax.evals.evaluation import GUIDED, STRATEGIES, Config, read, run

__all__ = [
    'GUIDED',
    'STRATEGIES',
    'Config',
    'benchmarks',
    'comparison',
    'metrics',
    'read',
    'run',
    'selection',
]
