"""What fits on this machine's devices: python -m rstar_jax.plan

Of published models: the gigabytes that weights, gradients and moments hold, with the memory there
is. Beside them a search keeps its trees' keys and values, a training its activations: a fifth of
the memory is left to these. A PPM guides the search from round 3 on, and whenever a policy is
evaluated by search. LoRA ends as the whole model in float32. --plan of rstar_jax.main compiles and
tells more, for TPU slices.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from rich.table import Table

from rstar_jax import models, parallel
from rstar_jax.job import command, progress
from rstar_jax.models import published, weights
from rstar_jax.models.checkpoint import default_dtype
from rstar_jax.parallel.memory import device_bytes
from rstar_jax.settings.errors import UserError
from rstar_jax.training import lora

LEFT = 0.2  # of the memory, to everything else
RANK = 16  # of LoRA
WIDE = 4  # bytes of a weight in float32
FULL = 4 * WIDE  # of a trained one: itself, gradient, two moments


def held(shape: models.Config, dtype: str) -> dict[str, float]:
    """Bytes held by 'search', 'search with PPM', 'training' (in full) and 'LoRA' of a model."""
    params = weights.flatten(models.decoder.abstract_params(shape))
    width, count = jnp.dtype(dtype).itemsize, sum(math.prod(x.shape) for x in params.values())
    beside = RANK * sum(map(sum, lora.dense(shape).values()))
    return {
        'search': width * count,
        'search with PPM': 2 * width * count,
        'training': FULL * count,
        # While training, and when it is merged.
        'LoRA': max(width * count + FULL * beside, WIDE * (count + beside)),
    }


def table(memory: float, dtype: str, count: int = 1) -> Table:
    """What fits where each of `count` devices has so many bytes: 'fits' or not, and gigabytes.

    Searches have the weights on every device, trainings share theirs out: see parallel.shares.
    """
    alone = ('search', 'search with PPM')
    rows = [('model', 'search', 'search with PPM', 'training, LoRA', 'training, in full')]
    for name, shape in published.SHAPES.items():
        needs = held(shape, dtype)
        cells = []
        for kind in (*alone, 'LoRA', 'training'):
            devices = 1 if kind in alone else parallel.shares(shape, count)
            fits = needs[kind] <= (1 - LEFT) * memory * devices
            cells.append(f'{"fits" if fits else "no":4} {needs[kind] / 1e9:6.1f} GB')
        rows.append((name, *cells))
    return progress.table(rows)


def main(arguments: Sequence[str] = ()) -> int:
    """Prints what there is and what fits; returns the exit code."""
    if {'-h', '--help'} & set(arguments):
        return command.show_help(__doc__.strip())
    if arguments:
        raise UserError(f'{arguments[0]}: there are no options')
    mesh = parallel.local_mesh()
    device, count = jax.local_devices()[0], jax.local_device_count()
    memory, dtype = device_bytes(mesh), default_dtype()
    name = 'CPU' if device.platform == 'cpu' else device.device_kind
    print(f'{count} x {name} with {memory / 1e9:.0f} GB; weights in {dtype}\n')
    progress.show(table(memory, dtype, count))
    return 0
