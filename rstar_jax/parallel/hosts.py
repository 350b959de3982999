"""Launch on several hosts: join them, share out the work, meet between stages.

The same command is started once a host. Which launcher did that is read from the environment:
three variables of our own, SLURM, Open MPI, or a TPU pod slice. On one host nothing happens.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

from rstar_jax.errors import UserError

T = TypeVar('T')

OWN = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def launch_arguments(environment: Mapping[str, str]) -> dict[str, str | int] | None:
    """What `jax.distributed.initialize` needs, or None when launched on one host.

    An empty dict means that JAX finds everything out for itself (SLURM, Open MPI, TPU pod).
    """
    given = [name for name in OWN if environment.get(name)]
    if len(given) == len(OWN):
        try:
            count, number = (int(environment[name]) for name in OWN[1:])
        except ValueError:
            raise UserError(f'{OWN[1]}, {OWN[2]}: need whole numbers') from None
        if not 0 <= number < count:
            raise UserError(f'{OWN[2]}={number}: needs 0 to {count - 1} ({OWN[1]}={count})')
        return {
            'coordinator_address': environment[OWN[0]],
            'num_processes': count,
            'process_id': number,
        }
    if given:
        missing = ', '.join(name for name in OWN if name not in given)
        raise UserError(f'{given[0]} is set but {missing} is not: set all three, or none')
    several = (
        int(environment.get('SLURM_NTASKS') or 1) > 1 and 'SLURM_PROCID' in environment,
        int(environment.get('OMPI_COMM_WORLD_SIZE') or 1) > 1,
        len([h for h in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if h]) > 1,
    )
    return {} if any(several) else None


def initialise(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the hosts of this run; must come before the first use of a device."""
    arguments = launch_arguments(environment)
    if arguments is not None:
        # It would take SIGTERM away from rstar_jax.interrupts, and a process would live on.
        jax.config.update('jax_enable_preemption_service', False)
        jax.distributed.initialize(**arguments)


def is_first() -> bool:
    """True on the one process that writes what is written once."""
    return jax.process_index() == 0


def share(items: Sequence[T]) -> list[T]:
    """This host's part of the items: every process_count-th, so that parts are alike in size."""
    return list(items[jax.process_index() :: jax.process_count()])


def barrier(name: str) -> None:
    """Waits until every host has come to the point of this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def greatest(number: int) -> int:
    """The greatest of the numbers that the processes call this with, each of them once."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        number = int(multihost_utils.process_allgather(np.int32(number)).max())
    return number
