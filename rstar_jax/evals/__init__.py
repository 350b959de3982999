"""Evaluation: benchmarks, the choice among trajectories, intervals, results.json."""

from rstar_jax.evals import benchmarks, comparison, metrics, selection
from rstar_jax.evals.evaluation import GUIDED, Config, read, run

__all__ = [
    'GUIDED',
    'Config',
    'benchmarks',
    'comparison',
    'metrics',
    'read',
    'run',
    'selection',
]
