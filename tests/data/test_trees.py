import dataclasses
import gc
import json
import multiprocessing
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from rstar_jax import data
from rstar_jax.data import files
from rstar_jax.data.shards import open_readers
from rstar_jax.job import atomic
from rstar_jax.settings.errors import Later, UserError
from tests.data import samples


def names(directory, pattern='*'):
    return sorted(p.name for p in directory.glob(pattern) if not p.name.startswith('.lock'))


def trees(keys):
    return {key: samples.grown(hash(key), *key) for key in keys}


def check(directory, expected):
    store = data.TreeStore(directory)
    assert store.keys() == set(expected)
    read = list(store)
    assert [r.key for r in read] == sorted(expected)
    assert all(samples.same(r, expected[r.key]) for r in read)


def test_append_merge_and_read_back(tmp_path):
    expected = trees([(i, t) for i in (5, -2, 0, 11) for t in range(3)])
    with data.TreeStore(tmp_path, shard_trees=5, seconds=0) as store:
        for n, record in enumerate(expected.values(), 1):
            assert store.append(record)
            assert len(store) == n and record.key in store
            assert samples.same(store[record.key], record)
            assert not store.append(record)
        assert [r.key for r in store] == sorted(expected)
        assert len(names(tmp_path, 'shard-*.array_record')) == 2
        assert len(names(tmp_path, 'tree-*.array_record')) == 2
    assert len(names(tmp_path, 'shard-*.array_record')) == 3
    assert not names(tmp_path, 'tree-*')
    check(tmp_path, expected)
    with pytest.raises(KeyError):
        store[99, 0]


def test_parts_and_shards_are_plain_array_records(tmp_path):
    expected = trees([(i, 0) for i in range(7)])
    with data.TreeStore(tmp_path, shard_trees=4, seconds=0) as store:
        for record in expected.values():
            store.append(record)
    keys = [
        samples.Record.from_bytes(content).key
        for path in tmp_path.glob('*.array_record')
        for content in files.RecordReader(path)
    ]
    assert sorted(keys) == sorted(expected)


def test_crash_between_shard_and_removal_of_its_parts(tmp_path):
    expected = trees([(i, 0) for i in range(4)])
    with data.TreeStore(tmp_path, shard_trees=9, seconds=0) as store:
        for record in expected.values():
            store.append(record)
        saved = {p.name: p.read_bytes() for p in tmp_path.glob('tree-*')}
        store.merge()
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / f'{atomic.TEMPORARY}0-77-tree-0-9-9.array_record.part').write_bytes(b'half')
    (tmp_path / 'shard-0-000009.keys').write_text('[[1, 1]]')
    check(tmp_path, expected)
    assert names(tmp_path) == ['shard-0-000000.array_record', 'shard-0-000000.keys']


def batched(directory, counts, shard_trees):
    """A store that has written so many trees at a time, and those trees."""
    expected = trees([(i, t) for i, count in enumerate(counts) for t in range(count)])
    store, records = data.TreeStore(directory, shard_trees=shard_trees, seconds=1e9), []
    for record in expected.values():
        records.append(record)
        store.append(record)
        if len(records) == sum(counts[: record.key[0] + 1]):
            store.flush()
    return store, expected


def test_small_shards_are_merged_with_others(tmp_path):
    """Of the first batch one tree is written at once; eight of nine are a whole shard."""
    store, expected = batched(tmp_path, [2, 1, 3, 2, 3, 9, 1, 2], 8)
    sizes = [len(files.RecordReader(path)) for path in sorted(tmp_path.glob('shard-*'))[::2]]
    assert sizes == [8, 3, 8, 2]
    store.close()
    shards = names(tmp_path, '*.array_record')
    assert [len(files.RecordReader(tmp_path / name)) for name in shards] == [8, 8, 7]
    assert len(names(tmp_path)) == 2 * len(shards)
    check(tmp_path, expected)
    with data.TreeStore(tmp_path, shard_trees=8) as again:  # which goes on with the last
        for record in (more := trees([(20, 0), (20, 1)])).values():
            again.append(record)
    shards = names(tmp_path, '*.array_record')
    assert [len(files.RecordReader(tmp_path / name)) for name in shards] == [8, 8, 8, 1]
    check(tmp_path, expected | more)


def test_a_closed_store_that_wrote_nothing_is_as_it_was(tmp_path):
    batched(tmp_path, [1, 2, 2], 8)
    gc.collect()  # nothing is closed, the lock is free: as by SIGKILL
    before = names(tmp_path)
    assert len(before) > 3
    with data.TreeStore(tmp_path) as store:
        list(store)
    assert names(tmp_path) == before


def test_many_small_files_are_merged_bit_by_bit(tmp_path):
    expected = trees([(i, 0) for i in range(11)])
    store = data.TreeStore(tmp_path, shard_trees=100, seconds=0)
    for record in list(expected.values())[:10]:
        store.append(record)
    del store
    gc.collect()  # as by SIGKILL
    with data.TreeStore(tmp_path, shard_trees=3, seconds=0) as store:
        store.append(expected[10, 0])
    sizes = [len(files.RecordReader(path)) for path in tmp_path.glob('*.array_record')]
    assert sorted(sizes) == [1, 1, 3, 3, 3]
    check(tmp_path, expected)


@pytest.mark.parametrize('left', [1, 2, 3, 4, 5])
def test_crash_between_shard_and_removal_of_smaller_ones(tmp_path, left):
    store, expected = batched(tmp_path, [1, 2, 1, 3], 9)
    paths = [tmp_path / name for name in names(tmp_path)]
    assert [path.name for path in paths] == [
        'shard-0-000000.array_record',
        'shard-0-000000.keys',
        'shard-0-000001.array_record',
        'shard-0-000001.keys',
        'tree-0-0-0.array_record',
        'tree-0-2-0.array_record',
    ]
    saved = {path: path.read_bytes() for path in paths}
    store.close()
    merged = names(tmp_path)
    for path in paths[-left:]:  # a .keys file may be left alone
        path.write_bytes(saved[path])
    reader = data.TreeStore(tmp_path, writer=None)
    assert [r.key for r in reader] == sorted(expected)
    check(tmp_path, expected)
    assert names(tmp_path) == merged == ['shard-0-000002.array_record', 'shard-0-000002.keys']


def test_a_merge_while_the_folder_is_looked_through(tmp_path, monkeypatch):
    store, expected = batched(tmp_path, [1, 2, 3], 9)
    read, merges = pathlib.Path.read_text, []

    def read_text(path, **options):
        if not merges:
            merges.append(path)
            store.merge()
        return read(path, **options)

    monkeypatch.setattr(pathlib.Path, 'read_text', read_text)
    reader = data.TreeStore(tmp_path, writer=None)
    assert merges and reader.keys() == set(expected)
    assert [r.key for r in reader] == sorted(expected)


def test_a_shard_is_looked_into_once(tmp_path):
    store, expected = batched(tmp_path, [2, 2], 9)
    reader = data.TreeStore(tmp_path, writer=None)
    for path in tmp_path.glob('*.keys'):
        path.write_text('which nobody reads again')
    store.append(more := samples.grown(7, 99, 0))
    store.append(samples.grown(8, 98, 0))
    store.flush()
    reader.refresh()
    assert reader.keys() == {*expected, more.key, (98, 0)}


def told(records):
    """What `facts` is to tell of them."""
    tokens = {r.key: r.counters.get('sampled_tokens', 0.0) for r in records}
    asked = {r.key: data.question_id(r.problem.question) for r in records}
    return {r.key: (r.solved, len(r.texts), tokens[r.key], asked[r.key]) for r in records}


def spent(keys):
    """Trees that tell of the tokens sampled for them; some hold no right answer."""
    return {
        key: dataclasses.replace(
            samples.grown(hash(key), *key, size=4), counters={'sampled_tokens': 10.0 * sum(key)}
        )
        for key in keys
    }


def test_facts_of_stored_trees_are_known_without_reading_them(tmp_path, monkeypatch):
    expected = spent([(i, t) for i in range(9) for t in range(2)])
    with data.TreeStore(tmp_path, shard_trees=4, seconds=0) as store:
        for record in expected.values():
            store.append(record)
        assert dict(store.facts()) == told(expected.values())
    monkeypatch.setattr(files, 'RecordReader', lambda path: 1 / 0)
    store = data.TreeStore(tmp_path)
    assert dict(store.facts()) == told(expected.values())
    store.append(more := spent([(9, 0)])[9, 0])
    store.append(waiting := spent([(10, 0)])[10, 0])
    assert dict(store.facts()) == told([*expected.values(), more, waiting])
    assert len({facts[0] for facts in dict(store.facts()).values()}) == 2


def test_trees_without_an_order_are_read_file_by_file(tmp_path, monkeypatch):
    expected = trees([(i, t) for t in range(3) for i in range(20)])
    with data.TreeStore(tmp_path, shard_trees=3, seconds=0) as store:
        for record in expected.values():
            store.append(record)
    opened, reader = [], files.RecordReader
    monkeypatch.setattr(files, 'RecordReader', lambda path: opened.append(path) or reader(path))
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: (64, 64))
    with data.TreeStore(tmp_path) as store:
        assert {r.key for r in store.unordered()} == set(expected)
        assert len(opened) == 20
        some = [(19, 2), (0, 0), (0, 1)]
        assert {r.key for r in store.unordered(some)} == set(some)


@pytest.mark.parametrize(
    ('allowed', 'readers'), [(64, 8), (1024, 128), (1 << 20, 8192), (resource.RLIM_INFINITY, 8192)]
)
def test_so_many_files_are_held_open_as_the_system_allows(monkeypatch, allowed, readers):
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: (allowed, allowed))
    assert open_readers() == readers


def test_lost_keys_file_is_made_again(tmp_path):
    expected = trees([(i, 1) for i in range(3)])
    with data.TreeStore(tmp_path, shard_trees=3, seconds=0) as store:
        for record in expected.values():
            store.append(record)
    keys = tmp_path / 'shard-0-000000.keys'
    before = json.loads(keys.read_text())
    keys.unlink()
    check(tmp_path, expected)
    assert json.loads(keys.read_text()) == before


def test_damaged_file_is_named(tmp_path):
    with data.TreeStore(tmp_path) as store:
        store.append(samples.grown(1, 4))
    path = tmp_path / 'tree-0-4-0.array_record'
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(UserError) as caught:
        list(data.TreeStore(tmp_path))
    assert caught.value.argument == str(path)
    assert '\n' not in str(caught.value)


def test_two_writers_share_a_folder(tmp_path):
    expected = trees([(i, 0) for i in range(6)])
    records = list(expected.values())
    first = data.TreeStore(tmp_path, writer=0, shard_trees=2, seconds=0)
    second = data.TreeStore(tmp_path, writer=1, shard_trees=4, seconds=0)
    for record in records[:3]:
        first.append(record)
    for record in records[2:]:  # one of them was already done by the other
        second.append(record)
    first.close()
    second.close()
    check(tmp_path, expected)


@pytest.mark.parametrize('killed', [False, True])
def test_discarded_trees_are_gone_from_all_files_and_others_stay(tmp_path, monkeypatch, killed):
    expected = trees([(i, t) for i in range(4) for t in range(3)])
    for writer in (0, 1):
        with data.TreeStore(tmp_path, writer, shard_trees=2, seconds=0) as store:
            for record in list(expected.values())[writer::2]:
                store.append(record)
    part = data.TreeStore(tmp_path, seconds=0)  # of one tree, not merged
    part.append(samples.grown(9, 9, 0))
    gone = {(9, 0), *[key for key in expected if key[1] == 1]}
    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, 'unlink', lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                part.discard(gone)
        assert part.keys() == expected.keys() | {(9, 0)}
    part.discard(gone)
    assert part.keys() == expected.keys() - gone
    again = samples.grown(5, 9, 0)
    assert part.append(again)
    part.close()
    rest = {key: record for key, record in expected.items() if key not in gone}
    check(tmp_path, rest | {(9, 0): again})


def test_trees_that_end_together_are_written_together(tmp_path):
    expected = trees([(i, 0) for i in (4, 2, 0, 1, 3)])
    with data.TreeStore(tmp_path, seconds=1e9) as store:
        for record in expected.values():
            assert store.append(record)
            assert not store.append(record)
        assert data.TreeStore(tmp_path).keys() == {(4, 0)}  # the others wait
        assert store.keys() == set(expected) and len(store) == 5 and (2, 0) in store
        assert [r.key for r in store] == sorted(expected)
    check(tmp_path, expected)
    assert names(tmp_path, '*.array_record') == ['shard-0-000001.array_record']


def test_what_could_not_be_written_still_waits(tmp_path, monkeypatch):
    expected = trees([(i, 0) for i in range(3)])
    store = data.TreeStore(tmp_path, seconds=1e9)
    for record in expected.values():
        store.append(record)
    monkeypatch.setattr(files, 'RecordWriter', lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.close()
    monkeypatch.undo()
    store.close()
    check(tmp_path, expected)


def test_trees_of_several_stores_come_problem_by_problem(tmp_path):
    stores = [data.TreeStore(tmp_path / name) for name in 'ab']
    for store, keys in zip(stores, ([(2, 0), (0, 0), (0, 1)], [(0, 0), (1, 0), (2, 0)])):
        for record in trees(keys).values():
            store.append(record)
    found = list(data.in_order(stores))
    assert [r.key for r in found] == [(0, 0), (0, 1), (0, 0), (1, 0), (2, 0), (2, 0)]
    kept = [samples.same(r, stores[0][r.key]) for r in found[:2]]
    assert kept == [True, True] and samples.same(found[2], stores[1][0, 0])


def test_reader_follows_a_merge(tmp_path):
    expected = trees([(i, 0) for i in range(3)])
    writer = data.TreeStore(tmp_path, seconds=0)
    for record in expected.values():
        writer.append(record)
    reader = data.TreeStore(tmp_path)
    writer.merge()
    assert [r.key for r in reader] == sorted(expected)
    writer.close()


def hold(directory, ready, end):
    with data.TreeStore(directory) as store:
        store.append(samples.grown(0, 0))
        ready.set()
        end.wait(60)


def test_a_process_that_was_started_meanwhile_keeps_nobody_out(tmp_path):
    """Between fork and exec it has all files of the one that starts it."""
    first, second = trees([(0, 0), (1, 0)]).values()
    store = data.TreeStore(tmp_path)
    store.append(first)
    own = pathlib.Path('/proc/self/fd')
    lock = (tmp_path / '.lock-0').resolve()
    copies = [os.dup(int(n)) for n in os.listdir(own) if (own / n).resolve() == lock]
    assert copies
    store.close()
    with data.TreeStore(tmp_path) as store:
        store.append(second)
    for copy in copies:
        os.close(copy)
    assert data.TreeStore(tmp_path).keys() == {(0, 0), (1, 0)}


def test_second_process_may_not_write_and_removes_nothing(tmp_path):
    context = multiprocessing.get_context('spawn')
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, end))
    process.start()
    try:
        assert ready.wait(60)
        making = tmp_path / f'{atomic.TEMPORARY}0-1-tree-0-5-0.array_record.part'
        making.write_bytes(b'')
        store = data.TreeStore(tmp_path)
        assert store.keys() == {(0, 0)} and making.exists()
        with pytest.raises(Later) as error:
            store.append(samples.grown(1, 1))
        assert error.value.argument == str(tmp_path)
    finally:
        end.set()
        process.join(60)
    assert store.append(samples.grown(1, 1))
    store.close()


def test_killed_at_random_moments(tmp_path):
    """40 writers are killed; each next one goes on. What was acknowledged is there, and clean."""
    script = pathlib.Path(__file__).with_name('kill_writers.py')
    result = subprocess.run(
        [sys.executable, script, tmp_path / 'store', '40'],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout)
    assert figures['killed'] == 40 and figures['trees'] > 40
    assert figures['killed_while_merging'] > 0 and figures['leftovers'] > 0
    store = data.TreeStore(tmp_path / 'store')
    assert len(store) == figures['trees'] == sum(1 for _ in store)


def test_a_reader_leaves_everything_as_it_is(tmp_path):
    """Neither what a writer has begun, nor its lock: it may look at a run at work."""
    expected = trees([(i, 0) for i in range(6)])
    with data.TreeStore(tmp_path, shard_trees=4, seconds=0) as writer:
        for record in expected.values():
            writer.append(record)
    next(tmp_path.glob('*.keys')).unlink()
    (tmp_path / f'{atomic.TEMPORARY}0-77-tree.part').write_bytes(b'half')
    before = sorted(path.name for path in tmp_path.iterdir())
    with data.TreeStore(tmp_path, writer=None) as reader:
        assert [record.key for record in reader] == sorted(expected)
        assert samples.same(reader[3, 0], expected[3, 0])
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        more = trees([(9, 0)])
        with data.TreeStore(
            tmp_path, shard_trees=4, seconds=0
        ) as writer:  # merges, removes what was merged
            assert writer.append(more[9, 0])
            writer.merge()
            assert not (tmp_path / 'shard-0-000001.array_record').exists()
            assert [record.key for record in reader] == sorted(expected)
    assert len(data.TreeStore(tmp_path / 'none', writer=None)) == 0
    assert not (tmp_path / 'none').exists()
