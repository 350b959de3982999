"""Finished search trees on disk: appended as they finish, never half written, never read twice.

    tree-W-INDEX-TREE.array_record   one tree, as soon as it has finished (W: the writing process)
    shard-W-NUMBER.array_record      several trees: of one second, or merged out of smaller files
    shard-W-NUMBER.keys              [index, tree, *Facts] of each of them

Files are made once a second at most: where small trees end by the dozen, making, flushing and
deleting a file for each takes longer than the search. Where small files hold enough trees, and as
the store is closed, they are merged: the shard takes its final name before the first of them goes,
so a crash leaves at most both, and then the writer's latest shard counts, and what is in it is
removed on the next open. Names of parts and `.keys` files tell what is stored without reading it; a
lost `.keys` file is made again from its shard.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import pathlib
import re
import resource
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import IO, NamedTuple

from rstar_jax.data import files
from rstar_jax.data.record import Record
from rstar_jax.job import atomic, hosts
from rstar_jax.job.atomic import STALE_SECONDS
from rstar_jax.settings.errors import Later, UserError

Key = tuple[int, int]

SUFFIX = '.array_record'
OPEN_READERS = 8, 8192  # of a store, at least and at most; one takes 30 kB
READING = 32  # files' keys that are read at once: a store's answer takes as long as 100 ms
_PART = re.compile(r'tree-\d+-(-?\d+)-(\d+)$')


class Facts(NamedTuple):
    """What is known of a stored tree without reading it.

    tokens: sampled. question: `question_id` of its problem.
    """

    solved: bool
    nodes: int
    tokens: float
    question: int

    @classmethod
    def of(cls, record: Record) -> 'Facts':
        tokens = record.counters.get('sampled_tokens', 0.0)
        question = question_id(record.problem.question)
        return cls(record.solved, len(record.texts), float(tokens), question)


def question_id(question: str) -> int:
    """A number that other questions hardly have."""
    return zlib.crc32(question.encode())


class _Place(NamedTuple):
    """Where a tree is stored; facts are None where they are not known."""

    name: str
    position: int
    facts: Facts | None


Rows = dict[Key, _Place]


class TreeStore(contextlib.AbstractContextManager):
    """The trees of one search, in a folder.

    Iteration gives the Records ordered by (problem index, tree number), whatever order they were
    written in, and holds one at a time in memory: `data.curate_to` depends on both. Several
    processes may write into one folder when each has its own `writer` number; each of them sees
    what the others had stored when it was opened. With `writer=None` the store only reads: it takes
    no lock and leaves everything as it is, so it can look at a folder that a run is writing into.

    Attributes:
      directory: the folder; made if absent.
      shard_trees: how many trees a file holds that is not merged any more.
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
        self._where: dict[Key, _Place] = {}
        self._rows: dict[str, Rows] = {}  # of each shard; one never changes
        self._small: dict[str, list[Key]] = {}  # this writer's files that are to be merged
        self._readers: collections.OrderedDict[str, files.RecordReader] = collections.OrderedDict()
        if writer is None:
            self._scan()
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        # Without the lock another process is at work here: its files in the making are not litter.
        if self._take_lock():
            self._sweep()
            self._scan()
            self._remove_merged()
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
        self._must_lock()
        self._waiting[record.key] = record
        full = len(self._waiting) >= self.shard_trees
        if full or time.monotonic() - self._written >= self.seconds:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the trees that wait in memory."""
        rows = {key: Facts.of(self._waiting[key]) for key in sorted(self._waiting)}
        records = (self._waiting[key].to_bytes() for key in rows)
        if len(rows) == 1:
            ((index, tree),) = rows
            path = self.directory / f'tree-{self._writer}-{index}-{tree}{SUFFIX}'
            self._write(path, records)
            self._stored(path.name, rows)
        elif rows:
            self._write_shard(rows, records)
        self._waiting.clear()
        self._written = time.monotonic()
        if sum(map(len, self._small.values())) >= self.shard_trees:
            self.merge()

    def merge(self) -> None:
        """Merges this writer's small files into a shard that need not grow any more.

        What is enough for a shard is taken at a time. Safe to be killed in.
        """
        if len(self._small) < 2 or not self._take_lock():
            return
        sizes = itertools.accumulate(map(len, self._small.values()), initial=0)
        small = [name for name, before in zip(self._small, sizes) if before < self.shard_trees]
        keys = sorted(key for name in small for key in self._small[name] if self._in(name, key))
        if keys:
            rows = {key: self._where[key].facts or Facts.of(self[key]) for key in keys}
            self._write_shard(rows, (self._read(self._where[key]) for key in keys))
        for name in small:
            self._remove(name)

    def discard(self, keys: Set[Key]) -> None:
        """Removes trees, whoever wrote them; no other process may be at work here.

        Safe to be killed in: some of them may be there still, all others are.

        Raises:
          UserError: as `append`.
        """
        self.flush()
        while gone := keys & self._where.keys():
            self._must_lock()
            names = {self._where[key].name for key in gone}
            kept = sorted(
                key for key, place in self._where.items() if place.name in names and key not in gone
            )
            if kept:
                rows = {key: self._where[key].facts or Facts.of(self[key]) for key in kept}
                self._write_shard(rows, (self._read(self._where[key]) for key in kept))
            for name in names:
                self._remove(name)
            self._scan()  # the same trees may lie elsewhere, where a merge was killed

    def _in(self, name: str, key: Key) -> bool:
        return self._where[key].name == name

    def _write_shard(self, rows: Mapping[Key, Facts], records: Iterable[bytes]) -> None:
        if self._number is None:  # looked up once: a folder may hold very many
            own = self.directory.glob(f'shard-{self._writer}-*{SUFFIX}')
            numbers = (int(path.stem.split('-')[2]) for path in own)
            self._number = 1 + max(numbers, default=-1)
        shard = self.directory / f'shard-{self._writer}-{self._number:06d}{SUFFIX}'
        _write_keys(shard, rows, self._tag)
        self._write(shard, records)
        self._number += 1
        self._stored(shard.name, rows)

    def _stored(self, name: str, rows: Mapping[Key, Facts]) -> None:
        for position, (key, facts) in enumerate(rows.items()):
            self._where[key] = _Place(name, position, facts)
        if len(rows) < self.shard_trees:
            self._small[name] = list(rows)

    def _write(self, path: pathlib.Path, records: Iterable[bytes]) -> None:
        with atomic.replacing(path, self._tag) as temporary, files.RecordWriter(temporary) as out:
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
            data = self._read(self._where[key])
        except FileNotFoundError:  # merged by its writer since this store was opened
            self._scan()
            data = self._read(self._where[key])
        return Record.from_bytes(data)

    def __iter__(self) -> Iterator[Record]:
        for key in sorted(self.keys()):
            yield self[key]

    def unordered(self, keys: Iterable[Key] | None = None) -> Iterator[Record]:
        """The trees, or those of `keys`, as they lie in the files: each of these is opened once."""
        keys = self.keys() if keys is None else keys
        for key in sorted(keys, key=lambda key: self._where.get(key, ('', 0))[:2]):
            yield self[key]

    def facts(self) -> Iterator[tuple[Key, Facts]]:
        """What is known of each tree, in no order.

        Few are read for it: parts that were there on opening.
        """
        unknown = []
        for key, place in self._where.items():
            if place.facts is None:
                unknown.append(key)
            else:
                yield key, place.facts
        for record in self.unordered([*unknown, *self._waiting]):
            yield record.key, Facts.of(record)

    def refresh(self) -> None:
        """Writes what waits, and looks for what other processes have stored since."""
        self.flush()
        self._scan()

    def meet(self) -> None:
        """Waits for all processes of the job; then each knows of the trees that others have found.

        By them it is decided what is left to search, and told what came of it: what they see has to
        be the same, and a shared disk may tell late of files that others have made.

        Raises:
          UserError: it is not the same after a minute.
        """
        self.flush()
        self.merge()
        hosts.barrier('searched')

        def look() -> list[Key]:
            self.refresh()
            return sorted(self.keys())

        if not hosts.alike_soon(look):
            raise UserError(
                f'{self.directory}: after {STALE_SECONDS:g} s the processes still see different '
                'trees: put --workdir on a disk that all of them share, and start the same command '
                'again'
            )

    def close(self) -> None:
        """Writes what waits, closes open files and lets others write. The store stays usable.

        What this process has written is merged.
        """
        self.flush()
        if self._lock is not None:
            self.merge()
        while self._readers:
            self._forget_reader(next(iter(self._readers)))
        self._release_lock()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _tag(self) -> str:
        return f'{self._writer}-'

    def _scan(self) -> None:
        """Finds out which trees are stored where; anew where files are merged meanwhile."""
        end = time.monotonic() + STALE_SECONDS
        while True:
            try:
                return self._look()
            except FileNotFoundError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _look(self) -> None:
        """A tree found twice counts in a shard, the latest of its writer."""
        found: dict[Key, _Place] = {}
        small, parts = {}, []
        paths = sorted(self.directory.glob('*' + SUFFIX), key=_latest_first)
        self._rows = self._rows_by_name([path for path in paths if not _PART.match(path.stem)])
        for path in paths:
            match = _PART.match(path.stem)
            if match:
                keys = [(int(match[1]), int(match[2]))]
                parts.append((keys[0], path.name))
            else:
                rows = self._rows[path.name]
                keys = list(rows)
                for key, place in rows.items():
                    found.setdefault(key, place)
            if path.name.split('-')[1:2] == [str(self._writer)] and len(keys) < self.shard_trees:
                small[path.name] = keys
        for key, name in parts:
            found.setdefault(key, _Place(name, 0, None))
        self._where, self._small = found, small

    def _rows_by_name(self, shards: Sequence[pathlib.Path]) -> dict[str, Rows]:
        """Reads those that were not there before."""
        new = [path for path in shards if path.name not in self._rows]
        with concurrent.futures.ThreadPoolExecutor(READING) as pool:
            known = self._rows | {
                path.name: rows for path, rows in zip(new, pool.map(self._rows_of, new))
            }
        return {path.name: known[path.name] for path in shards}

    def _rows_of(self, shard: pathlib.Path) -> Rows:
        """Where each of its records is, with facts where it is known what it holds."""
        path, name = shard.with_suffix('.keys'), shard.name
        if path.exists():
            rows = enumerate(json.loads(path.read_text(encoding='utf-8')))
            return {
                (i, tree): _Place(name, position, Facts(*facts))
                for position, (i, tree, *facts) in rows
            }
        reader = files.RecordReader(shard)
        records = map(Record.from_bytes, reader)
        rows = {record.key: Facts.of(record) for record in records}
        reader.close()
        if self._lock is not None:
            _write_keys(shard, rows, self._tag)
        return {key: _Place(name, n, facts) for n, (key, facts) in enumerate(rows.items())}

    def _sweep(self) -> None:
        """Removes what a killed process of this writer left half done."""
        for path in self.directory.glob(f'{atomic.TEMPORARY}{self._tag}*'):
            path.unlink(missing_ok=True)
        for path in self.directory.glob(f'shard-{self._writer}-*.keys'):
            if not path.with_suffix(SUFFIX).exists():
                path.unlink(missing_ok=True)

    def _remove_merged(self) -> None:
        """Removes the small files of which every tree is in a later shard."""
        for name, keys in list(self._small.items()):
            if not any(self._in(name, key) for key in keys):
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._small.pop(name, None)
        self._forget_reader(name)
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.with_suffix('.keys').unlink(missing_ok=True)

    def _read(self, place: _Place) -> bytes:
        name, position, _ = place
        if name not in self._readers:
            while len(self._readers) >= _open_readers():
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
            if not atomic.lock(lock):
                lock.close()
                return False
            self._lock = lock
        return True

    def _must_lock(self) -> None:
        assert self._writer is not None, 'this store only reads'
        if not self._take_lock():
            raise Later(
                f'{self.directory}: another process is writing trees here; wait for it to end, '
                'or choose another workdir'
            )

    def _release_lock(self) -> None:
        self._number = None
        if self._lock is not None:
            atomic.unlock(self._lock)
            self._lock = None


def _latest_first(path: pathlib.Path) -> tuple[str, int]:
    """Sorts shards: writer by writer, and of each the latest first."""
    match = re.fullmatch(r'shard-(\d+)-(\d+)', path.stem)
    return (match[1], -int(match[2])) if match else (path.stem, 0)


def _open_readers() -> int:
    """Files that a store holds open: what the system allows, with room for other stores' files."""
    least, most = OPEN_READERS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if allowed == resource.RLIM_INFINITY else min(most, max(least, allowed // 8))


def _write_keys(shard: pathlib.Path, rows: Mapping[Key, Facts], tag: str) -> None:
    told = [[*key, *facts] for key, facts in rows.items()]
    with atomic.replacing(shard.with_suffix('.keys'), tag) as temporary:
        temporary.write_text(json.dumps(told), encoding='utf-8')
