"""Trees in flight on disk, beside the finished ones: a file a process, replaced as a whole.

flights/W.array_record     the trees that process W had in flight when it last wrote, and those
                           that it found in its file and nobody has finished yet
"""

import os
import pathlib
import shutil
import time
from collections.abc import Container

from rstar_jax import atomic
from rstar_jax.data import files
from rstar_jax.search import flight


class Flights:
    """The `search.flight.Flights` of one process.

    Args:
      directory: of all processes; what any of them has left there is found.
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
        self._found: dict[flight.Key, bytes] = {}
        self._mine: dict[flight.Key, bytes] = {}
        self._written = time.monotonic()
        rollouts: dict[flight.Key, int] = {}
        for path in sorted(self._directory.glob('*.array_record')):
            reader = files.RecordReader(path)
            for data in reader:
                key, count = flight.key_of(data)
                if key in done:
                    continue
                if path == self._path:
                    self._mine[key] = data
                if count >= rollouts.get(key, 0):
                    rollouts[key], self._found[key] = count, data
            reader.close()

    def due(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._written

    def find(self, key: flight.Key) -> bytes | None:
        return self._found.pop(key, None)

    def keep(self, trees: dict[flight.Key, bytes]) -> None:
        self._written = time.monotonic()
        if not self._seconds:
            return
        older = {key: data for key, data in self._mine.items() if key not in self._done}
        self._mine = older | trees
        with atomic.replacing(self._path) as temporary, files.RecordWriter(temporary) as out:
            for data in self._mine.values():
                out.write(data)

    def forget(self) -> None:
        """Deletes what all processes have kept here: every tree is finished."""
        shutil.rmtree(self._directory, ignore_errors=True)
