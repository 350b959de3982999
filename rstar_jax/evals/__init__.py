"""Evaluation: benchmarks, the choice among trajectories, intervals, results.json."""

from rstar_jax.evals import benchmarks, metrics, selection
from rstar_jax.evals.evaluation import Config, run

__all__ = ['Config', 'benchmarks', 'metrics', 'run', 'selection']
