"""Monte Carlo tree search over program steps, vectorised over trees and devices."""

from rstar_jax.search.record import Record, Status

__all__ = ['Record', 'Status']
