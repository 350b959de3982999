"""Evaluation: benchmarks, the choice among trajectories, intervals, results.json, the report."""

from rstar_jax.evals import benchmarks, metrics, report, selection
from rstar_jax.evals.evaluation import BASE, Config, run

__all__ = ['BASE', 'Config', 'benchmarks', 'metrics', 'report', 'run', 'selection']
