"""In which dtype a network is trained: what is asked for, and what the devices have."""

import jax
import jax.numpy as jnp

from rstar_jax.models.checkpoint import default_dtype


def compute_dtype(settings) -> jnp.dtype:
    """The dtype the network runs in: settings.dtype, or what the device is fast at."""
    return jnp.dtype(settings.dtype or fast_dtype())


def lacks(dtype: jnp.dtype) -> bool:
    """Whether the device has no instructions for products of `dtype`, and takes wider ones."""
    if dtype == jnp.float32:
        return False
    if jax.default_backend() == 'gpu':  # all have float16
        return dtype == jnp.bfloat16 and fast_dtype() == 'float16'
    return dtype != default_dtype()


def fast_dtype() -> str:
    """What the device trains fast in: bfloat16, or float16 on GPUs that are older than it."""
    found = default_dtype()
    return 'float16' if found == 'float32' and jax.default_backend() == 'gpu' else found
