"""Local models as an expander: paths and steps as keys and values on this host's devices."""

from rstar_jax.search.engine.local import Engine

__all__ = ['Engine']
