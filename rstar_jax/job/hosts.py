"""Launch as several processes: join them, meet between stages, end together.

The same command is started once a host, or once a group of a host's devices. Which launcher did
that is read from the environment: three variables of JAX's (plain addresses; GKE's JobSet sets
them), SLURM, Open MPI, or a TPU pod slice. One process alone does nothing of all this.

Who has come and who is gone is told by `roll`, on the port after the coordinator's; the rest is
JAX's: what devices exchange, and the counters by which work is dealt.
"""

import os
import pathlib
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rstar_jax.job.atomic import STALE_SECONDS
from rstar_jax.job.interrupts import leave
from rstar_jax.job.roll import GONE, Roll
from rstar_jax.settings.errors import UserError, tell

OWN = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
START_SECONDS = 300.0  # in which all processes have to come
GRACE = 3.0  # seconds for a process to end by itself when another has failed
PREEMPTED = 128 + signal.SIGTERM
LAST_PORT = 65535
GPUS = pathlib.Path('/dev/nvidiactl')  # is there where NVIDIA's GPUs are, in containers too
TUNING = 'xla_gpu_shard_autotuning'

_roll: Roll | None = None
_lost = threading.Event()


def launch_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` needs, or None when launched as one process.

    An empty dict means that JAX finds everything out for itself (SLURM, Open MPI, TPU pod).
    """
    given = [name for name in OWN if environment.get(name)]
    if len(given) == len(OWN):
        try:
            count, number = (int(environment[name]) for name in OWN[1:])
        except ValueError:
            raise UserError(f'{OWN[1]}, {OWN[2]}', expected='need whole numbers') from None
        if not 0 <= number < count:
            raise UserError(OWN[2], number, f'needs 0 to {count - 1} ({OWN[1]}={count})')
        return {
            'coordinator_address': environment[OWN[0]],
            'num_processes': count,
            'process_id': number,
            # In a step of SLURM's JAX would else give this process one of its devices.
            'cluster_detection_method': 'deactivate',
        }
    if given:
        missing = ', '.join(name for name in OWN if name not in given)
        raise UserError(
            missing, expected=f'not set, {given[0]} is', remedy='set all three, or none'
        )
    several = (
        int(environment.get('SLURM_NTASKS') or 1) > 1 and 'SLURM_PROCID' in environment,
        int(environment.get('OMPI_COMM_WORLD_SIZE') or 1) > 1,
        int(environment.get('MEGASCALE_NUM_SLICES') or 1) > 1,
        len([h for h in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if h]) > 1,
    )
    return {} if any(several) else None


def initialise(environment: Mapping[str, str] = os.environ, seconds: float = START_SECONDS) -> None:
    """Joins the processes of this job; must come before the first use of a device.

    Raises:
      UserError: some have not come within `seconds`; it names them (`Later`). Or this process
        does not belong to them.
    """
    global _roll
    arguments = launch_arguments(environment)
    if arguments is None:
        return
    # It would take SIGTERM away from rstar_jax.interrupts, and a process would live on.
    jax.config.update('jax_enable_preemption_service', False)
    arguments = arguments or _found_by_jax(environment, seconds)
    if arguments:
        host, _, port = str(arguments['coordinator_address']).rpartition(':')
        number, count = int(arguments['process_id']), int(arguments['num_processes'])
        if not host or not port.isdigit():
            raise UserError(OWN[0], arguments['coordinator_address'], 'expected HOST:PORT')
        roll = Roll(host, _roll_port(int(port)), number, count, _when_lost)
        roll.call(seconds)
        _roll = roll
    _tune_alone()
    jax.distributed.initialize(**arguments, initialization_timeout=int(seconds))


def _roll_port(port: int) -> int:
    """The one after the coordinator's, before the last port, which JAX may take."""
    return port + 1 if port < LAST_PORT else port - 1


def _tune_alone() -> None:
    """Has each process choose the kernels of its GPUs alone; before XLA reads its flags.

    XLA has the processes share that out, and each waits a day for the others' parts: for ever where
    another one has found the program compiled on its disk.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if GPUS.exists() and TUNING not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} --{TUNING}=false'.strip()


def _found_by_jax(environment: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """What JAX reads from SLURM, Open MPI or a TPU pod; nothing where a later JAX hides it.

    JAX gives each process of SLURM and Open MPI one device. Here a process that is the only one on
    its host has them all.

    Raises:
      UserError: JAX does not find the others, as without its part for TPUs.
    """
    try:
        from jax._src.clusters import ClusterEnv

        address, count, number, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(seconds)
        )
    except (ImportError, AttributeError, TypeError):
        return {}
    if address is None or count is None or number is None:
        raise UserError(
            'this is one of several processes',
            expected='JAX does not find the others',
            remedy='on TPUs install its part for them (pip install "jax[tpu]"), elsewhere set '
            f'{", ".join(OWN)}',
        )
    found = {'coordinator_address': address, 'num_processes': count, 'process_id': number}
    if devices is None or _alone_on_host(environment):
        return {**found, 'cluster_detection_method': 'deactivate'}
    return {**found, 'local_device_ids': devices}


def _alone_on_host(environment: Mapping[str, str]) -> bool:
    slurm = environment.get('SLURM_STEP_TASKS_PER_NODE', '')  # such as '1(x4)'
    return environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1' or bool(
        re.fullmatch(r'1(\(x\d+\))?', slurm)
    )


def _when_lost(number: int, text: str, code: int) -> None:
    """Ends this process as another one has ended: what is done is saved where there is time."""
    _lost.set()
    if code == PREEMPTED:
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if code != GONE:  # what ended the other may end this one too, which says so itself
        time.sleep(GRACE)
    tell(f'{text}: the job ends; run the same command again to go on')
    if number and code == GONE:  # without the first, JAX ends this process at once
        time.sleep(GRACE)
    leave(1 if code == GONE else code)


def end(code: int, why: str = '') -> bool:
    """Lets the other processes know that this one ends, and with code other than 0 ends them.

    Without this, an ended process is one that is gone. Where it ends as it has lost another, it
    waits to be ended for that. False where it is alone.
    """
    if _roll is None:
        return False
    if code and code != PREEMPTED and _lost.wait(GRACE / 2):
        time.sleep(2 * GRACE)
    _roll.leave(code, why or ('was preempted' if code == PREEMPTED else 'has ended'))
    return True


def is_first() -> bool:
    """True on the one process that writes what is written once."""
    return jax.process_index() == 0


def take(name: str) -> int | None:
    """The next number of a count that all processes share, from 0; None where JAX has none."""
    from jax._src import distributed

    increment = getattr(distributed.global_state.client, 'key_value_increment', None)
    return None if increment is None else increment(f'rstar_jax/{name}', 1) - 1


def barrier(name: str) -> None:
    """Waits until every process has come to the point of this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gathered(number: int) -> list[int]:
    """The numbers that the processes call this with, each of them once, in their order."""
    if jax.process_count() == 1:
        return [number]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.int32(number)).tolist()


def alike(value: Any) -> bool:
    """Whether the processes, each of which calls this once, do so with the same, by its `repr`."""
    return len(set(gathered(zlib.crc32(repr(value).encode()) >> 1))) == 1


def alike_soon(look: Callable[[], Any]) -> bool:
    """Whether the processes come to see the same in STALE_SECONDS; each looks once a second.

    For what lies on a shared disk, which may tell a machine late of what others have done.
    """
    for _ in range(round(STALE_SECONDS)):  # counted, so that all give up at once
        if alike(look()):
            return True
        time.sleep(1)
    return False


def of_first(arrays: Any) -> Any:
    """A tree of arrays as the first process has it, in all of them, which call this."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(arrays)


def greatest(number: int) -> int:
    """The greatest of the numbers that the processes call this with, each of them once."""
    return max(gathered(number))


def sharing_cores() -> int:
    """How many of the processes, all of which call this, have this one's cores; itself included."""
    if jax.process_count() == 1:
        return 1
    try:
        machine = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii')
        cores = sorted(os.sched_getaffinity(0))
    except (OSError, AttributeError):  # not Linux
        machine, cores = socket.gethostname(), []
    mine = zlib.crc32(f'{machine}{cores}'.encode()) >> 1
    return gathered(mine).count(mine)
