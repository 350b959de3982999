"""What fits on this machine's devices: python -m rstar_jax.plan

Of published models: the gigabytes that weights, gradients and moments hold, with the memory there
is. Beside them a search keeps its trees' keys and values, a training its activations: a fifth of
the memory is left to these. A PPM guides the search from round 3 on, and whenever a policy is
evaluated by search. LoRA ends as the whole model in float32. --plan of rstar_jax.main compiles and
tells more, for TPU slices.
"""

import sys
from collections.abc import Sequence

import jax
from rich.table import Table

from rstar_jax import models, parallel, training
from rstar_jax.job import command, progress
from rstar_jax.models import published
from rstar_jax.parallel import fast_dtype
from rstar_jax.parallel.memory import device_bytes
from rstar_jax.settings.errors import UserError
from rstar_jax.training.memory import held

LEFT = 0.2  # of the memory, to everything else
RANK = 16  # of LoRA


def needs(shape: models.Config, dtype: str) -> dict[str, float]:
    """Bytes held by 'search', 'search with PPM', 'LoRA' and 'training' (in full) of a model."""
    policy, ppm = (held(shape, dtype, headless=headless).weights for headless in (False, True))
    low_rank, full = (training.settings('sft', {'lora': rank}) for rank in (RANK, 0))
    return {
        'search': policy,
        'search with PPM': policy + ppm,
        'LoRA': held(shape, dtype, low_rank).most,
        'training': held(shape, dtype, full).most,
    }


def table(memory: float, dtype: str, count: int = 1) -> Table:
    """What fits where each of `count` devices has so many bytes: 'fits' or not, and gigabytes.

    Searches have the weights on every device, trainings share theirs out: see parallel.shares.
    """
    rows = [('model', 'search', 'search with PPM', 'training, LoRA', 'training, in full')]
    for name, shape in published.SHAPES.items():
        cells = []
        for kind, need in needs(shape, dtype).items():
            devices = 1 if kind.startswith('search') else parallel.shares(shape, count)
            fits = need <= (1 - LEFT) * memory * devices
            cells.append(f'{"fits" if fits else "no":4} {need / 1e9:6.1f} GB')
        rows.append((name, *cells))
    return progress.table(rows)


def main(arguments: Sequence[str] = ()) -> int:
    """Prints what there is and what fits; returns the exit code."""
    if {'-h', '--help'} & set(arguments):
        return command.show_help(__doc__.strip())
    if arguments:
        raise UserError(arguments[0], expected='there are no options')
    device, count = jax.local_devices()[0], jax.local_device_count()
    memory, dtype = device_bytes(parallel.local_mesh()), fast_dtype()
    name = 'CPU' if device.platform == 'cpu' else device.device_kind
    print(f'{count} x {name} with {memory / 1e9:.0f} GB; weights in {dtype}\n')
    progress.show(table(memory, dtype, count))
    return 0


if __name__ == '__main__':
    sys.exit(command.guarded(lambda: main(sys.argv[1:])))
