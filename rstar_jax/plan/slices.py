"""What is planned for: TPU slices as their compiler describes them, models by their shapes."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from rstar_jax import models
from rstar_jax.models import published
from rstar_jax.settings import table
from rstar_jax.settings.errors import UserError, one_line

SLICE = re.compile(r'\w+:[1-9]\d*(x[1-9]\d*)*')
# Eight chips are to be had as one machine: v5litepod-8, v6e-8.
ONE_HOST = {'v5e:2x4': (2, 4, 1), 'v6e:2x4': (2, 4, 1)}
# The compiler's library asks for a TPU's host, and says at length that there is none.
QUIET = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several may compile at once: no chip is touched
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
}


def slice_chips(topology: str) -> list[Any]:
    """The chips of a TPU slice ('v5e:4x8'), as the compiler for it describes them."""
    # This machine need not be a TPU's host, and where it is one, its chips are left alone.
    jax.config.update('jax_platforms', 'cpu')
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        if not SLICE.fullmatch(topology):  # of 0x0 the compiler's library dies
            raise ValueError('not the name of a generation, a colon and chips of each dimension')
        described = topologies.get_topology_desc(topology, platform='tpu', **options(topology))
        return list(described.devices)
    except Exception as error:  # the compiler's library raises many kinds
        needs = 'needs a TPU slice such as v5e:2x4, and the compiler for it'
        remedy = f'pip install "jax[tpu]" ({one_line(error)})'
        raise UserError('topology', topology, needs, remedy) from None


def options(topology: str) -> dict[str, Any]:
    """What the compiler has to be told besides, for the slice to be as JAX finds it on the spot."""
    # It takes hosts of 2 x 2 chips for granted.
    single = {'1'} == set(topology.partition(':')[2].split('x'))
    bounds = (1, 1, 1) if single else ONE_HOST.get(topology)
    found: dict[str, Any] = {'chips_per_host_bounds': bounds} if bounds else {}
    if topology.startswith('v4:'):  # as on the chip itself, where its two cores are one device
        found['chip_config_name'] = 'megacore'
    return found


def host_chips(chips: Sequence[Any]) -> list[Any]:
    """Those of a slice's chips that its first host drives: a search needs no others."""
    return [chip for chip in chips if chip.process_index == chips[0].process_index]


def models_of(path: str, base: str = '') -> dict[str, models.Config]:
    """The model at `path`, by its name; where a run is to make it, of `base`, or the paper's.

    Raises UserError: neither a model on disk nor one whose shape is known.
    """
    path = base if base and path == table.PREVIOUS else path
    if path in ('', table.PREVIOUS, table.TINY):
        return {name: published.SHAPES[name] for name in published.PAPER}
    folder = pathlib.Path(os.path.expanduser(path))
    if folder.exists():
        return {folder.name: models.read_config(folder)}
    return {published.find(path) or path: published.shape(path)}
