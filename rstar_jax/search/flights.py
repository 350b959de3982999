"""Trees in flight on disk, beside the finished ones: a file a process, replaced as a whole.

flights/W.array_record     the trees that process W had in flight when it last wrote, and those
                           that it found in its file and nobody has finished yet

The first record is JSON, [index, tree, rollouts] of each of those behind it: others need not read
all trees to know which there are.
"""

import contextlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Container, Iterator
from typing import NamedTuple

from rstar_jax.data import files
from rstar_jax.job import atomic
from rstar_jax.search import flight


class _Place(NamedTuple):
    """Where a tree lies, and how many rollouts of it are done."""

    path: pathlib.Path
    rollouts: int


class Flights:
    """The `search.flight.Flights` of one process.

    Args:
      directory: of all processes; what any of them has left there is found. Of others' trees only
        the places are kept in memory.
      writer: this process's number.
      seconds: between two writes; 0 never writes, but goes on from what is there.
      done: has the keys of the finished trees.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        writer: int,
        seconds: float,
        done: Container[flight.Key],
    ):
        self._directory, self._seconds, self._done = pathlib.Path(directory), seconds, done
        self._path = self._directory / f'{writer}.array_record'
        self._found: dict[flight.Key, _Place] = {}
        self._mine: dict[flight.Key, bytes] = {}
        self._written = time.monotonic()
        for path in sorted(self._directory.glob('*.array_record')):
            reader = files.RecordReader(path)
            for position, key, rollouts in _index(reader):
                if key in done:
                    continue
                if path == self._path:
                    self._mine[key] = reader[position]
                if key not in self._found or rollouts >= self._found[key].rollouts:
                    self._found[key] = _Place(path, rollouts)
            reader.close()

    def due(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._written

    def find(self, key: flight.Key) -> bytes | None:
        place = self._found.pop(key, None)
        if place is None:
            return None
        return self._mine.get(key) if place.path == self._path else _read(key, place.path)

    def keep(self, trees: dict[flight.Key, bytes]) -> None:
        self._written = time.monotonic()
        if not self._seconds:
            return
        older = {key: data for key, data in self._mine.items() if key not in self._done}
        self._mine = older | trees
        with atomic.replacing(self._path) as temporary, files.RecordWriter(temporary) as out:
            rows = [(*key, flight.key_of(data)[1]) for key, data in self._mine.items()]
            for data in (json.dumps(rows).encode(), *self._mine.values()):
                out.write(data)

    def forget(self) -> None:
        """Deletes what all processes have kept here: every tree is finished."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _index(reader: files.RecordReader) -> Iterator[tuple[int, flight.Key, int]]:
    """(position, key, rollouts) of each tree of a file."""
    for position, (index, tree, rollouts) in enumerate(json.loads(reader[0]), 1):
        yield position, (index, tree), rollouts


def _read(key: flight.Key, path: pathlib.Path) -> bytes | None:
    """Another process's tree; None where its file, a later one by now, has it no more."""
    try:
        reader = files.RecordReader(path)
    except FileNotFoundError:
        return None
    with contextlib.closing(reader):
        return next((reader[at] for at, found, _ in _index(reader) if found == key), None)
