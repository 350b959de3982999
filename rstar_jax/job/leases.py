"""Work dealt in leases: a few trees at a time, so that nobody waits long for the slowest.

static    lease k goes to process k modulo their number: no service, nothing to go wrong
counter   each process takes the next lease when it has room (`hosts.take`)
Table     workers come and go: what a lost one had is dealt again (`elastic`)
"""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax

from rstar_jax.job import hosts

T = TypeVar('T')

STATIC, COUNTER = 'static', 'counter'
MOST = 16  # items of a lease
EACH = 16  # leases of this size that each process could still get


def size_of(left: int, processes: int) -> int:
    """Items of the next lease: small against what each process still has to do."""
    return max(1, min(MOST, left // (EACH * processes)))


@functools.cache
def bounds(items: int, processes: int) -> tuple[int, ...]:
    """Where leases begin, and where the last ends: towards the end they are ever smaller."""
    starts = [0]
    while starts[-1] < items:
        starts.append(starts[-1] + size_of(items - starts[-1], processes))
    return tuple(starts)


def dealt(items: Sequence[T], name: str, how: str = COUNTER) -> Iterator[list[T]]:
    """The leases of this process, each as it is asked for; all in one where it is alone.

    name: of this piece of work, the same on all processes and of no other piece in a run.
    how: STATIC or COUNTER.
    """
    count, number = jax.process_count(), jax.process_index()
    if count == 1:
        yield list(items)
        return
    starts = bounds(len(items), count)
    for step in itertools.count():
        taken = None if how == STATIC else hosts.take(name)
        lease = number + step * count if taken is None else taken
        if lease >= len(starts) - 1:
            return
        yield list(items[starts[lease] : starts[lease + 1]])


@dataclasses.dataclass
class _Worker:
    held: dict[Hashable, None] = dataclasses.field(default_factory=dict)  # in order of dealing
    heard: float = 0.0


class Table:
    """Who has which items: each is done once, whatever workers come, go or are cut off.

    A worker that is gone, or has been silent for too long (`silent`), is lost (`lose`): what it
    holds is dealt again, before what was never dealt. What it brings afterwards counts all the
    same, where nobody else has brought it.

    Args:
      items: hashable.
      silent: seconds without a sign of life after which a worker is lost.
    """

    def __init__(self, items: Iterable[Hashable], silent: float = 60.0):
        self._waiting = collections.deque(items)
        self._left = set(self._waiting)
        self._workers: dict[Hashable, _Worker] = {}
        self._patience = silent

    @property
    def left(self) -> int:
        """Items that nobody has brought yet."""
        return len(self._left)

    def __contains__(self, item: object) -> bool:
        """Whether nobody has brought the item yet."""
        return item in self._left

    @property
    def workers(self) -> int:
        """Workers that have been heard of and are not lost."""
        return len(self._workers)

    def take(self, worker: Hashable, room: int) -> list[Hashable]:
        """Deals the worker up to `room` more items."""
        held = self.heard(worker).held
        lease = []
        while self._waiting and len(lease) < room:
            item = self._waiting.popleft()
            if item in self._left:  # else one taken for lost has brought it after all
                lease.append(item)
                held[item] = None
        return lease

    def heard(self, worker: Hashable) -> _Worker:
        """Notes a sign of life."""
        found = self._workers.setdefault(worker, _Worker())
        found.heard = time.monotonic()
        return found

    def bring(self, worker: Hashable, item: Hashable) -> bool:
        """Notes that an item is done; False where it was done before, and is not to be stored."""
        self.heard(worker).held.pop(item, None)
        if item not in self._left:
            return False
        self._left.remove(item)
        return True

    def lose(self, worker: Hashable) -> list[Hashable]:
        """Takes back what the worker holds, and nobody has brought; returns it."""
        held = self._workers.pop(worker, _Worker()).held
        items = [item for item in held if item in self._left]
        self._waiting.extendleft(reversed(items))
        return items

    def silent(self) -> list[Hashable]:
        """The workers that have been silent for too long; they are lost when `lose` says so."""
        now = time.monotonic()
        return [w for w, x in self._workers.items() if now - x.heard > self._patience]
