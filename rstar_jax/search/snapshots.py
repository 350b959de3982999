"""Trees in flight on disk, so that a search that was killed goes on inside of them.

A snapshot is what a tree has found so far. The candidates that are being sampled are left out: they
come again as they were, for their keys follow from their place in the tree. A process has one file,
which is replaced as a whole:

    flights/W.array_record     the trees that process W had in flight when it last wrote, and those
                               that it found in its file and nobody has finished yet

The first record is JSON, [index, tree, rollouts] of each of those behind it: others need not read
all trees to know which there are.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Container, Iterator
from typing import Any, Protocol

import msgpack
import numpy as np
from flax import serialization

from rstar_jax.data import files
from rstar_jax.data.record import Status
from rstar_jax.job import atomic
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.nodes import HostTree, Node, Step

Key = tuple[int, int]  # problem index, tree number

# What the walk or the loop makes anew when the tree goes on.
LEFT_OUT = ('problem', 'path', 'candidates', 'started', 'tokens_left', 'nodes')
PENDING = ('run', 'grade')  # of a node, done by then


class Snapshots(Protocol):
    """Where trees in flight are kept."""

    def due(self) -> bool:
        """Whether it is time to keep them again."""

    def keep(self, trees: dict[Key, bytes]) -> None:
        """Keeps all trees that are in flight now, in place of those kept before."""

    def find(self, key: Key) -> bytes | None:
        """The tree as it was kept last, None where it was not."""


def pack(tree: HostTree, arrays: trees_lib.Tree) -> bytes:
    """A tree in flight: the host's side, and its row of the arrays, on the host."""
    size = int(arrays.size)
    host = {name: value for name, value in vars(tree).items() if name not in LEFT_OUT}
    host['sampled'] -= sum(node.step.sampled for node in tree.candidates if node is not None)
    held = {f.name: np.asarray(getattr(arrays, f.name)) for f in dataclasses.fields(arrays)}
    index, number = tree.key
    return serialization.msgpack_serialize(
        {
            'index': index,  # the first three are read by `key_of`
            'number': number,
            'host': host,
            'nodes': [_packed_node(node) for node in tree.nodes],
            'arrays': {name: x[:size] if x.ndim else x for name, x in held.items()},
            'seconds': time.monotonic() - tree.started,
        },
        in_place=True,
    )


def _packed_node(node: Node) -> dict[str, Any]:
    fields = {name: value for name, value in vars(node).items() if name not in PENDING}
    return {**fields, 'step': dict(vars(node.step)), 'status': int(node.status)}


def key_of(data: bytes) -> tuple[Key, int]:
    """Which tree it is, and how many rollouts of it are done; nothing else is decoded."""
    unpacker = msgpack.Unpacker(io.BytesIO(data), max_buffer_size=len(data))
    unpacker.read_map_header()
    (_, index), (_, number), (_, host) = ((unpacker.unpack(), unpacker.unpack()) for _ in range(3))
    return (index, number), host['rollouts']


def unpack(data: bytes, tree: HostTree, nodes: int) -> tuple[trees_lib.Tree, list[int]] | None:
    """Makes `tree`, which has not begun, the one that was packed.

    nodes: room of a tree (N).

    Returns:
      The tree's row of the arrays, and the nodes from the root to its cursor; None where it does
      not fit, and is to begin anew.
    """
    fields = serialization.msgpack_restore(data)
    saved, host = fields['arrays'], fields['host']
    size = int(saved['size'])
    if size > nodes or host['prompt'] != tree.prompt or host['seed'] != tree.seed:
        return None
    for name, value in host.items():
        setattr(tree, name, value)
    known = {field.name for field in dataclasses.fields(Node)}  # another version has others
    tree.nodes = []
    for node in fields['nodes']:
        node |= {'step': Step(**node['step']), 'status': Status(node['status'])}
        tree.nodes.append(Node(**{name: node[name] for name in known & node.keys()}))
    tree.started = time.monotonic() - fields['seconds']
    row = {}
    for name, value in vars(trees_lib.fresh(nodes)).items():
        row[name] = saved[name]
        if value.ndim:
            row[name] = np.array(value)
            row[name][:size] = saved[name]
    path, node = [], int(saved['cursor'])
    while node != trees_lib.NO_NODE:
        path.append(node)
        node = int(saved['parent'][node])
    return trees_lib.Tree(**row), path[::-1]


class SnapshotFolder:
    """The `Snapshots` of one process, beside those of others.

    Args:
      directory: of all processes; what any of them has left there is found. Of others' trees only
        the places are kept in memory.
      writer: this process's number.
      seconds: between two writes; 0 never writes, but goes on from what is there.
      done: has the keys of the finished trees.
    """

    def __init__(
        self, directory: str | os.PathLike, writer: int, seconds: float, done: Container[Key]
    ):
        self._directory, self._seconds, self._done = pathlib.Path(directory), seconds, done
        self._path = self._directory / f'{writer}.array_record'
        self._found: dict[Key, tuple[int, pathlib.Path]] = {}  # rollouts done, where
        self._mine: dict[Key, bytes] = {}
        self._written = time.monotonic()
        for path in sorted(self._directory.glob('*.array_record')):
            with contextlib.closing(files.RecordReader(path)) as reader:
                for position, key, rollouts in _index(reader):
                    if key in done:
                        continue
                    if path == self._path:
                        self._mine[key] = reader[position]
                    if key not in self._found or rollouts >= self._found[key][0]:
                        self._found[key] = rollouts, path

    def due(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._written

    def find(self, key: Key) -> bytes | None:
        _, path = self._found.pop(key, (0, None))
        if path in (None, self._path):
            return self._mine.get(key) if path else None
        try:
            reader = files.RecordReader(path)
        except FileNotFoundError:
            return None
        with contextlib.closing(reader):  # a later file by now, which may have it no more
            return next((reader[at] for at, found, _ in _index(reader) if found == key), None)

    def keep(self, trees: dict[Key, bytes]) -> None:
        self._written = time.monotonic()
        if not self._seconds:
            return
        older = {key: data for key, data in self._mine.items() if key not in self._done}
        self._mine = older | trees
        with atomic.replacing(self._path) as temporary, files.RecordWriter(temporary) as out:
            rows = [(*key, key_of(data)[1]) for key, data in self._mine.items()]
            for data in (json.dumps(rows).encode(), *self._mine.values()):
                out.write(data)

    def forget(self) -> None:
        """Deletes what all processes have kept here: every tree is finished."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _index(reader: files.RecordReader) -> Iterator[tuple[int, Key, int]]:
    """(position, key, rollouts) of each tree of a file."""
    for position, (index, tree, rollouts) in enumerate(json.loads(reader[0]), 1):
        yield position, (index, tree), rollouts
