"""Trainings that clusters take the machine away from: real processes, killed and started again."""

import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rstar_jax.training import checkpoints

REPOSITORY = pathlib.Path(__file__).parents[1]
STEPS = 10


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> dict[str, str]:
    """Environment in which every process compiles what no process has compiled before."""
    return {
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'XLA_FLAGS': '',
        'JAX_PLATFORMS': 'cpu',
    }


def bootstrap(workdir: pathlib.Path, environment: dict[str, str]) -> subprocess.Popen:
    """The command that trains a tiny policy on demonstrations, in so many steps."""
    settings = {
        'bootstrap.demonstrations': 8 * STEPS + 4,
        'training.bootstrap.batch_size': 8,
        'training.bootstrap.held_out': 0.05,
        'training.bootstrap.form': 0.0,
        'training.bootstrap.measure_every': 2,
    }
    return subprocess.Popen(
        [
            sys.executable, '-m', 'rstar_jax.main',
            f'--config={REPOSITORY / "experiments" / "quickstart.py"}',
            f'--workdir={workdir}', '--stages=bootstrap',
            *(f'--config.{key}={value}' for key, value in settings.items()),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def log(workdir: pathlib.Path) -> list[dict]:
    path = workdir / 'round0' / 'policy' / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def end_at(process: subprocess.Popen, workdir: pathlib.Path, step: int, number: int) -> str:
    """Sends the signal when so many steps are done; returns what the process says then."""
    deadline = time.monotonic() + 240
    try:
        while len(log(workdir)) < step:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        return process.communicate(timeout=120)[1]
    finally:
        process.kill()


def test_killed_and_preempted_it_ends_with_the_same_bits(tmp_path, cache):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    process = bootstrap(whole, cache)
    assert process.communicate(timeout=240)[1] == ''
    assert process.returncode == 0
    assert len(log(whole)) == STEPS
    first, second = sorted(random.sample(range(1, STEPS - 1), 2))
    process = bootstrap(parts, cache)
    error = end_at(process, parts, first, signal.SIGTERM)
    found = re.fullmatch(
        rf'\npreempted at step (\d+) of {STEPS}: state saved; run the same command again to go on\n',
        error,
    )
    assert process.returncode == 143
    assert found, error
    saved = int(found[1])
    assert first <= saved and len(log(parts)) == saved
    assert [path.name for path in (parts / 'round0/policy/state').iterdir()] == [found[1]]
    process = bootstrap(parts, cache)
    end_at(process, parts, max(second, saved + 1), signal.SIGKILL)
    process = bootstrap(parts, cache)
    assert process.communicate(timeout=240)[1] == ''
    assert process.returncode == 0
    assert log(parts) == log(whole)
    a, b = (checkpoints.load_policy(folder / 'round0' / 'policy') for folder in (whole, parts))
    leaves = [jax_leaves(policy.params) for policy in (a, b)]
    assert all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))
    assert not (parts / 'round0/policy/state').exists()


def jax_leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_two_processes_save_the_same_step_when_one_gets_the_signal(tmp_path, cache):
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    launch = {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2'}
    first, second = (
        bootstrap(tmp_path, {**cache, **launch, 'JAX_PROCESS_ID': str(number)})
        for number in range(2)
    )
    try:
        end = end_at(second, tmp_path, 2, signal.SIGTERM)
        other = first.communicate(timeout=120)[1]
    finally:
        first.kill()
        second.kill()
    assert (first.returncode, second.returncode) == (143, 143), end + other
    step = len(log(tmp_path))
    assert 2 <= step < STEPS
    for error in (end, other):
        assert f'preempted at step {step} of {STEPS}: state saved' in error.splitlines()[-1]
    with checkpoints.States(tmp_path / 'round0' / 'policy') as states:
        assert states.newest()[0] == step
