"""Starts the same command in several processes that find each other, as a launcher would."""

import os
import pathlib
import socket
import subprocess
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).parents[2]


def run(
    command: Sequence[str], processes: int, devices: int, cache: pathlib.Path | None = None
) -> list[str]:
    """What each of `processes` with `devices` fake devices printed; all must succeed.

    cache: a folder for compiled programs, which are compiled quickly then.
    """
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    started = []
    for number in range(processes):
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
            environment |= {
                'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
                'JAX_NUM_PROCESSES': str(processes),
                'JAX_PROCESS_ID': str(number),
            }
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs):
        assert process.returncode == 0, output[-3000:]
    return outputs
