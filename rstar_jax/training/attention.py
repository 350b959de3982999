"""Which attention a training has: a loop over pairs of blocks, on TPUs the splash kernel.

Both give the decoder's `attend` for packed rows, and leave out blocks that do not see each other.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from rstar_jax import parallel
from rstar_jax.training import block_attention, splash

BY_NAME = {'loop': block_attention.packed, 'splash': splash.packed}


def chosen(choice: str, config, length: int, dtype: jnp.dtype) -> str:
    """What computes attention in rows of `length` tokens, on the devices of jax.set_mesh: BY_NAME.

    choice: the setting `attention`. Rows of one block have nothing to leave out and little
    attention; float32 is for comparisons, by the same code everywhere; heads of a group stay on one
    device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cut = not mesh.empty and config.num_kv_heads % mesh.shape['tensor']
    fast = parallel.platform() == 'tpu' and dtype == jnp.bfloat16 and length > splash.BLOCK
    return 'splash' if choice == 'auto' and fast and not cut else 'loop'


def told(choice: str, config, lengths: Iterable[int], dtype: jnp.dtype) -> str:
    """What `chosen` gives for rows of these lengths, in words."""
    by: dict[str, list[str]] = {}
    for length in sorted(set(lengths)):
        by.setdefault(chosen(choice, config, length, dtype), []).append(str(length))
    if len(by) == 1:
        return next(iter(by))
    return ', '.join(f'{name} in rows of {" and ".join(rows)}' for name, rows in by.items())
