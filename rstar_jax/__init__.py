"""rstar_jax: small language models that teach themselves mathematics by searching over steps."""

__version__ = '0.1.0'
