"""Finished search trees on disk: appended as they finish, never half written, never read twice.

    tree-W-INDEX-TREE.array_record   one tree, as soon as it has finished (W: the writing process)
    shard-W-NUMBER.array_record      many trees: of one second, or merged out of such parts
    shard-W-NUMBER.keys              the (index, tree) of the shard's records, in their order

Files are made once a second at most: where small trees end by the dozen, making, flushing and
deleting a file for each takes longer than the search. When enough parts have gathered they are
merged: the shard takes its final name before the first part goes, so a crash leaves at most both,
and then the shard counts and the parts are removed on the next open. Names of parts and `.keys`
files tell what is stored without reading it; a lost `.keys` file is made again from its shard.
"""

import collections
import fcntl
import heapq
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from rstar_jax.data import files
from rstar_jax.errors import UserError
from rstar_jax.search.record import Record

Key = tuple[int, int]

SUFFIX = '.array_record'
OPEN_READERS = 8


class TreeStore:
    """The trees of one search, in a folder.

    Iteration gives the Records ordered by (problem index, tree number), whatever order they were
    written in, and holds one at a time in memory: `data.curate_to` depends on both. Several
    processes may write into one folder when each has its own `writer` number; each of them sees
    what the others had stored when it was opened. With `writer=None` the store only reads: it takes
    no lock and leaves everything as it is, so it can look at a folder that a run is writing into.

    Attributes:
      directory: the folder; made if absent.
      shard_trees: how many parts are merged into a shard.
      seconds: trees that are appended sooner after a write wait for the next one in memory; a
        killed process loses them. 0: every tree is on the disk when `append` returns.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        writer: int | None = 0,
        shard_trees: int = 256,
        seconds: float = 1.0,
    ):
        self.directory = pathlib.Path(directory)
        self.shard_trees = shard_trees
        self.seconds = seconds
        self._written = -math.inf
        self._waiting: dict[Key, Record] = {}
        self._number: int | None = None  # of the next shard, while this process may write
        self._writer = writer
        self._lock: IO[str] | None = None
        self._where: dict[Key, tuple[str, int]] = {}
        self._parts: list[tuple[Key, pathlib.Path]] = []
        self._readers: collections.OrderedDict[str, files.RecordReader] = collections.OrderedDict()
        if writer is None:
            self._scan()
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        # Without the lock another process is at work here: its files in the making are not litter.
        if self._take_lock():
            self._sweep()
            self._scan()
            self._remove_merged_parts()
            self._release_lock()
        else:
            self._scan()

    def append(self, record: Record) -> bool:
        """Stores a tree, within `seconds` or as the next one comes. False if it was there already.

        Raises:
          UserError: another process writes into this folder under the same `writer` number.
        """
        if record.key in self:
            return False
        assert self._writer is not None, 'this store only reads'
        if not self._take_lock():
            raise UserError(
                f'{self.directory}: another process is writing trees here; wait for it to end, '
                'or choose another workdir'
            )
        self._waiting[record.key] = record
        full = len(self._waiting) >= self.shard_trees
        if full or time.monotonic() - self._written >= self.seconds:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the trees that wait in memory."""
        keys = sorted(self._waiting)
        if len(keys) == 1:
            ((key, record),) = self._waiting.items()
            path = self.directory / f'tree-{self._writer}-{key[0]}-{key[1]}{SUFFIX}'
            self._write(path, [record.to_bytes()])
            self._where[key] = (path.name, 0)
            self._parts.append((key, path))
        elif keys:
            self._write_shard(keys, (self._waiting[key].to_bytes() for key in keys))
        self._waiting.clear()
        self._written = time.monotonic()
        if len(self._parts) >= self.shard_trees:
            self.merge()

    def merge(self) -> None:
        """Merges the parts that this writer has into a shard. Safe to be killed in."""
        if not self._parts or not self._take_lock():
            return
        parts = sorted(self._parts)
        self._write_shard([key for key, _ in parts], (self._read(p.name, 0) for _, p in parts))
        self._parts = []
        for _, path in parts:
            self._forget_reader(path.name)
            path.unlink(missing_ok=True)

    def _write_shard(self, keys: list[Key], records: Iterable[bytes]) -> None:
        if self._number is None:  # looked up once: a folder may hold very many
            numbers = (int(path.stem.split('-')[2]) for path in self._own_shards())
            self._number = 1 + max(numbers, default=-1)
        shard = self.directory / f'shard-{self._writer}-{self._number:06d}{SUFFIX}'
        _write_keys(shard, keys, self._tag)
        self._write(shard, records)
        self._number += 1
        for position, key in enumerate(keys):
            self._where[key] = (shard.name, position)

    def _write(self, path: pathlib.Path, records: Iterable[bytes]) -> None:
        with files.replacing(path, self._tag) as temporary, files.RecordWriter(temporary) as out:
            for record in records:
                out.write(record)

    def keys(self) -> set[Key]:
        """Returns (problem index, tree number) of every stored tree."""
        return self._where.keys() | self._waiting.keys()

    def __len__(self) -> int:
        return len(self._where) + len(self._waiting)

    def __contains__(self, key: object) -> bool:
        return key in self._where or key in self._waiting

    def __getitem__(self, key: Key) -> Record:
        """Reads one tree; KeyError when it is not stored."""
        if key in self._waiting:
            return self._waiting[key]
        try:
            data = self._read(*self._where[key])
        except FileNotFoundError:  # merged by its writer since this store was opened
            self._scan()
            data = self._read(*self._where[key])
        return Record.from_bytes(data)

    def __iter__(self) -> Iterator[Record]:
        for key in sorted(self.keys()):
            yield self[key]

    def refresh(self) -> None:
        """Writes what waits, and looks for what other processes have stored since."""
        self.flush()
        self._scan()

    def close(self) -> None:
        """Writes what waits, closes open files and lets others write. The store stays usable."""
        self.flush()
        while self._readers:
            self._forget_reader(next(iter(self._readers)))
        self._release_lock()

    def __enter__(self) -> 'TreeStore':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _tag(self) -> str:
        return f'{self._writer}-'

    def _own_shards(self) -> Iterator[pathlib.Path]:
        return self.directory.glob(f'shard-{self._writer}-*{SUFFIX}')

    def _scan(self) -> None:
        """Finds out which trees are stored where. A tree found twice counts in a shard."""
        paths = sorted(self.directory.glob('*' + SUFFIX))
        found: dict[Key, tuple[str, int]] = {}
        parts = []
        for path in paths:
            match = re.fullmatch(r'tree-(\d+)-(-?\d+)-(\d+)', path.stem)
            if match:
                parts.append((int(match[1]), (int(match[2]), int(match[3])), path))
                continue
            for position, key in enumerate(self._keys_of(path)):
                found.setdefault(key, (path.name, position))
        self._parts = [(key, path) for writer, key, path in parts if writer == self._writer]
        for _, key, path in parts:
            found.setdefault(key, (path.name, 0))
        self._where = found

    def _keys_of(self, shard: pathlib.Path) -> list[Key]:
        path = shard.with_suffix('.keys')
        if path.exists():
            return [(index, tree) for index, tree in json.loads(path.read_text(encoding='utf-8'))]
        reader = files.RecordReader(shard)
        keys = [Record.from_bytes(data).key for data in reader]
        reader.close()
        if self._lock is not None:
            _write_keys(shard, keys, self._tag)
        return keys

    def _sweep(self) -> None:
        """Removes what a killed process of this writer left half done."""
        for path in self.directory.glob(f'{files.TEMPORARY}{self._tag}*'):
            path.unlink(missing_ok=True)
        for path in self.directory.glob(f'shard-{self._writer}-*.keys'):
            if not path.with_suffix(SUFFIX).exists():
                path.unlink(missing_ok=True)

    def _remove_merged_parts(self) -> None:
        left = []
        for key, path in self._parts:
            if self._where[key][0] == path.name:
                left.append((key, path))
            else:
                path.unlink(missing_ok=True)
        self._parts = left

    def _read(self, name: str, position: int) -> bytes:
        if name not in self._readers:
            while len(self._readers) >= OPEN_READERS:
                self._forget_reader(next(iter(self._readers)))
            self._readers[name] = files.RecordReader(self.directory / name)
        self._readers.move_to_end(name)
        reader = self._readers[name]
        if position >= len(reader):
            raise UserError(
                f'{reader.path}: holds {len(reader)} trees, fewer than its .keys file says; '
                'delete the .keys file'
            )
        return reader[position]

    def _forget_reader(self, name: str) -> None:
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.close()

    def _take_lock(self) -> bool:
        """Takes the right to write as this writer; False if another process has it."""
        if self._lock is None:
            # A file object: the system frees the lock when it is closed, at the process's end too.
            lock = (self.directory / f'.lock-{self._writer}').open('a')
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            except OSError:  # a file system without locks: then nobody is kept out
                pass
            self._lock = lock
        return True

    def _release_lock(self) -> None:
        self._number = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def in_order(
    stores: Sequence[TreeStore], first: float = -math.inf, end: float = math.inf
) -> Iterator[Record]:
    """The trees of several stores, those of one problem together, in the order of the stores.

    first, end: of problems with an index from `first` on and below `end`.
    """

    def keyed(number: int) -> Iterator[tuple[tuple[int, str, int], Record]]:
        for key in sorted(stores[number].keys()):
            if first <= key[0] < end:
                record = stores[number][key]
                yield (record.problem['index'], record.problem['question'], number), record

    streams = [keyed(number) for number in range(len(stores))]
    for _, record in heapq.merge(*streams, key=lambda item: item[0]):
        yield record


def _write_keys(shard: pathlib.Path, keys: list[Key], tag: str) -> None:
    with files.replacing(shard.with_suffix('.keys'), tag) as temporary:
        temporary.write_text(json.dumps(keys), encoding='utf-8')
