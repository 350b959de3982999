"""Starts the same command in several processes that find each other, as a launcher would."""

import contextlib
import os
import pathlib
import socket
import subprocess
import tempfile
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).parents[2]


def run(
    command: Sequence[str], processes: int, devices: int, cache: pathlib.Path | None = None
) -> list[str]:
    """What each of `processes` with `devices` fake devices printed; all must succeed.

    cache: a folder for compiled programs, which are compiled quickly then.
    """
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    if cache is not None:
        environment |= {
            'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
            'JAX_COMPILATION_CACHE_DIR': str(cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        }
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(('localhost', 0))
            address = f'localhost:{probe.getsockname()[1]}'
        environment |= {
            'JAX_COORDINATOR_ADDRESS': address,
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
