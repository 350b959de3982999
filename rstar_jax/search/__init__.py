"""Monte Carlo tree search over program steps, vectorised over trees and devices."""

from rstar_jax.search.config import Config, greedy, sampled, trees_for
from rstar_jax.search.live import Job, Live
from rstar_jax.search.record import Record, Status
from rstar_jax.search.runner import Workers, run
from rstar_jax.search.scripted import scripted

__all__ = [
    'Config',
    'Job',
    'Live',
    'Record',
    'Status',
    'Workers',
    'greedy',
    'run',
    'sampled',
    'scripted',
    'trees_for',
]
