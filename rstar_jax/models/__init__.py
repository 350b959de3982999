"""Small language models in Flax: one decoder for all families, in and out of Hugging Face files."""

from rstar_jax.models import decoder
from rstar_jax.models.checkpoint import (
    check,
    is_ppm,
    load,
    load_as,
    load_ppm,
    read_config,
    save,
    save_ppm,
)
from rstar_jax.models.config import Config, Rope
from rstar_jax.models.policy import PPM, Policy, add_tokens, init_ppm, new_tokens
from rstar_jax.models.quantized import quantized

__all__ = [
    'PPM',
    'Config',
    'Policy',
    'Rope',
    'add_tokens',
    'check',
    'decoder',
    'init_ppm',
    'is_ppm',
    'load',
    'load_as',
    'load_ppm',
    'new_tokens',
    'quantized',
    'read_config',
    'save',
    'save_ppm',
]
