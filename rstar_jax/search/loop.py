"""The search loop: problems in, finished trees out.

    problems -> rows (trees in flight) -> expander: candidates of each tree's cursor
        -> programs run, answers graded (worker processes, while the device decodes on)
        -> PPM scores -> tree.advance on the device -> next cursor, or a finished Record

`host` has the trees' texts, `children` what becomes of candidates; which node comes next is decided
on the device.
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
import numpy as np

from rstar_jax import steps
from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record, Status
from rstar_jax.search import flight
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.children import Judge, Workers, announce
from rstar_jax.search.config import Config
from rstar_jax.search.engine import devices, programs
from rstar_jax.search.expander import Expander
from rstar_jax.search.host import HostTree, Node
from rstar_jax.search.spending import Spending
from rstar_jax.search.totals import Totals
from rstar_jax.settings.errors import UserError
from rstar_jax.steps import marks

Item = tuple[Problem, int]  # a problem and the number of its tree

# After so many candidates without a single mark and no tree beyond its root, a search ends.
MARKLESS = 32
NEARLY = 0.9  # of a tree is done at most while it grows, where its end is not known
MARKS = (marks.STEP, marks.CODE, marks.ANSWER)


class Loop:
    """The loop's state: which tree is in which row, and the trees' arrays on the devices."""

    def __init__(
        self,
        leases: Iterator[list[Item]],
        make: Callable[..., HostTree],
        expander: Expander,
        config: Config,
        workers: Workers,
        totals: Totals,
        flights: flight.Flights | None = None,
    ):
        """Args:
        make: turns an Item into a HostTree.
        leases, expander, config, workers, flights: as for `begin.run`.
        totals: are told.
        """
        self.expander, self.config = expander, config
        self.leases: Iterator[list[Item]] | None = leases
        self.judge = Judge(config, workers, expander)
        self.totals, self.flights = totals, flights
        self.spending = Spending(config, workers.grader.classes)
        self.make = make
        # Trees that grow one after another, in order those of a problem; what is next is the last.
        self.queue: list[list[Item]] = []
        self.behind: dict[int, list[Item]] = {}  # a problem in flight -> what follows that tree
        self.growing: dict[int, HostTree] = {}
        self.crowded = 0  # trees that have ended whose prompts leave no room for a step
        self.chunks: collections.deque[Any] = collections.deque()  # under way, the oldest first
        # What `grow` has asked for and `walk_on` reads; what `walk_on` ended and `finish` reads.
        self.grown: tuple | None = None
        self.finished: list[tuple[HostTree, trees_lib.Tree]] = []
        self.markless: list[str] | None = []
        # The next one is the last; all devices get a tree before one gets two.
        self.free = sorted(range(expander.rows), key=lambda row: row % expander.width)[::-1]
        self.rules = trees_lib.Rules.of(config)
        mesh = expander.mesh
        self.arrays = devices.make(mesh, trees_lib.init, expander.width, config.nodes)
        self.reset = programs.RESET(mesh)
        self.advance = programs.ADVANCE(
            mesh, longest=config.max_depth + 2, strategy=config.strategy
        )

    def run(self) -> Iterator[Record]:
        """Searches; yields finished trees.

        Where there is plenty of work a chunk is sent ahead: the devices have it while the host
        looks at the one before. What the trees do next is computed behind that chunk, so it is
        asked for in one turn and read in the next.
        """
        try:
            while self.more():
                yield from self.turn()
                if self.flights is not None and self.flights.due():
                    self.keep_flights()
        finally:
            if self.flights is not None and (self.growing or self.finished):  # stopped before
                with contextlib.suppress(RuntimeError):  # in a call that had the arrays donated
                    self.keep_flights()
        self.tell(final=True)
        if self.crowded:
            announce(
                f'search: in {self.crowded} of {self.totals.done} trees the prompt leaves no room '
                f'for a step in path_tokens={self.config.path_tokens}{self.expander.room}: raise it'
            )

    def turn(self) -> Iterator[Record]:
        """One look at a chunk, and what follows from it."""
        self.fill()
        self.expander.left = len(self.growing) if self._ending else math.inf
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

    def more(self) -> bool:
        """Takes more leases where there is room; False when all is done."""
        while self.leases is not None and len(self.queue) < len(self.free):
            lease = next(self.leases, None)
            if lease is None:
                self.leases = None
            elif not lease:
                break
            else:
                self.line_up(lease)
        return bool(self.leases is not None or self.queue or self.growing or self.finished)

    def line_up(self, items: list[Item]) -> None:
        """Has trees wait for a row; in order, each for the one before it of its problem, too."""
        lines: dict[int, list[Item]] = {}
        for place, item in enumerate(items):
            lines.setdefault(item[0].index if self.config.in_order else place, []).append(item)
        self.queue = [*reversed(lines.values()), *self.queue]

    def tell(self, final: bool = False) -> None:
        most, growing = self.config.rollouts, self.growing.values()
        # Of a first rollout nobody knows how far it has come: it has as much to come as it had.
        last = [(tree.sampled, max(tree.rollouts, 0.5) / most) for tree in growing]
        under_way, one_each = sum(tree.rollouts for tree in growing) / most, len(growing) / most
        if self.config.by_level:  # without rollouts: by the tokens of the trees that have ended
            usual, one_each = self.totals.usual_tokens, len(growing)
            sampled = [max(tree.sampled, 1) for tree in growing] if usual else ()
            last = [(count, min(count / usual, NEARLY)) for count in sampled]
            under_way = sum(share for _, share in last)
        self.totals.tick(under_way, final, last if self._ending else (), one_each)

    @property
    def _ending(self) -> bool:
        """Whether no tree is left to begin."""
        return self.leases is None and not self.queue and not any(self.behind.values())

    def fill(self) -> None:
        """Puts waiting problems into free rows."""
        fresh = np.zeros(self.expander.rows, bool)
        starting = []
        while self.free and (line := self._next()):
            row = self.free.pop()
            self.growing[row] = tree = self.make(*line[0])
            self.behind[tree.problem.index] = line[1:]
            tree.started = time.monotonic()
            tree.tokens_left = self.spending.left(tree.problem)
            fresh[row] = True
            starting.append(row)
        if starting:
            self.arrays = self.reset(self.arrays, devices.split(self.expander.mesh, fresh))
        for row in starting:
            path = self._resumed(row)
            if not path:
                self._end(row)
                continue
            self.expander.start(row, self.growing[row])
            self._ask(row, path)

    def keep_flights(self) -> None:
        """Keeps every tree that has begun to grow, and is in one piece, and those that ended."""
        self.walk_on()  # what they are to do next is part of them
        packed = {}
        growing = ((tree, programs.tree_of(self.arrays, row)) for row, tree in self.growing.items())
        for tree, arrays in itertools.chain(growing, self.finished):
            arrays = jax.device_get(arrays)
            if 1 < len(tree.nodes) == int(arrays.size):
                packed[tree.key] = flight.pack(tree, arrays)
        self.flights.keep(packed)

    def _resumed(self, row: int) -> list[int]:
        """Path to the cursor of a tree that begins: its root, or as far as it has been kept.

        Empty for one that had ended.
        """
        tree, found = self.growing[row], None
        if self.flights is not None and (data := self.flights.find(tree.key)) is not None:
            found = flight.unpack(data, tree, self.config.nodes)
        if found is None:
            return [trees_lib.ROOT]
        arrays, path = found
        placed = programs.with_tree(self.arrays, row, arrays)
        self.arrays = devices.split(self.expander.mesh, placed)
        return [] if arrays.finished else path

    def _next(self) -> list[Item]:
        """What is to be searched next, and what then; nothing where nothing waits for a row."""
        while self.queue:
            line = self.queue.pop()
            if not (self.config.in_order and self.spending.done(line[0][0])):
                return line
            self.totals.total -= len(line)
        return []

    def await_workers(self) -> None:
        """Waits for some program or grade."""
        work = [
            future
            for tree in self.growing.values()
            for node in tree.candidates
            if node is not None
            for future in node.work
        ]
        if work:
            wait(work, timeout=1.0, return_when=FIRST_COMPLETED)

    def grow(self, ready: list[int]) -> None:
        """Has the children of the ready trees' cursors added, and each tree walk on."""
        born = {row: self.judge.children(self.growing[row]) for row in ready}
        self._look_for_marks(born)
        expansion = self._score(born, self._expansion(born))
        self.arrays, look = self.advance(self.arrays, expansion, self.rules)
        for row, children in born.items():
            self.growing[row].add(children)
        self.grown = ready, look

    def walk_on(self) -> bool:
        """Reads where the trees that were grown are now, and asks for the next candidates."""
        if self.grown is None:
            return False
        rows, look = self.grown
        paths, finished, rollouts = jax.device_get(look)  # a stop comes while it waits here
        self.grown = None
        for row in rows:
            self.growing[row].rollouts = int(rollouts[row])
            if finished[row] or self.unwanted(self.growing[row]):
                self._end(row)
            else:
                self._ask(row, [int(node) for node in paths[row] if node >= 0])
        return True

    def unwanted(self, tree: HostTree) -> bool:
        """Whether nobody waits for a tree any more, so that it ends as it is."""
        return False

    def _end(self, row: int) -> None:
        """Sets a tree that has ended aside, and frees its row."""
        arrays = programs.tree_of(self.arrays, row)
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
            self.spending.add(record)
            if line := self.behind.pop(tree.problem.index, None):
                self.queue.append(line)
            yield record

    def _ask(self, row: int, path: list[int]) -> None:
        tree = self.growing[row]
        tree.path = path
        if tree.path_tokens > self.config.path_tokens:  # a prompt: the tree ends at its root
            tree.candidates = []
            return
        tree.candidates = [None] * self.config.candidates
        self.expander.expand(row, tree)

    def _look_for_marks(self, born: dict[int, list[Node]]) -> None:
        """Raises UserError when the first trees all end at their root, as no mark is written."""
        if self.markless is None:
            return
        for row, children in born.items():
            candidates = self.growing[row].candidates
            if any(node.status in (Status.OPEN, Status.ANSWER) for node in children) or any(
                node.step.kind in MARKS for node in candidates
            ):
                self.markless = None
                return
            self.markless += [node.step.text or '' for node in candidates if not node.step.refused]
        if len(self.markless) >= MARKLESS:
            raise UserError(
                f'search: of the first {len(self.markless)} candidates none ends in a mark '
                f'({steps.STEP_END} and others), so every tree ends at its root; the first is '
                f'{self.markless[0][:60]!r}: use a policy that was trained on the step form, or '
                '--config.search.prompt=few_shot for another'
            )

    def _score(
        self, born: dict[int, list[Node]], expansion: trees_lib.Expansion
    ) -> trees_lib.Expansion:
        """Has the PPM score children that can be walked into, and answers where it decides."""
        wanted = [
            (row, number, node)
            for row, children in born.items()
            for number, node in enumerate(children)
            if node.is_open or (node.status == Status.ANSWER and not self.config.use_ground_truth)
        ]
        if not wanted or self.expander.scores is None:
            return expansion
        mesh = self.expander.mesh
        for row, _, node in wanted:
            self.growing[row].computed['ppm'] += len(node.tokens)
        for part in self.expander.scores(wanted):
            expansion = programs.PUT_SCORES(mesh)(expansion, *devices.split(mesh, part))
        return expansion

    def _expansion(self, born: dict[int, list[Node]]) -> trees_lib.Expansion:
        shape = (self.expander.rows, self.config.candidates)
        expansion = trees_lib.Expansion(
            active=np.zeros(shape[0], bool),
            count=np.zeros(shape[0], np.int32),
            status=np.zeros(shape, np.uint8),
            reward=np.zeros(shape, np.float32),
            score=np.full(shape, np.nan, np.float32),
            prior=np.zeros(shape, np.float32),
            last=np.zeros(shape[0], bool),
        )
        for row, children in born.items():
            expansion.active[row] = True
            expansion.count[row] = len(children)
            expansion.last[row] = self.spending.ends(self.growing[row], children)
            for i, node in enumerate(children):
                for name in ('status', 'reward', 'prior'):
                    getattr(expansion, name)[row, i] = getattr(node, name)
        return devices.split(self.expander.mesh, expansion)
