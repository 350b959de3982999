"""Starts the same command in several processes that find each other, as a launcher would."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence

from rstar_jax.job.roll import free_port

REPOSITORY = pathlib.Path(__file__).parents[2]


def environment_of(devices: int) -> dict[str, str]:
    """The environment of a process that has so many devices. Of a flag that comes twice, the last
    one holds."""
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
    return {**os.environ, 'XLA_FLAGS': flags}


def run(command: Sequence[str], processes: int, devices: int) -> list[str]:
    """What each of `processes` with `devices` fake devices printed; all must succeed."""
    environment = environment_of(devices)
    if processes > 1:
        environment |= {
            'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}',
            'JAX_NUM_PROCESSES': str(processes),
        }
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(processes):
            # Files: a pipe that nobody reads yet would fill up.
            output = stack.enter_context(tempfile.TemporaryFile('w+'))
            if processes > 1:
                environment['JAX_PROCESS_ID'] = str(number)
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            started.append((process, output))
        codes = [process.wait(timeout=900) for process, _ in started]
        outputs = []
        for _, output in started:
            output.seek(0)
            outputs.append(output.read())
    assert not any(codes), '\n\n'.join([str(codes), *(output[-3000:] for output in outputs)])
    return outputs
