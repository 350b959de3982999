"""Which trees are searched here, and which of them is begun next.

problems, trees, Share -> leases of (problem, number of the tree) -> Queue -> free rows
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.sharding import Mesh

from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.search.budget import Budget
from rstar_jax.search.children import Workers
from rstar_jax.search.nodes import HostTree
from rstar_jax.search.snapshots import Snapshots
from rstar_jax.search.totals import Totals

Item = tuple[Problem, int]  # a problem and the number of its tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One process's part in a search that others share or that has been begun before.

    Attributes:
      skip: (problem index, tree number) of trees that are not wanted, such as those done before.
      earlier: trees done before; looked at with config.tokens and config.agree alone.
      leases: which of the trees are searched here, some at a time, each asked for when there is
        room for more; an empty one, where none is there now. All, by default. Where a problem's
        trees grow in order, one of its trees stands for all.
      total: trees to search here at most, where the problems are known by the leases alone.
      snapshots: keeps trees in flight, so that a search that was killed goes on inside of them.
        Their paths are then read in, which rounds otherwise than writing them: not with `one_size`.
      progress: called about once a second with the totals so far.
      workers: started worker processes, to be shared by several searches; started and stopped by
        the search by default.
      mesh: local mesh (data, tensor); all devices of this host by default.
    """

    skip: frozenset[tuple[int, int]] = frozenset()
    earlier: Iterable[Record] = ()
    leases: Iterable[list[Item]] | None = None
    total: int = 0
    snapshots: Snapshots | None = None
    progress: Callable[[dict[str, float]], None] | None = None
    workers: Workers | None = None
    mesh: Mesh | None = None

    def count(self, todo: list[Item]) -> int:
        """How many trees are searched here at most, where `todo` are wanted by all processes."""
        return self.total or -(-len(todo) // (1 if self.leases is None else jax.process_count()))

    def wanted(self, todo: list[Item], trees: int, in_order: bool) -> Iterator[list[Item]]:
        """The leases, without what is to be skipped; trees: of each problem."""
        for lease in [todo] if self.leases is None else self.leases:
            if in_order and self.leases is not None:
                lease = [(problem, tree) for problem, _ in lease for tree in range(trees)]
            yield [item for item in lease if (item[0].index, item[1]) not in self.skip]


ALL = Share()


def items(problems: Iterable[Problem], trees: Iterable[int]) -> list[Item]:
    """(problem, number of the tree), in the order in which they are best begun.

    The trees of long questions take longer, and what begins last should end soon: longest first.
    """
    longest = sorted(problems, key=lambda problem: -len(problem.question))
    numbers = tuple(trees)
    return [(problem, tree) for problem in longest for tree in numbers]


class Queue:
    """Trees that wait for a row; in order, each for the one before it of its problem, too."""

    def __init__(self, leases: Iterator[list[Item]], budget: Budget, totals: Totals):
        """totals: are told of trees that are not wanted any more."""
        self.budget, self.totals = budget, totals
        self.leases: Iterator[list[Item]] | None = leases
        # Trees that grow one after another, in order those of a problem; what is next is the last.
        self.lines: list[list[Item]] = []
        self.begun: collections.Counter[int] = collections.Counter()  # trees, by their problem
        self.behind: dict[int, list[Item]] = {}  # such a problem -> what follows its tree

    def more(self, room: int) -> bool:
        """Takes leases until so many trees wait; False where all have ended and none will come."""
        while self.leases is not None and len(self.lines) < room:
            lease = next(self.leases, None)
            if lease is None:
                self.leases = None
            elif not lease:
                break
            else:
                self.line_up(lease)
        return bool(self.leases is not None or self.lines or self.begun)

    def line_up(self, items: list[Item]) -> None:
        """Has trees wait."""
        lines: dict[int, list[Item]] = {}
        for place, item in enumerate(items):
            of = item[0].index if self.budget.config.in_order else place
            lines.setdefault(of, []).append(item)
        self.lines = [*reversed(lines.values()), *self.lines]

    def next(self) -> Item | None:
        """What is to be begun; None where nothing waits for a row."""
        while self.lines:
            first, *rest = self.lines.pop()
            if not self.budget.done(first[0]):
                index = first[0].index
                self.begun[index] += 1
                if rest:
                    self.behind[index] = rest
                return first
            self.totals.total -= 1 + len(rest)
        return None

    def ended(self, record: Record) -> None:
        """Has the tree that follows a finished one wait."""
        index = record.problem.index
        self.budget.add(record)
        self.begun[index] -= 1
        if not self.begun[index]:
            del self.begun[index]
        if line := self.behind.pop(index, None):
            self.lines.append(line)

    @property
    def ending(self) -> bool:
        """Whether no tree is left to begin."""
        return self.leases is None and not self.lines and not self.behind

    def unwanted(self, tree: HostTree) -> bool:
        """Whether nobody waits for a tree any more, so that it ends as it is."""
        return False
