"""The files of a folder of trees: which tree lies where, in files that never change.

    tree-W-INDEX-TREE.array_record   one tree, as soon as it has finished (W: the writing process)
    shard-W-NUMBER.array_record      several trees: of one second, or merged out of smaller files
    shard-W-NUMBER.keys              [index, tree, *Facts] of each of them

Names of parts and `.keys` files tell what is stored without reading it; a lost `.keys` file is made
again from its shard.
"""

import collections
import concurrent.futures
import json
import pathlib
import re
import resource
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rstar_jax.data import files
from rstar_jax.data.record import Record
from rstar_jax.job import atomic
from rstar_jax.job.atomic import STALE_SECONDS
from rstar_jax.settings.errors import UserError

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


class Place(NamedTuple):
    """Where a tree is stored; facts are None where they are not known."""

    name: str
    position: int
    facts: Facts | None


Rows = dict[Key, Place]


class Shards:
    """A folder's files, as one process sees them.

    Attributes:
      where: each tree's place.
      small: this writer's files that are to be merged, and the trees that they were made of.
    """

    def __init__(self, directory: pathlib.Path, writer: int | None, shard_trees: int):
        """shard_trees: how many trees a file holds that is not merged any more."""
        self.where: dict[Key, Place] = {}
        self.small: dict[str, list[Key]] = {}
        self._directory, self._writer, self._shard_trees = directory, writer, shard_trees
        self._number: int | None = None  # of the next shard, while this process may write
        self._rows: dict[str, Rows] = {}  # of each shard; one never changes
        self._readers: collections.OrderedDict[str, files.RecordReader] = collections.OrderedDict()

    def scan(self, mend: bool = False) -> None:
        """Finds out which trees are stored where; anew where files are merged meanwhile.

        mend: writes lost `.keys` files again.
        """
        end = time.monotonic() + STALE_SECONDS
        while True:
            try:
                return self._look(mend)
            except FileNotFoundError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _look(self, mend: bool) -> None:
        """A tree found twice counts in a shard, the latest of its writer."""
        found: dict[Key, Place] = {}
        small, parts = {}, []
        paths = sorted(self._directory.glob('*' + SUFFIX), key=_latest_first)
        self._rows = self._rows_by_name(
            [path for path in paths if not _PART.match(path.stem)], mend
        )
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
            if path.name.split('-')[1:2] == [str(self._writer)] and len(keys) < self._shard_trees:
                small[path.name] = keys
        for key, name in parts:
            found.setdefault(key, Place(name, 0, None))
        self.where, self.small = found, small

    def _rows_by_name(self, shards: Sequence[pathlib.Path], mend: bool) -> dict[str, Rows]:
        """Reads those that were not there before."""
        new = [path for path in shards if path.name not in self._rows]
        with concurrent.futures.ThreadPoolExecutor(READING) as pool:
            known = self._rows | {
                path.name: rows
                for path, rows in zip(new, pool.map(lambda path: self.rows_of(path, mend), new))
            }
        return {path.name: known[path.name] for path in shards}

    def rows_of(self, shard: pathlib.Path, mend: bool) -> Rows:
        """Where each of its records is, with facts where it is known what it holds."""
        path, name = shard.with_suffix('.keys'), shard.name
        if path.exists():
            rows = enumerate(json.loads(path.read_text(encoding='utf-8')))
            return {
                (i, tree): Place(name, position, Facts(*facts))
                for position, (i, tree, *facts) in rows
            }
        reader = files.RecordReader(shard)
        records = map(Record.from_bytes, reader)
        rows = {record.key: Facts.of(record) for record in records}
        reader.close()
        if mend:
            self._write_keys(shard, rows)
        return {key: Place(name, n, facts) for n, (key, facts) in enumerate(rows.items())}

    def read(self, key: Key) -> bytes:
        """A tree; FileNotFoundError where it was merged since its place was looked up."""
        name, position, _ = self.where[key]
        if name not in self._readers:
            while len(self._readers) >= open_readers():
                self._forget_reader(next(iter(self._readers)))
            self._readers[name] = files.RecordReader(self._directory / name)
        self._readers.move_to_end(name)
        reader = self._readers[name]
        if position >= len(reader):
            expected = f'holds {len(reader)} trees, fewer than its .keys file says'
            raise UserError(str(reader.path), expected=expected, remedy='delete the .keys file')
        return reader[position]

    def rewrite(self, keys: Sequence[Key]) -> None:
        """The trees once more, in a shard of their own."""
        rows = {key: self.where[key].facts or Facts.of(self.record(key)) for key in keys}
        self.write_shard(rows, (self.read(key) for key in keys))

    def record(self, key: Key) -> Record:
        """As `read`."""
        return Record.from_bytes(self.read(key))

    def write_tree(self, key: Key, facts: Facts, record: bytes) -> None:
        """One tree, in a file of its own."""
        path = self._directory / f'tree-{self._writer}-{key[0]}-{key[1]}{SUFFIX}'
        self._write(path, [record])
        self._stored(path.name, {key: facts})

    def write_shard(self, rows: Mapping[Key, Facts], records: Iterable[bytes]) -> None:
        """Several trees, as the writer's latest shard."""
        if self._number is None:  # looked up once: a folder may hold very many
            own = self._directory.glob(f'shard-{self._writer}-*{SUFFIX}')
            numbers = (int(path.stem.split('-')[2]) for path in own)
            self._number = 1 + max(numbers, default=-1)
        shard = self._directory / f'shard-{self._writer}-{self._number:06d}{SUFFIX}'
        self._write_keys(shard, rows)
        self._write(shard, records)
        self._number += 1
        self._stored(shard.name, rows)

    def _stored(self, name: str, rows: Mapping[Key, Facts]) -> None:
        for position, (key, facts) in enumerate(rows.items()):
            self.where[key] = Place(name, position, facts)
        if len(rows) < self._shard_trees:
            self.small[name] = list(rows)

    def _write(self, path: pathlib.Path, records: Iterable[bytes]) -> None:
        with atomic.replacing(path, self._tag) as temporary, files.RecordWriter(temporary) as out:
            for record in records:
                out.write(record)

    def remove(self, name: str) -> None:
        """A file of trees that are all elsewhere, or not wanted."""
        self.small.pop(name, None)
        self._forget_reader(name)
        path = self._directory / name
        path.unlink(missing_ok=True)
        path.with_suffix('.keys').unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what a killed process of this writer left half done."""
        for path in self._directory.glob(f'{atomic.TEMPORARY}{self._tag}*'):
            path.unlink(missing_ok=True)
        for path in self._directory.glob(f'shard-{self._writer}-*.keys'):
            if not path.with_suffix(SUFFIX).exists():
                path.unlink(missing_ok=True)

    def remove_merged(self) -> None:
        """Removes the small files of which every tree is in a later shard."""
        for name in list(self.small):
            if not self.latest(name):
                self.remove(name)

    def latest(self, name: str) -> list[Key]:
        """The trees of a small file that lie nowhere else."""
        return [key for key in self.small[name] if self.where[key].name == name]

    def close(self) -> None:
        """Closes open files; another process may write now."""
        self._number = None
        while self._readers:
            self._forget_reader(next(iter(self._readers)))

    @property
    def _tag(self) -> str:
        return f'{self._writer}-'

    def _write_keys(self, shard: pathlib.Path, rows: Mapping[Key, Facts]) -> None:
        told = [[*key, *facts] for key, facts in rows.items()]
        with atomic.replacing(shard.with_suffix('.keys'), self._tag) as temporary:
            temporary.write_text(json.dumps(told), encoding='utf-8')

    def _forget_reader(self, name: str) -> None:
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.close()


def _latest_first(path: pathlib.Path) -> tuple[str, int]:
    """Sorts shards: writer by writer, and of each the latest first."""
    match = re.fullmatch(r'shard-(\d+)-(\d+)', path.stem)
    return (match[1], -int(match[2])) if match else (path.stem, 0)


def open_readers() -> int:
    """Files that a store holds open: what the system allows, with room for other stores' files."""
    least, most = OPEN_READERS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if allowed == resource.RLIM_INFINITY else min(most, max(least, allowed // 8))
