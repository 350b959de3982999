"""Workdirs in an object store, and disks that are full: told in a line, and nothing is broken."""

import concurrent.futures
import errno
import json
import os
import pathlib
import random
import shutil
import threading
import types

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rstar_jax import data
from rstar_jax.job import atomic, bucket, claims, command, hosts, ledger
from rstar_jax.settings.errors import UserError
from tests.evals.trees import tree

URL = 'memory://bucket/run'


@pytest.fixture(autouse=True)
def store():
    """The fake store, empty."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = ['']
    yield fsspec.filesystem('memory')
    MemoryFileSystem.store.clear()


def held(store) -> dict[str, bytes]:
    root = '/bucket/run/'
    found = {path.removeprefix(root): store.cat_file(path) for path in store.find(root)}
    return {name: data for name, data in found.items() if claims.CLAIM not in name}


def on_disk(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob('*') if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if '/.' not in f'/{name}'}


def grow(folder, numbers) -> None:
    with data.TreeStore(folder, shard_trees=4, seconds=0) as trees:
        for i in numbers:
            problem = {'index': i, 'question': f'q{i}', 'answer': '1'}
            trees.append(tree(problem, 0, [('1', 0.5, True)]))


def make_state(folder, step) -> pathlib.Path:
    made = folder / 'round1' / 'policy' / 'state' / f'{step}'
    (made / 'd').mkdir(parents=True)
    (made / 'd' / 'data').write_text(f'{step}')
    (made / '_CHECKPOINT_METADATA').write_text('{}')
    return made


def test_a_run_goes_on_on_another_machine(tmp_path, store):
    one = bucket.Place(URL, tmp_path / 'one')
    one.pull()
    search = one.folder / 'round1' / 'search'
    grow(search, range(6))
    one.push()
    grow(search, range(6, 10))
    ledger.write_json(search / 'done.json', {'id': 'a'})
    one.push(must=True)
    assert held(store) == on_disk(one.folder)
    two = bucket.Place(URL, tmp_path / 'two')
    two.pull()
    assert on_disk(two.folder) == on_disk(one.folder)
    with data.TreeStore(two.folder / 'round1' / 'search') as trees:
        assert trees.keys() == {(i, 0) for i in range(10)}
    # What the other machine deletes, changes and adds comes back to the first.
    shutil.rmtree(two.folder / 'round1')
    for number in (1, 2):  # of the same size
        ledger.write_json(two.folder / 'config.json', {'round1': number})
        two.push()
        one.pull()
        assert on_disk(one.folder) == on_disk(two.folder) == held(store)


def test_objects_that_stand_for_folders_are_no_files(tmp_path, store, monkeypatch):
    """As the console of Google Cloud makes them, and gcsfuse; gcsfs lists them."""
    store.pipe_file('/bucket/run/round1/search/done.json', b'{}')
    find, folder = MemoryFileSystem.find, {'size': 0, 'type': 'file'}
    added = {'/bucket/run/': folder, '/bucket/run/round1/': folder, '/bucket/run/round2/': folder}
    monkeypatch.setattr(MemoryFileSystem, 'find', lambda *a, **k: find(*a, **k) | added)
    place = bucket.Place(URL, tmp_path)
    for _ in range(2):
        place.pull()
        place.push(must=True)
    assert on_disk(tmp_path) == {'round1/search/done.json': b'{}'}


def test_what_was_not_pushed_yet_is_kept_and_pushed(tmp_path, store):
    place = bucket.Place(URL, tmp_path)
    place.pull()
    for number in (1, 2):
        ledger.write_json(tmp_path / 'a' / 'begun.json', number)
        ledger.write_json(tmp_path / 'a' / 'done.json', number)
        if number == 1:
            place.push()
    ledger.write_json(tmp_path / 'b.json', 3)
    store.rm_file('/bucket/run/a/done.json')
    place = bucket.Place(URL, tmp_path)
    place.pull()
    place.push()
    assert {name: json.loads(value) for name, value in held(store).items()} == {
        'a/begun.json': 2,
        'a/done.json': 2,
        'b.json': 3,
    }


def test_a_run_goes_on_while_its_state_is_sent(tmp_path, store, monkeypatch):
    """What arrives is the state of when the push began, though it has been deleted since."""
    monkeypatch.setattr(bucket, 'PUSH_SECONDS', 0.0)
    begun, going_on, put_file = threading.Event(), threading.Event(), MemoryFileSystem.put_file

    def slow(self, *arguments, **options):
        begun.set()
        assert going_on.wait(10)
        return put_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, 'put_file', slow)
    place = bucket.Place(URL, tmp_path)
    place.pull()
    first = make_state(tmp_path, 4)
    expected = on_disk(tmp_path)
    place.push_if_due()
    assert begun.wait(10)
    shutil.rmtree(first)
    make_state(tmp_path, 8)
    place.push_if_due()  # one goes on
    assert not held(store)
    going_on.set()
    concurrent.futures.wait([place._running])
    assert held(store) == expected
    place.push(must=True)
    assert held(store) == on_disk(tmp_path) != expected
    assert not (tmp_path / bucket.SENDING).exists()


def test_a_push_that_must_succeed_waits_for_one_that_goes_on(tmp_path, store, monkeypatch):
    monkeypatch.setattr(bucket, 'PUSH_SECONDS', 0.0)
    going_on, sent, put_file = threading.Event(), [], MemoryFileSystem.put_file

    def slow(self, local, remote, **options):
        assert going_on.wait(10)
        sent.append(remote)
        return put_file(self, local, remote, **options)

    monkeypatch.setattr(MemoryFileSystem, 'put_file', slow)
    place = bucket.Place(URL, tmp_path)
    place.pull()
    make_state(tmp_path, 4)
    place.push_if_due()
    threading.Timer(0.2, going_on.set).start()
    place.push(must=True)
    assert held(store) == on_disk(tmp_path)
    assert len(sent) == len(set(sent)) == 2  # by the first push, all of it


def held_back(monkeypatch) -> threading.Event:
    """Sends of the fake store wait for what is returned."""
    going_on, put_file = threading.Event(), MemoryFileSystem.put_file

    def slow(self, *arguments, **options):
        assert going_on.wait(10)
        return put_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, 'put_file', slow)
    monkeypatch.setattr(bucket, 'PUSH_SECONDS', 0.0)
    return going_on


def test_what_grows_while_it_is_sent_is_as_long_as_the_run_believes(tmp_path, store, monkeypatch):
    """Else what has come since would be lost with the next pull."""
    going_on = held_back(monkeypatch)
    place, log = bucket.Place(URL, tmp_path), tmp_path / 'a' / 'log'
    place.pull()
    log.parent.mkdir()
    log.write_text('one\n')
    place.push_if_due()
    with log.open('a') as file:
        file.write('two\n')
    going_on.set()
    concurrent.futures.wait([place._running])
    assert held(store) == {'a/log': b'one\n'}
    bucket.Place(URL, tmp_path).pull()
    assert log.read_text() == 'one\ntwo\n'
    place.push(must=True)
    assert held(store) == on_disk(tmp_path)


def test_a_large_file_is_sent_without_a_copy(tmp_path, store, monkeypatch):
    going_on = held_back(monkeypatch)
    monkeypatch.setattr(bucket, 'COPIED', 3)
    place = bucket.Place(URL, tmp_path)
    place.pull()
    (tmp_path / 'large').write_text('1234')
    (tmp_path / 'small').write_text('123')
    place.push_if_due()
    links = [os.stat(tmp_path / name).st_nlink for name in ('large', 'small')]
    going_on.set()
    place.push(must=True)
    assert links == [2, 1] and held(store) == {'large': b'1234', 'small': b'123'}


def test_a_killed_push_has_noted_what_it_has_sent(tmp_path, store, monkeypatch):
    monkeypatch.setattr(bucket, 'KNOWN_SECONDS', 0.0)
    sent, put_file = [], MemoryFileSystem.put_file

    def killed(self, *arguments, **options):
        if sent:
            raise KeyboardInterrupt
        put_file(self, *arguments, **options)
        sent.append(arguments)

    monkeypatch.setattr(MemoryFileSystem, 'put_file', killed)
    place = bucket.Place(URL, tmp_path)
    place.pull()
    for name in 'ab':
        (tmp_path / name).write_text('1')
    with pytest.raises(KeyboardInterrupt):
        place.push()
    (name,) = held(store)
    (tmp_path / name).write_text('123')
    bucket.Place(URL, tmp_path).pull()
    assert (tmp_path / name).read_text() == '123'


def test_large_weights_that_another_machine_has_made_are_fetched(tmp_path, store):
    """They have the size of those that were there: a training made anew changes no shapes."""
    one, two = (bucket.Place(URL, tmp_path / name) for name in ('one', 'two'))
    size, weights = bucket.SMALL + 1, 'round1/policy/params/data'
    one.pull()
    (one.folder / weights).parent.mkdir(parents=True)
    for value, place, other in ((b'1', one, two), (b'2', two, one)):
        (place.folder / weights).write_bytes(value * size)
        place.push(must=True)
        other.pull()
        assert (other.folder / weights).read_bytes() == value * size
    # What is not another one is not fetched again: a 7B model takes half an hour.
    inode = os.stat(one.folder / weights).st_ino
    one.pull()
    assert os.stat(one.folder / weights).st_ino == inode


@pytest.mark.parametrize('name', ['../stolen', 'round1/../../stolen', 'round1//../../stolen'])
def test_an_object_whose_name_leads_out_of_the_workdir_is_refused(tmp_path, store, name):
    store.pipe_file(f'/bucket/run/{name}', b'1')
    with pytest.raises(UserError) as refused:
        bucket.Place(URL, tmp_path / 'a' / 'run').pull()
    assert refused.value.argument == f'{URL}/{name}'
    assert not list(tmp_path.rglob('stolen'))


def test_a_store_that_is_throttled_or_lists_late_loses_nothing(tmp_path, store, monkeypatch):
    monkeypatch.setattr(bucket, 'WAIT', 0.0)
    one = bucket.Place(URL, tmp_path / 'one')
    one.pull()
    (one.folder / 'config.json').write_text('{}')
    one.push(must=True)
    with monkeypatch.context() as late:
        late.setattr(MemoryFileSystem, 'find', lambda *a, **k: {})
        bucket.Place(URL, one.folder).pull()
    assert on_disk(one.folder) == held(store)
    tries, get_file = [], MemoryFileSystem.get_file

    def throttled(self, *arguments, **options):
        tries.append(arguments)
        if len(tries) < bucket.TRIES:
            raise OSError('429: slow down')
        get_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, 'get_file', throttled)
    two = bucket.Place(URL, tmp_path / 'two')
    two.pull()
    assert on_disk(two.folder) == held(store)


@pytest.mark.parametrize('name', ['round1/policy/metrics.jsonl', 'events/events.out.tfevents.1.a'])
def test_a_log_that_is_longer_here_is_not_shortened(tmp_path, store, name):
    place, path = bucket.Place(URL, tmp_path / 'one'), tmp_path / 'one' / name
    place.pull()
    path.parent.mkdir(parents=True)
    path.write_text('one\n')
    place.push(must=True)
    # Two lines were sent by a push that was killed before it could note that.
    store.pipe_file(f'/bucket/run/{name}', b'one\ntwo\n')
    path.write_text('one\ntwo\nthree\n')
    place = bucket.Place(URL, place.folder)
    place.pull()
    assert path.read_text() == 'one\ntwo\nthree\n'
    place.push(must=True)
    assert held(store) == {name: path.read_bytes()}
    # What another machine has made of it since is taken.
    store.pipe_file(f'/bucket/run/{name}', b'other\n')
    place.pull()
    assert path.read_text() == 'other\n'


def test_what_ends_a_push_in_the_background_ends_the_run(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(bucket, 'PUSH_SECONDS', 0.0)
    place = bucket.Place(URL, tmp_path)
    place.pull()
    monkeypatch.setattr(bucket.atomic, 'write_json', full)
    for then in (place.push_if_due, place.push):
        place.push_if_due()
        concurrent.futures.wait([place._running])
        with pytest.raises(OSError, match='No space left'):
            then()


@pytest.mark.parametrize('background', [False, True])
def test_writes_that_fail_are_told_and_break_nothing(
    tmp_path, store, monkeypatch, capsys, background
):
    """After each of 20 failures, the store is something that a run can go on from.

    background: the search goes on while the store is written to.
    """
    chance, left = random.Random(0), 20
    failures = []

    def failing(write):
        def attempt(self, *arguments, **options):
            if len(failures) < left and chance.random() < 0.2:
                failures.append(arguments)
                raise OSError(errno.EIO, 'the store is not there')
            return write(self, *arguments, **options)

        return attempt

    monkeypatch.setattr(MemoryFileSystem, 'put_file', failing(MemoryFileSystem.put_file))
    monkeypatch.setattr(MemoryFileSystem, 'rm_file', failing(MemoryFileSystem.rm_file))
    monkeypatch.setattr(bucket, 'PUSH_SECONDS', 0.0)
    place = bucket.Place(URL, tmp_path / 'run')
    place.pull()
    search = place.folder / 'round1' / 'search'
    stored, step = 0, 0
    while len(failures) < left:
        step += 1
        grow(search, range(3 * step))
        ledger.write_json(search / 'done.json', {'id': f'{step:09}'})
        before = len(failures)
        if background:
            place.push_if_due()
            grow(search, range(3 * step + 2))
            concurrent.futures.wait([place._running])
        else:
            place.push()
        told = capsys.readouterr().out.splitlines()
        assert len(told) == len(failures) - before
        assert all('not written ([Errno 5] the store is not there); tried' in x for x in told)
        # Another machine takes over from what the store holds now.
        other = bucket.Place(URL, tmp_path / f'other{step}')
        other.pull()
        with data.TreeStore(other.folder / 'round1' / 'search') as trees:
            found = {record.key for record in trees}
        done = ledger.read_json(other.folder / 'round1' / 'search' / 'done.json')
        if done is not None:  # it says that all of its step are there
            stored = 3 * int(done['id'])
            assert found == {(i, 0) for i in range(stored)}
    monkeypatch.setattr(bucket, 'WAIT', 0.0)
    place.push(must=True)
    assert stored and held(store) == on_disk(place.folder)


def test_merged_trees_stay_until_their_shard_is_there(tmp_path, store, monkeypatch, capsys):
    place = bucket.Place(URL, tmp_path / 'run')
    place.pull()
    search = place.folder / 'round1' / 'search'
    grow(search, [0])
    place.push()
    grow(search, [1])  # merges
    send = MemoryFileSystem.put_file

    def failing(self, here, there):
        if 'shard-' in there:
            raise OSError(errno.EIO, 'the store is not there')
        send(self, here, there)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, 'put_file', failing)
        place.push()
    assert capsys.readouterr().out
    assert 'round1/search/tree-0-0-0.array_record' in held(store)
    place.push(must=True)
    assert held(store) == on_disk(place.folder)


def test_a_push_that_must_succeed_ends_the_run_with_a_line(tmp_path, monkeypatch, capsys):
    def broken(self, *arguments, **options):
        raise OSError('no such bucket')

    monkeypatch.setattr(bucket, 'WAIT', 0.0)
    monkeypatch.setattr(MemoryFileSystem, 'put_file', broken)
    place = bucket.Place(URL, tmp_path)
    place.pull()
    ledger.write_json(tmp_path / 'config.json', 1)
    with pytest.raises(UserError) as wrong:
        place.push(must=True)
    assert wrong.value.argument == f'{URL}/config.json'
    assert capsys.readouterr().out.count('tried again') == bucket.TRIES


def test_a_checkpoint_that_is_not_whole_is_not_taken_up(tmp_path, store):
    place = bucket.Place(URL, tmp_path / 'one')
    place.pull()
    for step in (4, 8):
        state = make_state(place.folder, step).parent
    (state / '9.orbax-checkpoint-tmp').mkdir()
    (state / '9.orbax-checkpoint-tmp' / 'data').write_text('x')
    place.push()
    store.rm_file('/bucket/run/round1/policy/state/8/_CHECKPOINT_METADATA')
    other = bucket.Place(URL, tmp_path / 'two')
    other.pull()
    assert [path.name for path in (other.folder / 'round1/policy/state').iterdir()] == ['4']


@pytest.mark.parametrize('next_one', ['state', 'model', 'another training'])
def test_a_state_stays_until_what_comes_of_it_is_whole(tmp_path, store, monkeypatch, next_one):
    place = bucket.Place(URL, tmp_path)
    place.pull()
    first = make_state(tmp_path, 4)
    place.push(must=True)
    stage = first.parents[1]
    shutil.rmtree(first if next_one == 'state' else stage)
    if next_one == 'state':
        make_state(tmp_path, 8)
    elif next_one == 'model':
        (stage / 'params').mkdir(parents=True)
        (stage / 'params' / 'data').write_text('x')
        ledger.write_json(stage / 'model.json', {})
    else:
        ledger.write_json(stage / 'begun.json', {})
    whole = {
        'round1/policy/state/4/': {'d/data', '_CHECKPOINT_METADATA'},
        'round1/policy/state/8/': {'d/data', '_CHECKPOINT_METADATA'},
        'round1/policy/': {'params/data', 'model.json'},
    }
    found = []

    def watched(change):
        def changing(self, *arguments, **options):
            change(self, *arguments, **options)
            names = held(store).keys()
            found.append(any(names >= {f'{at}{x}' for x in files} for at, files in whole.items()))

        return changing

    for name in ('put_file', 'rm_file'):
        monkeypatch.setattr(MemoryFileSystem, name, watched(getattr(MemoryFileSystem, name)))
    place.push(must=True)
    assert held(store) == on_disk(tmp_path)
    # The state of another training goes first.
    assert len(found) > 2 and all(found) != (next_one == 'another training')
    assert found[0] != (next_one == 'another training')


def test_stores_that_cannot_be_reached_are_one_line(tmp_path):
    with pytest.raises(UserError) as unknown:
        bucket.Place('nosuch://bucket/run')
    assert unknown.value.argument == 'nosuch://bucket/run' and unknown.value.remedy


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def unknown(path):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(pathlib.Path, 'expanduser', unknown)
    with pytest.raises(UserError) as homeless:
        bucket.Place(URL)
    assert homeless.value.remedy == 'set XDG_CACHE_HOME'


@pytest.mark.parametrize('number', command.DISK)
def test_a_disk_that_cannot_be_written_is_one_line(monkeypatch, capsys, number):
    def run():
        try:
            raise OSError(number, os.strerror(number), '/mnt/rstar/round1/x')
        except OSError as error:
            raise RuntimeError('while writing') from error

    assert command.guarded(run) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: /mnt/rstar/round1/x: {os.strerror(number)}: ')
    assert error.count('\n') == 1

    def in_a_library():
        raise ValueError(f'INTERNAL: Error writing "/mnt/rstar/x": {os.strerror(number)}')

    assert command.guarded(in_a_library) == 2
    assert capsys.readouterr().err.count('\n') == 1
    with pytest.raises(ValueError, match='something else'):
        command.guarded(lambda: _raise(ValueError('something else')))


def _raise(error):
    raise error


def test_trees_survive_20_writes_that_fail(tmp_path, monkeypatch):
    """A full disk now and then: what was stored stays whole, the rest comes with the next write."""
    chance, failures, sync = random.Random(1), [], atomic.sync

    def failing(path):
        if len(failures) < 20 and chance.random() < 0.5:
            failures.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(atomic, 'sync', failing)
    stored = set()
    for i in range(60):
        problem = {'index': i, 'question': f'q{i}', 'answer': '1'}
        try:
            with data.TreeStore(tmp_path, shard_trees=4, seconds=0) as trees:
                trees.append(tree(problem, 0, [('1', 0.5, True)]))
                stored.add((i, 0))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        with data.TreeStore(tmp_path, writer=None) as trees:
            assert stored <= {record.key for record in trees}
    assert len(failures) == 20
    assert not [path for path in tmp_path.iterdir() if path.name.endswith('.part')]


def test_the_processes_of_a_run_work_in_one_folder(tmp_path, store, monkeypatch):
    """The first makes it what the store holds; whoever works in another one says so."""
    ledger.write_json(tmp_path / 'made' / 'config.json', 1)
    made = bucket.Place(URL, tmp_path / 'made')
    made.pull()
    made.push(must=True)
    numbers = []
    monkeypatch.setattr(hosts, 'gathered', lambda n: numbers.append(n) or [numbers[0], n])
    one = bucket.Place(URL, tmp_path / 'one')
    one.begin()
    assert on_disk(one.folder) == held(store)
    monkeypatch.setattr(bucket.hosts, 'is_first', lambda: False)
    bucket.Place(URL, tmp_path / 'one').begin()
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:  # a shared disk tells late of what the first has written
            shutil.copy(one.folder / bucket.SHARED, late.folder / bucket.SHARED)

    monkeypatch.setattr(hosts, 'time', types.SimpleNamespace(sleep=sleep))
    late = bucket.Place(URL, tmp_path / 'late')
    late.folder.mkdir()
    late.begin()
    assert len(waited) == 3
    for folder in ('two', 'made'):  # of another machine: nothing there, or what an earlier run left
        with pytest.raises(UserError) as wrong:
            bucket.Place(URL, tmp_path / folder).begin()
        assert wrong.value.argument == URL
    one.end()
