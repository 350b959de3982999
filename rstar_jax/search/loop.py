"""The search loop: trees that wait in, finished trees out.

    queue -> rows (trees in flight) -> expander: candidates of each tree's cursor
        -> programs run, answers graded (worker processes, while the device decodes on)
        -> PPM scores -> forest: the trees grow and walk on, on the device
        -> next cursor, or a finished Record

`nodes` has the trees' texts, `children` what becomes of candidates; which node comes next is
decided on the device.
"""

import collections
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

import jax

from rstar_jax.data.record import Record, Status
from rstar_jax.search import snapshots as snapshots_lib
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.children import Judge, announce
from rstar_jax.search.expander import Expander
from rstar_jax.search.forest import Forest
from rstar_jax.search.nodes import HostTree, Node
from rstar_jax.search.share import Queue
from rstar_jax.search.snapshots import Snapshots


class Loop:
    """Which tree is in which row, and what it waits for."""

    def __init__(
        self,
        queue: Queue,
        make: Callable[..., HostTree],
        expander: Expander,
        judge: Judge,
        snapshots: Snapshots | None = None,
    ):
        """Args:
        queue: of Items; make: turns one into a HostTree.
        expander: writes candidates; judge: what becomes of them.
        snapshots: keeps trees in flight.
        """
        self.queue, self.make, self.totals = queue, make, queue.totals
        self.expander, self.judge, self.config = expander, judge, judge.config
        self.snapshots = snapshots
        self.forest = Forest(expander, judge.config)
        self.growing: dict[int, HostTree] = {}
        self.crowded = 0  # trees that have ended whose prompts leave no room for a step
        self.chunks: collections.deque[Any] = collections.deque()  # under way, the oldest first
        # What `grow` has asked for and `walk_on` reads; what `walk_on` ended and `finish` reads.
        self.grown: tuple | None = None
        self.finished: list[tuple[HostTree, trees_lib.Tree]] = []
        # The next one is the last; all devices get a tree before one gets two.
        self.free = sorted(range(expander.rows), key=lambda row: row % expander.width)[::-1]

    def run(self) -> Iterator[Record]:
        """Searches; yields finished trees.

        Where there is plenty of work a chunk is sent ahead: the devices have it while the host
        looks at the one before. What the trees do next is computed behind that chunk, so it is
        asked for in one turn and read in the next.
        """
        try:
            while self.queue.more(len(self.free)):
                yield from self.turn()
                if self.snapshots is not None and self.snapshots.due():
                    self.keep()
        finally:
            if self.snapshots is not None and (self.growing or self.finished):  # stopped before
                with contextlib.suppress(RuntimeError):  # in a call that had the arrays donated
                    self.keep()
        self.tell(final=True)
        if self.crowded:
            announce(
                f'search: in {self.crowded} of {self.totals.done} trees the prompt leaves no room '
                f'for a step in path_tokens={self.config.path_tokens}{self.expander.room}: raise it'
            )

    def turn(self) -> Iterator[Record]:
        """One look at a chunk, and what follows from it."""
        self.fill()
        self.expander.left = len(self.growing) if self.queue.ending else math.inf
        while len(self.chunks) < 1 + self.expander.plenty:
            self.chunks.append(self.expander.dispatch())
        chunk = self.chunks.popleft()
        for step in self.expander.collect(chunk):
            self.judge.begin(self.growing[step.row], step)
        yield from self.finish()
        walked = self.walk_on()
        ready = [row for row, tree in self.growing.items() if self.judge.ready(tree)]
        if ready:
            self.grow(ready)
            if not self.chunks:
                self.walk_on()
        elif chunk is None and not walked:
            self.await_workers()
        self.tell()

    def tell(self, final: bool = False) -> None:
        """Has the totals told, where it is time."""
        self.totals.look(self.growing.values(), self.config, self.queue.ending, final)

    def fill(self) -> None:
        """Puts waiting problems into free rows."""
        starting = []
        while self.free and (item := self.queue.next()):
            row = self.free.pop()
            self.growing[row] = tree = self.make(*item)
            tree.started = time.monotonic()
            tree.tokens_left = self.queue.budget.left(tree.problem)
            starting.append(row)
        if starting:
            self.forest.begin(starting)
        for row in starting:
            path = self._resumed(row)
            if not path:
                self._end(row)
                continue
            self.expander.start(row, self.growing[row])
            self._ask(row, path)

    def _resumed(self, row: int) -> list[int]:
        """Path to the cursor of a tree that begins: its root, or as far as it has been kept.

        Empty for one that had ended.
        """
        tree, found = self.growing[row], None
        if self.snapshots is not None and (data := self.snapshots.find(tree.key)) is not None:
            found = snapshots_lib.unpack(data, tree, self.config.nodes)
        if found is None:
            return [trees_lib.ROOT]
        arrays, path = found
        self.forest.put(row, arrays)
        return [] if arrays.finished else path

    def keep(self) -> None:
        """Keeps every tree that has begun to grow, and is in one piece, and those that ended."""
        self.walk_on()  # what they are to do next is part of them
        packed = {}
        growing = ((tree, self.forest.tree(row)) for row, tree in self.growing.items())
        for tree, arrays in itertools.chain(growing, self.finished):
            arrays = jax.device_get(arrays)
            if 1 < len(tree.nodes) == int(arrays.size):
                packed[tree.key] = snapshots_lib.pack(tree, arrays)
        self.snapshots.keep(packed)

    def await_workers(self) -> None:
        """Waits for some program or grade."""
        nodes = [node for tree in self.growing.values() for node in tree.candidates]
        if work := [future for node in nodes if node is not None for future in node.work]:
            wait(work, timeout=1.0, return_when=FIRST_COMPLETED)

    def grow(self, ready: list[int]) -> None:
        """Has the children of the ready trees' cursors added, and each tree walk on."""
        born = {row: self.judge.children(self.growing[row]) for row in ready}
        self.judge.look_for_marks([(self.growing[row], born[row]) for row in ready])
        ends = self.queue.budget.ends
        last = {row for row, children in born.items() if ends(self.growing[row], children)}
        look = self.forest.grow(born, last, self._scores(born))
        for row, children in born.items():
            self.growing[row].add(children)
        self.grown = ready, look

    def _scores(self, born: dict[int, list[Node]]):
        """The PPM's, of children that can be walked into, and of answers where it decides."""
        wanted = [
            (row, number, node)
            for row, children in born.items()
            for number, node in enumerate(children)
            if node.is_open or (node.status == Status.ANSWER and not self.config.use_ground_truth)
        ]
        if not wanted or self.expander.scores is None:
            return []
        for row, _, node in wanted:
            self.growing[row].computed['ppm'] += len(node.tokens)
        return self.expander.scores(wanted)

    def walk_on(self) -> bool:
        """Reads where the trees that were grown are now, and asks for the next candidates."""
        if self.grown is None:
            return False
        rows, look = self.grown
        paths, finished, rollouts = jax.device_get(look)  # a stop comes while it waits here
        self.grown = None
        for row in rows:
            self.growing[row].rollouts = int(rollouts[row])
            if finished[row] or self.queue.unwanted(self.growing[row]):
                self._end(row)
            else:
                self._ask(row, [int(node) for node in paths[row] if node >= 0])
        return True

    def _ask(self, row: int, path: list[int]) -> None:
        """Asks for the candidates of a tree's cursor."""
        tree = self.growing[row]
        tree.path = path
        if tree.path_tokens > self.config.path_tokens:  # a prompt: the tree ends at its root
            tree.candidates = []
            return
        tree.candidates = [None] * self.config.candidates
        self.expander.expand(row, tree)

    def _end(self, row: int) -> None:
        """Sets a tree that has ended aside, and frees its row."""
        arrays = self.forest.tree(row)
        tree = self.growing.pop(row)
        tree.candidates = []
        self.finished.append((tree, arrays))
        self.free.append(row)

    def finish(self) -> Iterator[Record]:
        """The records of the trees that have ended."""
        while self.finished:
            tree, arrays = self.finished.pop(0)
            record = tree.record(jax.device_get(arrays))
            self.totals.finished(record)
            self.crowded += not tree.sampled and not any(record.texts[1:])
            self.queue.ended(record)
            yield record
