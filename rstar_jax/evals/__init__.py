"""Evaluation: benchmarks, the choice among trajectories, intervals, results.json."""

from rstar_jax.evals import benchmarks, metrics, selection
from rstar_jax.evals.evaluation import STRATEGIES, Config, run

__all__ = ['STRATEGIES', 'Config', 'benchmarks', 'metrics', 'run', 'selection']
