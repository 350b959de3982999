"""Experiments over whole runs: what each part of the method is worth.

variants    what is done differently, and which numbers are compared
ablations   runs them, seed by seed, and writes the table
figures     one number of it, with its costs
checks      what cannot be compared, told at the start
"""

from rstar_jax.study.ablations import run
from rstar_jax.study.checks import check

__all__ = ['check', 'run']
