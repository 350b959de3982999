"""Trees in flight are kept, and grow on as if nothing had been: by close, by error, by SIGKILL."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import serialization

from rstar_jax import data, search
from rstar_jax.data.problem import Problem
from rstar_jax.search import snapshots
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.nodes import HostTree, Node, Step
from rstar_jax.search.snapshots import SnapshotFolder
from rstar_jax.steps import marks
from tests.parallel import processes
from tests.search import test_engine
from tests.search.test_scripted import random_score, random_texts

SMALL = dict(rollouts=8, candidates=4, max_depth=4, error_threshold=2)


@pytest.fixture(scope='module')
def workers():
    with search.Workers.start(search.Config()) as started:
        yield started


class Memory:
    """Keeps trees at every look."""

    def __init__(self):
        self.trees: dict = {}

    def due(self):
        return True

    def keep(self, trees):
        self.trees |= trees

    def find(self, key):
        return self.trees.get(key)


class Interrupted(Exception):
    pass


def problems(count):
    return [Problem(i, f'q{i}', str(i % 3)) for i in range(count)]


def grown_with_interruptions(every, run):
    """Records of `run(flights, texts)`, broken off at every so many calls of `texts`."""
    flights, found, interruptions = Memory(), {}, 0
    while True:
        calls = 0

        def texts(*arguments):
            nonlocal calls
            calls += 1
            if calls > every:
                raise Interrupted
            return random_texts(*arguments)

        try:
            for record in run(flights, texts, frozenset(found)):
                assert record.key not in found
                found[record.key] = record
        except Interrupted:
            interruptions += 1
            continue
        return found, interruptions


@pytest.mark.parametrize(
    'settings',
    [SMALL, dict(SMALL, strategy='beam', width=3)],
    ids=str,
)
def test_broken_off_again_and_again_the_trees_are_the_same(settings, workers):
    config = search.Config(**settings)

    def run(kept, texts, skip=frozenset()):
        expander = search.scripted(texts, random_score, trees=6)
        return search.run(
            problems(8),
            expander=expander,
            config=config,
            share=search.Share(workers=workers, snapshots=kept, skip=skip),
        )

    whole = {record.key: record for record in run(None, random_texts)}
    parts, interruptions = grown_with_interruptions(9, run)
    assert interruptions > 3
    assert whole.keys() == parts.keys()
    for key, record in whole.items():
        assert_same(parts[key], record)


@pytest.mark.parametrize('look', [1, 2, 3, 12])
def test_stopped_while_the_devices_are_waited_for(look, workers, monkeypatch):
    """Some trees have ended just then: they are neither grown on nor grown again."""
    read, asked = jax.device_get, []

    def run(kept, skip=frozenset(), stop=0):
        def waited(x):
            nonlocal stop
            found = read(x)
            if isinstance(x, tuple):  # where the trees are now
                stop -= 1
                if stop == 0:
                    raise Interrupted
            return found

        def texts(question, *arguments):
            asked.append(question)
            return random_texts(question, *arguments)

        monkeypatch.setattr(jax, 'device_get', waited)
        expander = search.scripted(texts, random_score, trees=6)
        share = search.Share(workers=workers, snapshots=kept, skip=skip)
        config = search.Config(**SMALL)
        yield from search.run(problems(8), expander=expander, config=config, share=share)

    whole = {record.key: record for record in run(None)}
    flights, parts = Memory(), {}
    flights.due = lambda: False
    with pytest.raises(Interrupted):
        for record in run(flights, stop=look):
            parts[record.key] = record
    asked.clear()
    parts |= {record.key: record for record in run(flights, frozenset(parts))}
    for key, record in whole.items():
        assert_same(parts[key], record)
    kept = (serialization.msgpack_restore(tree) for tree in flights.trees.values())
    ended = {f'q{tree["index"]}' for tree in kept if tree['arrays']['finished']}
    assert ended or look > 2
    assert ended.isdisjoint(asked)


def assert_same(ours, theirs, tolerance=0.0):
    assert ours.texts == theirs.texts
    assert ours.tokens == theirs.tokens
    assert ours.outputs == theirs.outputs
    assert ours.answers == theirs.answers
    assert ours.correct == theirs.correct
    for name in ('parent', 'visits', 'depth', 'status', 'errors'):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ('value_sum', 'score', 'likelihood'):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=tolerance)
    assert ours.counters['sampled_tokens'] == theirs.counters['sampled_tokens']


policy, ppm = test_engine.policy, test_engine.ppm


def test_models_go_on_with_trees_that_were_kept(policy, ppm, workers):
    """The paths are read in anew, so scores may differ by rounding; tokens do not."""
    # Where siblings of an answer are stopped, how far they had come is a matter of chance.
    config = dataclasses.replace(test_engine.CONFIG, answers_kept='all')

    def run(kept, skip=frozenset()):
        return search.run(
            test_engine.PROBLEMS,
            policy,
            ppm,
            config=config,
            share=search.Share(
                workers=workers, mesh=test_engine.one_device(), snapshots=kept, skip=skip
            ),
        )

    whole = {record.key: record for record in run(None)}
    flights, parts = Memory(), {}

    class Once(Memory):
        """Breaks off when it has kept trees so often."""

        def __init__(self, trees, times):
            super().__init__()
            self.trees, self.left = trees, times

        def keep(self, trees):
            super().keep(trees)
            self.left -= bool(trees)
            if self.left == 0:
                raise Interrupted

    for times in (3, 3, -1):
        try:
            for record in run(Once(flights.trees, times), frozenset(parts)):
                parts[record.key] = record
        except Interrupted:
            assert flights.trees
    assert whole.keys() == parts.keys()
    for key, record in whole.items():
        assert_same(parts[key], record, 1e-5)


PROGRAM = """
import os, pathlib, signal, sys, time
from rstar_jax import data, search
from tests.search.test_scripted import random_score, random_texts

folder, seconds, end = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
config = search.Config(
    rollouts=64, candidates=4, max_depth=6, error_threshold=2, answers_kept='all', workers=1
)

def texts(*arguments):
    time.sleep(0.01)
    return random_texts(*arguments)

with data.TreeStore(folder, seconds=0) as store:
    snapshots = search.SnapshotFolder(folder / 'flights', 0, seconds, store)
    expander = search.scripted(texts, random_score, trees=1)
    before = expander.start
    def start(row, tree):
        print('starts', len(tree.nodes), flush=True)
        before(row, tree)
    def expand(row, tree):
        print('row', len(tree.nodes), time.time(), flush=True)
        if tree.rollouts >= end:
            os.kill(os.getpid(), signal.SIGKILL)
        type(expander).expand(expander, row, tree)
    expander.start, expander.expand = start, expand
    problem = {'index': 3, 'question': 'q0', 'answer': '1'}
    share = search.Share(snapshots=snapshots, skip=frozenset(store.keys()))
    for record in search.run([problem], expander=expander, config=config, share=share):
        store.append(record)
"""
INTERVAL = 0.3


def run(folder: pathlib.Path, end: int = 1000) -> tuple[int, list[tuple[int, float]]]:
    """Searches until so many rollouts are done: (nodes to begin with, rows of nodes and time)."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(folder), str(INTERVAL), str(end)],
        cwd=processes.REPOSITORY,
        env=processes.environment_of(1),
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    assert done.returncode == (0 if end == 1000 else -signal.SIGKILL)
    words = [line.split() for line in done.stdout.splitlines()]
    (start,) = (int(nodes) for kind, nodes, *_ in words if kind == 'starts')
    return start, [(int(row[1]), float(row[2])) for row in words if row[0] == 'row']


def test_a_killed_tree_of_64_rollouts_loses_the_last_interval_at_most(tmp_path):
    assert run(tmp_path / 'whole')[0] == 1
    _, rows = run(tmp_path / 'parts', 30)
    size, _ = run(tmp_path / 'parts')
    # What had been found that long before the last look, one step before the kill, is there.
    kept = [nodes for nodes, seconds in rows if seconds < rows[-2][1] - INTERVAL]
    assert size >= kept[-1] > 20
    with data.TreeStore(tmp_path / 'whole') as whole, data.TreeStore(tmp_path / 'parts') as parts:
        assert len(whole) == len(parts) == 1
        assert_same(parts[3, 0], whole[3, 0])


def packed(index, rollouts):
    tree = HostTree(Problem(index, ''), 0, 0, '', [Node()], rollouts=rollouts)
    return snapshots.pack(tree, jax.tree.map(np.array, trees_lib.fresh(8)))


def test_what_another_process_keeps_is_read_when_it_is_asked_for(tmp_path):
    one, two = (SnapshotFolder(tmp_path, number, 1.0, ()) for number in range(2))
    two.keep({(i, 0): packed(i, 1) for i in range(4)})
    one = SnapshotFolder(tmp_path, 0, 1.0, ())
    assert snapshots.key_of(one.find((3, 0))) == ((3, 0), 1)
    assert one.find((3, 0)) is None
    two = SnapshotFolder(tmp_path, 1, 1.0, {(1, 0)})
    two.keep({(2, 0): packed(2, 7)})  # the one in front of it is done
    assert snapshots.key_of(one.find((2, 0))) == ((2, 0), 7)
    assert one.find((1, 0)) is None
    two.forget()
    assert one.find((0, 0)) is None


def test_a_file_of_another_process_is_read_and_outdone_by_what_went_further(tmp_path):
    done = set()
    one, two = (SnapshotFolder(tmp_path, number, 1.0, done) for number in range(2))
    one.keep({(1, 0): packed(1, 3), (2, 0): packed(2, 5), (3, 0): packed(3, 1)})
    two.keep({(2, 0): packed(2, 2), (4, 0): packed(4, 9)})
    done.add((3, 0))
    one = SnapshotFolder(tmp_path, 0, 1.0, done)
    found = {key: snapshots.key_of(one.find((key, 0)))[1] for key in (1, 2, 4)}
    assert found == {1: 3, 2: 5, 4: 9}
    assert one.find((3, 0)) is None
    # Killed before it came to the trees of its file again, it still has them.
    one.keep({(5, 0): packed(5, 1)})
    again = SnapshotFolder(tmp_path, 1, 1.0, done)
    assert all(again.find((key, 0)) is not None for key in (1, 2, 4, 5))
    again.forget()
    assert not tmp_path.exists()


def test_a_process_whose_leases_others_have_taken_finds_nothing(workers):
    told = []
    records = search.run(
        problems(4),
        expander=search.scripted(random_texts, trees=2),
        config=search.Config(**SMALL),
        share=search.Share(
            workers=workers,
            leases=iter([[], []]),
            progress=lambda now: told.append(now['trees_done'] / now['trees_total']),
        ),
    )
    assert list(records) == []
    assert not any(told)


def test_what_is_being_sampled_comes_again_and_seconds_go_on(monkeypatch):
    monkeypatch.setattr(snapshots.time, 'monotonic', lambda: 100.0)
    sampled = Node(Step(0, 0, 'x', [], marks.STEP, sampled=5))
    about = dict(candidates=[sampled, None], sampled=12, spent=7, started=60.0)
    tree = HostTree(Problem(3, ''), 0, 0, '', [Node()], **about)
    data = snapshots.pack(tree, jax.tree.map(np.array, trees_lib.fresh(8)))
    again = HostTree(Problem(3, ''), 0, 0, '', [Node()])
    monkeypatch.setattr(snapshots.time, 'monotonic', lambda: 1000.0)
    assert snapshots.unpack(data, again, 8)[1] == [0]
    found = (again.candidates, again.sampled, again.spent, again.started)
    assert found == ([], 7, 7, 960.0)


@pytest.mark.parametrize('changes', [{}, {'seed': 1}, {'prompt': 'another'}, {'nodes': 0}])
def test_a_tree_that_does_not_fit_begins_anew(changes):
    about = {'seed': 0, 'prompt': '', 'nodes': 8} | changes
    nodes = about.pop('nodes')
    tree = HostTree(Problem(3, ''), 0, nodes=[Node()], **about)
    found = snapshots.unpack(packed(3, 5), tree, nodes)
    assert (found is None) == bool(changes)
    assert tree.rollouts == (0 if changes else 5)
