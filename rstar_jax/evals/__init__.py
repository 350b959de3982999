"""Evaluation: benchmarks, the choice among trajectories, intervals, results.json, the report."""

from rstar_jax.evals import benchmarks, metrics, report, selection
from rstar_jax.evals.evaluation import STRATEGIES, Config, run

__all__ = ['STRATEGIES', 'Config', 'benchmarks', 'metrics', 'report', 'run', 'selection']
