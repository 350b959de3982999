"""Finished search trees on disk: appended as they finish, never half written, never read twice.

    Records --append--> in memory, a second at most --> small files --merge--> shards (shards.py)

Files are made once a second at most: where small trees end by the dozen, making, flushing and
deleting a file for each takes longer than the search. Where small files hold enough trees, and as
the store is closed, they are merged: the shard takes its final name before the first of them goes,
so a crash leaves at most both, and then the writer's latest shard counts, and what is in it is
removed on the next open.
"""

import contextlib
import itertools
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Set
from typing import IO

from rstar_jax.data.record import Record
from rstar_jax.data.shards import Facts, Key, Shards
from rstar_jax.job import atomic, hosts
from rstar_jax.job.atomic import STALE_SECONDS
from rstar_jax.settings.errors import Later, UserError


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
        self._writer = writer
        self._lock: IO[str] | None = None
        self._shards = Shards(self.directory, writer, shard_trees)
        if writer is None:
            self._scan()
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        # Without the lock another process is at work here: its files in the making are not litter.
        if self._take_lock():
            self._shards.sweep()
            self._scan()
            self._shards.remove_merged()
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
        if len(rows) == 1:
            ((key, facts),) = rows.items()
            self._shards.write_tree(key, facts, self._waiting[key].to_bytes())
        elif rows:
            self._shards.write_shard(rows, (self._waiting[key].to_bytes() for key in rows))
        self._waiting.clear()
        self._written = time.monotonic()
        if sum(map(len, self._shards.small.values())) >= self.shard_trees:
            self.merge()

    def merge(self) -> None:
        """Merges this writer's small files into a shard that need not grow any more.

        What is enough for a shard is taken at a time. Safe to be killed in.
        """
        small = self._shards.small
        if len(small) < 2 or not self._take_lock():
            return
        sizes = itertools.accumulate(map(len, small.values()), initial=0)
        names = [name for name, before in zip(small, sizes) if before < self.shard_trees]
        if keys := sorted(key for name in names for key in self._shards.latest(name)):
            self._shards.rewrite(keys)
        for name in names:
            self._shards.remove(name)

    def discard(self, keys: Set[Key]) -> None:
        """Removes trees, whoever wrote them; no other process may be at work here.

        Safe to be killed in: some of them may be there still, all others are.

        Raises:
          UserError: as `append`.
        """
        self.flush()
        while gone := keys & self._shards.where.keys():
            self._must_lock()
            where = self._shards.where
            names = {where[key].name for key in gone}
            kept = sorted(k for k, place in where.items() if place.name in names and k not in gone)
            if kept:
                self._shards.rewrite(kept)
            for name in names:
                self._shards.remove(name)
            self._scan()  # the same trees may lie elsewhere, where a merge was killed

    def keys(self) -> set[Key]:
        """Returns (problem index, tree number) of every stored tree."""
        return self._shards.where.keys() | self._waiting.keys()

    def __len__(self) -> int:
        return len(self._shards.where) + len(self._waiting)

    def __contains__(self, key: object) -> bool:
        return key in self._shards.where or key in self._waiting

    def __getitem__(self, key: Key) -> Record:
        """Reads one tree; KeyError when it is not stored."""
        if key in self._waiting:
            return self._waiting[key]
        try:
            return self._shards.record(key)
        except FileNotFoundError:  # merged by its writer since this store was opened
            self._scan()
            return self._shards.record(key)

    def __iter__(self) -> Iterator[Record]:
        for key in sorted(self.keys()):
            yield self[key]

    def unordered(self, keys: Iterable[Key] | None = None) -> Iterator[Record]:
        """The trees, or those of `keys`, as they lie in the files: each of these is opened once."""
        keys = self.keys() if keys is None else keys
        for key in sorted(keys, key=lambda key: self._shards.where.get(key, ('', 0))[:2]):
            yield self[key]

    def facts(self) -> Iterator[tuple[Key, Facts]]:
        """What is known of each tree, in no order.

        Few are read for it: parts that were there on opening.
        """
        unknown = []
        for key, place in self._shards.where.items():
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
                str(self.directory),
                expected=f'after {STALE_SECONDS:g} s the processes still see different trees',
                remedy='put it on a disk that all of them share, and start the same command again',
            )

    def close(self) -> None:
        """Writes what waits, closes open files and lets others write. The store stays usable.

        What this process has written is merged.
        """
        self.flush()
        if self._lock is not None:
            self.merge()
        self._shards.close()
        self._release_lock()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self) -> None:
        self._shards.scan(mend=self._lock is not None)

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
                str(self.directory),
                expected='another process is writing trees here',
                remedy='wait for it to end, or choose another workdir',
            )

    def _release_lock(self) -> None:
        if self._lock is not None:
            atomic.unlock(self._lock)
            self._lock = None
