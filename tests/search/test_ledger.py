"""The ledger on lists of tokens: after any walk a path holds what its nodes say."""

import dataclasses
import random

import numpy as np
import pytest

from rstar_jax.search.engine.ledger import Ledger

DEVICES, WIDTH, CANDIDATES = 2, 3, 4
NOTHING = -1


@dataclasses.dataclass
class Node:
    parent: int
    tokens: list[int]
    candidate: int
    in_cell: int
    is_open: bool = True


class Machine:
    """The devices' memory, a token a position, and what the ledger's queues do to it."""

    def __init__(self, ledger, room):
        self.ledger = ledger
        self.paths = [[NOTHING] * 400 for _ in range(DEVICES * WIDTH)]
        self.kept = [[NOTHING] * room for _ in range(DEVICES * WIDTH)]
        self.cells = [[] for _ in range(DEVICES * WIDTH * CANDIDATES)]
        self.copied = 0

    def run(self):
        """All copies, then all that is to be computed, in small pieces; until nothing is left."""
        done = self._turn()
        while self.ledger.segments or self.ledger._following:
            done |= self._turn()
        return done

    def _turn(self):
        ledger = self.ledger
        ledger.release()
        self.copied += len(ledger.repeated)
        for queue, source, target in (
            (ledger.born, self.cells, self.kept),
            (ledger.left, self.paths, self.kept),
            (ledger.repeated, self.paths, self.paths),
            (ledger.recalled, self.kept, self.paths),
        ):
            for packed in ledger.packed(queue):
                for device, place, at, offset, start, count in self._entries(packed):
                    row = device * WIDTH + place
                    at += device * len(source) // DEVICES
                    target[row][offset : offset + count] = source[at][start : start + count]
        for packed in ledger.packed(ledger.appends):
            for device, place, cell, start, count in self._entries(packed):
                tokens = self.cells[device * WIDTH * CANDIDATES + cell][:count]
                self.paths[device * WIDTH + place][start : start + count] = tokens
        done = set()
        while ledger.segments:
            batch, finished = ledger.take(((2, 4), (1, 4)), cut=ledger._prompts)
            rows, length = len(batch.trees) // DEVICES, batch.tokens.shape[1]
            assert (rows, length) in ((2, 4), (1, 4))
            for entry, (tree, count) in enumerate(zip(batch.trees, batch.counts)):
                if count:
                    row = entry // rows * WIDTH + tree
                    start = batch.starts[entry] + (entry % rows - batch.first[entry]) * length
                    self.paths[row][start : start + count] = batch.tokens[entry, :count].tolist()
            done |= set(finished)
        return done

    def _entries(self, packed):
        for device, entries in enumerate(np.split(packed, DEVICES, axis=1)):
            for entry in entries.T.tolist():
                if entry[0] < WIDTH:
                    yield device, *entry


def grow(rng, nodes, path):
    """Children of a path's end, from candidates of which some were dropped."""
    born = []
    for candidate in sorted(rng.sample(range(CANDIDATES), rng.randint(1, CANDIDATES))):
        tokens = [rng.randrange(1000) for _ in range(rng.randint(1, 9))]
        # A program's output, or a text's end, is not in the cell.
        in_cell = rng.choice([len(tokens), len(tokens), max(0, len(tokens) - 3), 0])
        born.append(Node(path[-1], tokens, candidate, in_cell, rng.random() < 0.8))
    return born


def to_root(nodes, node):
    path = []
    while node >= 0:
        path.insert(0, node)
        node = nodes[node].parent
    return path


@pytest.mark.parametrize('keeps', [0, 30, 2000])
@pytest.mark.parametrize('shared', [0, 5])
@pytest.mark.parametrize('prompts', [True, False])
def test_random_walks(keeps, shared, prompts):
    """Of few prompts; now and then one that does not begin as all others."""
    rng = random.Random(keeps + shared)
    ledger = Ledger(DEVICES, WIDTH, CANDIDATES, keeps, lambda node: node.in_cell, prompts)
    machine = Machine(ledger, keeps)
    asked = [[rng.randrange(1000) for _ in range(shared + rng.randint(1, 20))] for _ in range(5)]
    trees, computed, again, front = {}, 0, 0, {}
    for _ in range(400):
        rows = [row for row in range(DEVICES * WIDTH) if rng.random() < 0.5]
        for row in rows:
            if row not in trees or rng.random() < 0.05:
                trees[row] = [Node(-1, rng.choice(asked), -1, 0)], [0], {0}
                front[row] = shared if rng.random() < 0.8 else 0
                ledger.start(row, front[row])
                path = [0]
            else:
                nodes, path, visited = trees[row]
                born = grow(rng, nodes, path)
                for node in born:
                    cell = row * CANDIDATES + node.candidate
                    machine.cells[cell] = node.tokens[: node.in_cell]
                nodes += born
                leaves = set(range(len(nodes))) - {node.parent for node in nodes}
                leaves = [leaf for leaf in leaves if nodes[leaf].is_open]
                new = [leaf for leaf in leaves if leaf >= len(nodes) - len(born)]
                if not leaves:
                    del trees[row]
                    continue
                path = to_root(nodes, rng.choice(new if new and rng.random() < 0.6 else leaves))
                again += sum(len(nodes[i].tokens) for i in path if i in visited)
                trees[row] = nodes, path, visited | set(path)
            nodes, path, _ = trees[row]
            count = ledger.walk(row, nodes, path)
            computed += count
            assert ledger.waits(row) == (count > 0)
            assert ledger.length(row) == sum(len(nodes[i].tokens) for i in path) - front[row]
        waiting = {row for row in trees if ledger.waits(row)}
        assert machine.run() == waiting
        for row, (nodes, path, _) in trees.items():
            tokens = [token for i in path for token in nodes[i].tokens][front[row] :]
            assert machine.paths[row][: len(tokens)] == tokens
    assert computed > 0 and again > 0 and (machine.copied > 0) == prompts


def test_a_prompt_of_another_tree_is_computed_once():
    """But for its last token; on another device as a whole."""
    ledger = Ledger(2, 2, 2, 0, lambda node: node.in_cell)
    nodes = [Node(-1, [1, 2, 3, 4], -1, 0)]

    def begin(row):
        ledger.start(row)
        return ledger.walk(row, nodes, [0])

    assert [begin(row) for row in (0, 1, 2)] == [4, 1, 4]
    assert ledger.waits(1) and ledger.repeated == []
    ledger.release()
    assert ledger.repeated == []  # it is not there yet
    while ledger.segments:
        ledger.take(((2, 4), (1, 4)))
    ledger.release()
    assert ledger.repeated == [(1, 0, 0, 0, 4)]
    assert [segment.tokens for segment in ledger.segments] == [[4]]
    ledger.take(((2, 4), (1, 4)))
    assert not ledger.waits(1)
    assert begin(1) == 1 and ledger.repeated == [(1, 0, 0, 0, 4)]  # it lies in the row itself
    ledger.repeated.clear()
    assert begin(1) == 1 and ledger.repeated == [
        (1, 0, 0, 0, 4)
    ]  # while its last token is computed


def test_the_tree_that_was_to_compute_a_prompt_ends_before():
    ledger = Ledger(1, 2, 2, 0, lambda node: node.in_cell)
    nodes = [Node(-1, [1, 2, 3, 4], -1, 0)]
    for row in (0, 1):
        ledger.start(row)
        ledger.walk(row, nodes, [0])
    ledger.segments.clear()
    ledger.start(0)
    ledger.release()
    assert ledger.waits(1)
    assert [(s.row, s.start, s.tokens) for s in ledger.segments] == [(1, 0, [1, 2, 3, 4])]


def test_what_is_kept_is_not_computed_again():
    """A walk to a sibling, and back: the last token alone, whatever has been left."""
    ledger = Ledger(1, 1, 2, 100, lambda node: node.in_cell)
    nodes = [Node(-1, [1, 2, 3], -1, 0)]
    assert ledger.walk(0, nodes, [0]) == 3
    nodes += [Node(0, [4, 5, 6, 7], 0, 2), Node(0, [8, 9], 1, 2)]
    assert ledger.walk(0, nodes, [0, 1]) == 2  # two of four were in the cell
    nodes += [Node(1, [10], 0, 1), Node(1, [11], 1, 1)]
    assert ledger.walk(0, nodes, [0, 2]) == 1
    nodes += [Node(2, [12], 0, 1)]
    assert ledger.walk(0, nodes, [0, 1, 3]) == 1
    nothing = Ledger(1, 1, 2, 0, lambda node: node.in_cell)
    nothing.walk(0, nodes, [0, 2])
    assert nothing.walk(0, nodes, [0, 1, 3]) == 5


def test_a_full_store_keeps_no_more():
    ledger = Ledger(1, 1, 4, 5, lambda node: node.in_cell)
    nodes = [Node(-1, [1], -1, 0)]
    ledger.walk(0, nodes, [0])
    nodes += [Node(0, [2, 3, 4], 0, 3), Node(0, [5, 6, 7], 1, 3), Node(0, [8, 9], 2, 2)]
    ledger.walk(0, nodes, [0, 1])
    assert [(offset, count) for *_, offset, _, count in ledger.born] == [(0, 3), (3, 2)]
