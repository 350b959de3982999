"""Runs on several machines that are given one workdir in a store: one of them writes to it."""

import concurrent.futures
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rstar_jax.job import bucket, claims, ledger
from rstar_jax.settings.errors import Later, UserError

URL = 'memory://bucket/run'
CONFIG = '/bucket/run/config.json'


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """The fake store, empty, and seconds that are hundredths."""
    monkeypatch.setattr(claims, 'BEAT', 0.2)
    monkeypatch.setattr(claims, 'LOST', 0.6)
    MemoryFileSystem.store.clear()
    yield fsspec.filesystem('memory')
    MemoryFileSystem.store.clear()


def run(folder, url=URL) -> bucket.Place:
    """One that has begun, and has something to write."""
    place = bucket.Place(url, folder)
    place.begin()
    ledger.write_json(folder / 'config.json', folder.name)
    return place


OWNER = """
import pathlib, sys
from rstar_jax.job import bucket, claims, ledger
claims.BEAT, claims.LOST = 0.2, 0.6
url, folder = sys.argv[1], pathlib.Path(sys.argv[2])
place = bucket.Place(url, folder)
place.begin()
number = 0
while True:
    ledger.write_json(folder / 'config.json', f'one {(number := number + 1)}')
    place.push()
    print('pushed', flush=True)
"""


def owner(url: str, folder: pathlib.Path) -> subprocess.Popen:
    """A run in a process of its own, which writes and writes."""
    process = subprocess.Popen(
        [sys.executable, '-c', OWNER, url, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert process.stdout.readline() == 'pushed\n', process.stderr.read()
    return process


def test_a_second_run_is_refused_while_the_first_lives(tmp_path, store):
    one = run(tmp_path / 'one')
    with pytest.raises(Later) as refused:
        run(tmp_path / 'two')
    assert refused.value.argument == URL
    one.end()
    assert CONFIG in store.find('/bucket/run')
    run(tmp_path / 'two').end()
    assert store.cat_file(CONFIG) == b'"two"\n'


def test_of_runs_that_begin_at_once_one_does(tmp_path):
    """Each sees that nobody has the workdir before any of them has taken it."""
    url = f'file://{tmp_path}/store'

    def start(number):
        try:
            return run(tmp_path / f'{number}', url)
        except Later:
            return None

    for _ in range(3):
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            begun = [place for place in threads.map(start, range(8)) if place]
        assert len(begun) == 1
        begun[0].end()


def test_a_run_that_was_stopped_writes_nothing_over_what_the_next_one_wrote(tmp_path):
    url = f'file://{tmp_path}/store'
    process = owner(url, tmp_path / 'one')
    try:
        process.send_signal(signal.SIGSTOP)
        two = run(tmp_path / 'two', url)  # waits until the first is taken for lost
        two.push(must=True)
        process.send_signal(signal.SIGCONT)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 1 and f'UserError: {url}' in told
    assert (tmp_path / 'store' / 'config.json').read_text() == '"two"\n'
    with pytest.raises(Later):  # it is still the second's
        run(tmp_path / 'three', url)
    two.end()


def test_a_run_that_was_killed_is_followed_by_another(tmp_path):
    url = f'file://{tmp_path}/store'
    process = owner(url, tmp_path / 'one')
    process.kill()
    process.communicate()
    began = time.monotonic()
    run(tmp_path / 'one', url)  # on its own machine, whose folder it has, nobody waits for it
    assert time.monotonic() - began < claims.LOST


def test_a_run_that_cannot_read_the_store_leaves_it_to_others(tmp_path, store):
    store.pipe_file('/bucket/run/round1/../../../x', b'1')
    with pytest.raises(UserError):
        run(tmp_path / 'one')
    MemoryFileSystem.store.pop('/bucket/run/round1/../../../x')
    run(tmp_path / 'two').end()


def test_a_store_that_is_away_for_a_while_loses_no_run(tmp_path, store, monkeypatch):
    one = run(tmp_path / 'one')

    def fails(*args, **kwargs):
        raise OSError('away')

    with monkeypatch.context() as away:
        away.setattr(type(store), 'pipe_file', fails)
        time.sleep(2 * claims.BEAT)
    with pytest.raises(Later):
        run(tmp_path / 'two')
    one.end()
