"""Trainings that clusters take the machine away from: real processes, killed and started again."""

import contextlib
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from rstar_jax import models
from rstar_jax.job.roll import free_port
from rstar_jax.training import checkpoints
from tests.parallel import processes

REPOSITORY = pathlib.Path(__file__).parents[1]
STEPS = 24


# Trains as `python -m rstar_jax.main` does, without what a round has around it.
PROGRAM = """
import os, sys, time
from rstar_jax import main

def run(arguments):
    import jax
    from rstar_jax import parallel, steps, training
    from rstar_jax.job import hosts
    from rstar_jax.models import tiny
    folder, count = arguments[0], int(arguments[1])
    hosts.initialise()
    words = [3 * chr(ord('a') + i) for i in range(24)]
    examples = [
        {'query': ' '.join((words[i % 24], words[i % 23])), 'response': f'<code>{words[i % 7]}'}
        for i in range(4 * count + 1)
    ]
    settings = training.settings('sft', dict(
        epochs=1, batch_size=4, length=128, learning_rate=1e-2, held_out=1e-3, form=0.0,
        measure_every=2, dtype='float32',
    ))
    mesh = parallel.global_mesh() if jax.device_count() > 1 else None
    policy = tiny.policy([steps.prompt(' '.join(words))], num_layers=1)
    slowly = lambda now: time.sleep(0.05)  # who watches sees every step
    training.sft(policy, examples, settings, folder, mesh=mesh, progress=slowly)
    return 0

main._run = run
code = main.main()
time.sleep(float(os.environ.get('LATE', 0)))
if code:
    main.leave(code)
"""


def start(folder: pathlib.Path, **environment: str) -> subprocess.Popen:
    """A process that trains in so many steps, and ends as the command does."""
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(folder), str(STEPS)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**processes.environment_of(1), **environment},
    )


def log(folder: pathlib.Path) -> list[dict]:
    path = folder / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def end_at(process: subprocess.Popen, folder: pathlib.Path, step: int, number: int) -> str:
    """Sends the signal when so many steps are done; returns what the process says then."""
    deadline = time.monotonic() + 240
    try:
        while len(log(folder)) < step:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        return process.communicate(timeout=120)[1]
    finally:
        process.kill()


def test_killed_and_preempted_it_ends_with_the_same_bits(tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    process = start(whole)
    assert process.communicate(timeout=240)[1] == ''
    assert process.returncode == 0
    assert len(log(whole)) == STEPS
    first, second = sorted(random.sample(range(1, 10), 2))
    process = start(parts)
    error = end_at(process, parts, first, signal.SIGTERM)
    line = rf'\npreempted at step (\d+) of {STEPS}: state saved; run the same command .*\n'
    found = re.fullmatch(line, error)
    assert process.returncode == 143
    assert found, error
    saved = int(found[1])
    assert first <= saved and len(log(parts)) == saved
    assert [path.name for path in (parts / 'state').iterdir()] == [found[1]]
    process = start(parts)
    end_at(process, parts, max(second, saved + 1), signal.SIGKILL)
    process = start(parts)
    assert process.communicate(timeout=240)[1] == ''
    assert process.returncode == 0
    assert log(parts) == log(whole)
    a, b = (models.load(folder, 'float32') for folder in (whole, parts))
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))
    assert not (parts / 'state').exists()


@contextlib.contextmanager
def pair(folder: pathlib.Path, late: float = 0) -> Iterator[list[subprocess.Popen]]:
    """Two processes that train together; the second is so many seconds late at its end."""
    address = f'localhost:{free_port()}'
    launch = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2'}
    both = [
        start(folder, **launch, JAX_PROCESS_ID=str(number), LATE=str(late * number))
        for number in range(2)
    ]
    try:
        yield both
    except BaseException:  # what they said of it is shown with the test's failure
        for process in both:
            process.kill()
            with contextlib.suppress(ValueError):  # asked already
                print(*process.communicate())
        raise
    finally:
        for process in both:
            process.kill()


@pytest.mark.parametrize('signalled', [1, 2])
def test_two_processes_save_the_same_step_when_told_to_stop(tmp_path, signalled):
    with pair(tmp_path) as (first, second):
        if signalled == 2:
            threading.Thread(target=end_at, args=(first, tmp_path, 2, signal.SIGTERM)).start()
        end = end_at(second, tmp_path, 2, signal.SIGTERM)
        since = time.monotonic()
        other = first.communicate(timeout=120)[1] if signalled == 1 else end
        assert time.monotonic() - since < 30
        first.wait()
    assert (first.returncode, second.returncode) == (143, 143), end + other
    step = len(log(tmp_path))
    assert 2 <= step < STEPS
    for error in (end, other):
        assert f'preempted at step {step} of {STEPS}: state saved' in error.splitlines()[-1]
    with checkpoints.States(tmp_path) as states:
        assert states.newest()[0] == step


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_ends_the_job_and_is_named(tmp_path, killed):
    """By whichever is left, within a minute; the same command goes on to the same weights."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    with pair(parts) as both:
        end_at(both[killed], parts, 9, signal.SIGKILL)
        since = time.monotonic()
        error = both[1 - killed].communicate(timeout=120)[1]
        assert time.monotonic() - since < 60
    assert both[1 - killed].returncode not in (0, 2, 143)
    lines = [line for line in error.splitlines() if line.startswith('error:')]
    assert len(lines) == 1, error
    assert re.fullmatch(
        rf'error: process {killed} \(.*\) is gone: the job ends; .* go on', lines[0]
    )
    for folder in (parts, whole) if killed else ():
        with pair(folder, late=2) as both:
            errors = [process.communicate(timeout=240)[1] for process in both]
            assert [process.returncode for process in both] == [0, 0], errors
    if killed:
        a, b = (models.load(folder, 'float32') for folder in (whole, parts))
        assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))
