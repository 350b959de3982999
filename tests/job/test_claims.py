"""Runs on several machines that are given one workdir in a store: one of them writes to it."""

import threading
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rstar_jax.job import bucket, claims, ledger
from rstar_jax.settings.errors import Later, UserError

URL = 'memory://bucket/run'


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """The fake store, empty, and seconds that are hundredths."""
    monkeypatch.setattr(claims, 'BEAT', 0.2)
    monkeypatch.setattr(claims, 'LOST', 0.6)
    MemoryFileSystem.store.clear()
    yield fsspec.filesystem('memory')
    MemoryFileSystem.store.clear()


def run(folder) -> bucket.Place:
    """One that has begun, and has something to write."""
    place = bucket.Place(URL, folder)
    place.begin()
    ledger.write_json(folder / 'config.json', folder.name)
    return place


def lose(place: bucket.Place) -> None:
    """Its machine is gone, without a word."""
    place._claim._ended.set()
    place._claim._thread.join()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path, store):
    one = run(tmp_path / 'one')
    with pytest.raises(Later, match=f'workdir={URL}: a run on .* works on it: wait for it'):
        run(tmp_path / 'two')
    one.end()
    assert store.find('/bucket/run') == ['/bucket/run/config.json']
    began = time.monotonic()
    run(tmp_path / 'two').end()
    assert time.monotonic() - began < claims.LOST  # nobody is waited for
    assert store.cat_file('/bucket/run/config.json') == b'"two"\n'


def test_a_run_whose_machine_was_lost_is_followed_by_another(tmp_path, store, capsys):
    one = run(tmp_path / 'one')
    one.push()
    lose(one)
    two = run(tmp_path / 'two')
    assert 'or did so until it was lost: that is known in' in capsys.readouterr().out
    two.end()
    # On its own machine, whose folder it has, nobody waits for it.
    three = run(tmp_path / 'three')
    lose(three)
    run(tmp_path / 'three').end()
    assert capsys.readouterr().out == ''


def test_a_run_that_slept_writes_nothing_more(tmp_path, store):
    one = run(tmp_path / 'one')
    lose(one)
    two = run(tmp_path / 'two')
    two.push()
    # It wakes up, and wants to push before anything else.
    with pytest.raises(UserError, match='has taken it over, as this one was silent'):
        one.end()
    assert store.cat_file('/bucket/run/config.json') == b'"two"\n'
    with pytest.raises(Later):  # it is still the second's
        run(tmp_path / 'three')
    two.end()


def test_a_run_that_cannot_read_the_store_leaves_it_to_others(tmp_path, store, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(bucket.Place, 'pull', lambda place: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / 'one')
    assert store.find('/bucket/run') == []


def test_a_store_that_is_away_for_a_while_loses_no_run(tmp_path, store, monkeypatch):
    one, away = run(tmp_path / 'one'), threading.Event()
    write = store.pipe_file

    def fails(*args, **kwargs):
        away.set()
        raise OSError('away')

    monkeypatch.setattr(type(store), 'pipe_file', fails)
    assert away.wait(10)
    monkeypatch.setattr(type(store), 'pipe_file', lambda fs, *args, **kw: write(*args, **kw))
    with pytest.raises(Later):
        run(tmp_path / 'two')
    one.end()
