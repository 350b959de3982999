"""The search loop: problems in, finished trees out.

    problems -> rows (trees in flight) -> expander: candidates of each tree's cursor
        -> programs run, answers graded (worker processes, while the device decodes on)
        -> PPM scores -> tree.advance on the device -> next cursor, or a finished Record

`host` has the trees' texts, `children` what becomes of candidates; which node comes next is decided
on the device.
"""

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

import jax
import numpy as np

from rstar_jax import parallel, steps
from rstar_jax.errors import UserError
from rstar_jax.search import flight
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.children import Judge, Workers, announce
from rstar_jax.search.config import Config
from rstar_jax.search.endpoint import Endpoint, Remote
from rstar_jax.search.engine import Engine, devices, programs, sampling
from rstar_jax.search.expander import Expander
from rstar_jax.search.host import HostTree, Node
from rstar_jax.search.record import Record, Status
from rstar_jax.search.spending import Spending, name_of
from rstar_jax.search.totals import Totals
from rstar_jax.steps import marks

Item = tuple[dict[str, Any], int]  # a problem and the number of its tree

QUESTIONS = ('What is 2 + 3?', 'How many primes are below 100?')  # of no common beginning
# After so many candidates without a single mark and no tree beyond its root, a search ends.
MARKLESS = 32
MARKS = (marks.STEP, marks.CODE, marks.ANSWER)


def run(
    problems: Iterable[dict[str, Any]],
    policy=None,
    ppm=None,
    *,
    config: Config,
    expander: Expander | None = None,
    seed: int = 0,
    trees: int = 1,
    skip: frozenset = frozenset(),
    earlier: Iterable[Record] = (),
    progress: Callable[[dict[str, float]], None] | None = None,
    mesh=None,
    workers: Workers | None = None,
    leases: Iterable[list[Item]] | None = None,
    flights: flight.Flights | None = None,
) -> Iterator[Record]:
    """Searches and yields each tree as it is finished, in no fixed order.

    Args:
      problems: {'index', 'question', 'answer', ...} each.
      policy: models.Policy that writes the steps; or give `expander`.
      ppm: models.PPM that scores them, or None.
      config: what is searched.
      expander: writes the steps in place of models, such as `scripted(...)`.
      seed: of the sampling. A tree is the same for the same seed, problem index and tree number,
        whatever else is searched beside it.
      trees: trees to grow for each problem, numbered from 0.
      skip: (problem index, tree number) of trees that are not wanted, such as those done before.
      earlier: trees done before; looked at with config.tokens and config.agree alone.
      progress: called about once a second with the totals so far.
      mesh: local mesh (data, tensor); all devices of this host by default.
      workers: started worker processes, to be shared by several searches; started and stopped
        here by default.
      leases: which of these trees are searched here, some at a time, each asked for when there is
        room for more; an empty one, where none is there now. All, by default.
      flights: keeps trees in flight, so that a search that was killed goes on inside of them. Their
        paths are then read in, which rounds otherwise than writing them: not with `one_size`.

    Raises:
      UserError: neither policy nor expander is given, or a setting is out of range.
    """
    if (policy is None) == (expander is None):
        raise UserError('search.run: give either a policy or an expander')
    todo = [(p, t) for p in problems for t in range(trees) if (p['index'], t) not in skip]
    if not todo:
        return
    total = len(todo) if leases is None else -(-len(todo) // jax.process_count())
    here = [todo] if leases is None else leases
    flights = None if config.one_size else flights
    wanted = ([i for i in lease if (i[0]['index'], i[1]) not in skip] for lease in here)
    tokenizer = tokenizer_of(policy, ppm)
    make = functools.partial(new_tree, seed=seed, config=config, tokenizer=tokenizer)
    with contextlib.ExitStack() as stack:
        if expander is None:
            mesh = mesh or parallel.local_mesh(tensor=config.tensor)
            expander = make_expander(policy, ppm, config, mesh, total)
            stack.callback(expander.close)
            announce(f'search: {expander.plan}')
        workers = workers or stack.enter_context(Workers.start(config))
        totals = Totals(total, expander.counters, progress)
        loop = Loop(wanted, make, expander, config, workers, totals, flights)
        for record in earlier if config.in_order else ():
            loop.spending.add(record)
        yield from loop.run()


def tokenizer_of(policy, ppm):
    """Of the tokens that a tree holds: the policy's; the PPM's where the policy is elsewhere."""
    owner = ppm if isinstance(policy, Endpoint) else policy
    return owner.tokenizer if owner is not None else None


def make_expander(policy, ppm, config: Config, mesh, trees: int) -> Expander:
    """What writes the steps for a policy; trees: how many there are to search in all."""
    if isinstance(policy, Endpoint):
        return Remote(policy, ppm, config, mesh, trees)
    return Engine(policy, ppm, config, mesh, trees, template(config, policy.tokenizer))


def template(config: Config, tokenizer) -> list[list[int]]:
    """Token ids of prompts that have nothing in common but how the template begins."""
    orders = range(steps.ORDERS) if config.examples == 'shuffled' else (0,)
    prompts = [steps.prompt(q, config.prompt, order) for q in QUESTIONS for order in orders]
    return [tokenizer(prompt)['input_ids'] for prompt in prompts]


def new_tree(
    problem: dict[str, Any], number: int, *, seed: int, config: Config, tokenizer
) -> HostTree:
    """A tree of its root alone."""
    order = 0
    if config.examples == 'shuffled':
        order = int(sampling.key_of(seed, problem['index'], number, 'examples')[0])
    prompt = steps.prompt(problem['question'], config.prompt, order)
    tokens = tokenizer(prompt)['input_ids'] if tokenizer else []
    return HostTree(problem, number, seed, prompt, [Node(tokens=tokens)])


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
        leases, expander, config, workers, flights: as for `run`.
        totals: are told.
        """
        self.expander, self.config = expander, config
        self.leases: Iterator[list[Item]] | None = leases
        self.judge = Judge(config, workers, expander.encode)
        self.totals, self.flights = totals, flights
        self.spending = Spending(config, workers.grader.classes)
        self.make = make
        self.queue: list[Item] = []  # the next one is the last
        self.growing: dict[int, HostTree] = {}
        self.chunks: collections.deque[Any] = collections.deque()  # under way, the oldest first
        # What `grow` has asked for and `walk_on` reads; what `walk_on` ended and `finish` reads.
        self.grown: tuple | None = None
        self.finished: list[tuple[HostTree, trees_lib.Tree]] = []
        self.markless: list[str] | None = []
        self.free = list(range(expander.rows))[::-1]
        self.rules = trees_lib.Rules.of(config)
        mesh = expander.mesh
        self.arrays = devices.make(mesh, trees_lib.init, expander.width, config.nodes)
        self.reset = programs.RESET.on(mesh)
        self.advance = programs.ADVANCE.on(
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
            if self.flights is not None and self.growing:  # stopped before the end
                with contextlib.suppress(RuntimeError):  # in a call that had the arrays donated
                    self.keep_flights()
        self.tell(final=True)

    def turn(self) -> Iterator[Record]:
        """One look at a chunk, and what follows from it."""
        self.fill()
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
                self.queue = [*lease[::-1], *self.queue]
        return bool(self.leases is not None or self.queue or self.growing or self.finished)

    def tell(self, final: bool = False) -> None:
        rollouts = sum(tree.rollouts for tree in self.growing.values())
        self.totals.tick(rollouts / self.config.rollouts, final)

    def fill(self) -> None:
        """Puts waiting problems into free rows."""
        fresh = np.zeros(self.expander.rows, bool)
        starting = []
        while self.free and (item := self._next()) is not None:
            row = self.free.pop()
            self.growing[row] = tree = self.make(*item)
            tree.started = time.monotonic()
            tree.tokens_left = self.spending.left(tree.problem)
            fresh[row] = True
            starting.append(row)
        if starting:
            self.arrays = self.reset(self.arrays, devices.split(self.expander.mesh, fresh))
        for row in starting:
            path = self._resumed(row)
            self.expander.start(row, self.growing[row])
            self._ask(row, path)

    def keep_flights(self) -> None:
        """Keeps every tree that has begun to grow, and is in one piece."""
        self.walk_on()  # what they are to do next is part of them
        packed = {}
        for row, tree in self.growing.items():
            arrays = jax.device_get(programs.tree_of(self.arrays, row))
            if 1 < len(tree.nodes) == int(arrays.size):
                packed[tree.key] = flight.pack(tree, arrays)
        self.flights.keep(packed)

    def _resumed(self, row: int) -> list[int]:
        """Path to the cursor of a tree that begins: its root, or as far as it has been kept."""
        tree, kept = self.growing[row], None
        if self.flights is not None and (data := self.flights.find(tree.key)) is not None:
            kept = flight.unpack(data, tree, self.config.nodes)
        if kept is None:
            return [trees_lib.ROOT]
        arrays, path = kept
        placed = programs.with_tree(self.arrays, row, arrays)
        self.arrays = devices.split(self.expander.mesh, placed)
        return path

    def _next(self) -> Item | None:
        """What is to be searched next; in order, no tree beside another of its problem."""
        if not self.config.in_order:
            return self.queue.pop() if self.queue else None
        trees = [*self.growing.values(), *(tree for tree, _ in self.finished)]
        busy = {name_of(tree.problem) for tree in trees}
        for at in range(len(self.queue) - 1, -1, -1):
            problem = self.queue[at][0]
            if name_of(problem) in busy:
                continue
            item = self.queue.pop(at)
            if not self.spending.done(problem):
                return item
            self.totals.total -= 1
        return None

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
        expansion, scores = self._score(born, self._expansion(born))
        self.arrays, look = self.advance(self.arrays, expansion, self.rules)
        for row, children in born.items():
            self.growing[row].add(children)
        self.grown = ready, look, scores

    def walk_on(self) -> bool:
        """Reads where the trees that were grown are now, and asks for the next candidates."""
        if self.grown is None:
            return False
        (rows, look, scores), self.grown = self.grown, None
        paths, finished, rollouts = jax.device_get(look)
        for nodes, values in scores:
            for node, value in zip(nodes, np.asarray(values).tolist(), strict=True):
                if node is not None:
                    node.score = value
        for row in rows:
            self.growing[row].rollouts = int(rollouts[row])
            if finished[row]:
                arrays = programs.tree_of(self.arrays, row)
                self.finished.append((self.growing.pop(row), arrays))
                self.free.append(row)
            else:
                self._ask(row, [int(node) for node in paths[row] if node >= 0])
        return True

    def finish(self) -> Iterator[Record]:
        """The records of the trees that have ended."""
        finished, self.finished = self.finished, []
        for tree, arrays in finished:
            record = tree.record(jax.device_get(arrays))
            self.totals.finished(record)
            self.spending.add(record)
            yield record

    def _ask(self, row: int, path: list[int]) -> None:
        tree = self.growing[row]
        tree.path = path
        if self.judge.room(tree) < 0:  # the prompt is too long: the tree ends at its root
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
            self.markless += [node.step.text or '' for node in candidates]
        if len(self.markless) >= MARKLESS:
            raise UserError(
                f'search: of the first {len(self.markless)} candidates none ends in a mark '
                f'({steps.STEP_END} and others), so every tree ends at its root; the first is '
                f'{self.markless[0][:60]!r}: use a policy that was trained on the step form, or '
                '--config.search.prompt=few_shot for another'
            )

    def _score(self, born: dict[int, list[Node]], expansion: trees_lib.Expansion):
        """Has the PPM score children that can be walked into, and answers where it decides.

        Returns the expansion with the scores in it, and of each call its nodes and their scores.
        """
        wanted = [
            (row, number, node)
            for row, children in born.items()
            for number, node in enumerate(children)
            if node.is_open or (node.status == Status.ANSWER and not self.config.use_ground_truth)
        ]
        scores: list[tuple] = []
        if not wanted or not self.expander.has_ppm:
            return expansion, scores
        mesh, width = self.expander.mesh, self.expander.width
        for row, _, node in wanted:
            self.growing[row].computed['ppm'] += len(node.tokens)
        for values, which in self.expander.scores([(row, node) for row, _, node in wanted]):
            places = np.array(
                [(wanted[i][0] % width, wanted[i][1]) if i >= 0 else (width, 0) for i in which],
                np.int32,
            )
            arguments = devices.split(mesh, [values, places[:, 0], places[:, 1]])
            expansion = programs.PUT_SCORES.on(mesh)(expansion, *arguments)
            scores.append(([wanted[i][2] if i >= 0 else None for i in which], values))
        return expansion, scores

    def _expansion(self, born: dict[int, list[Node]]) -> trees_lib.Expansion:
        shape = (self.expander.rows, self.config.candidates)
        expansion = trees_lib.Expansion(
            active=np.zeros(shape[0], bool),
            count=np.zeros(shape[0], np.int32),
            status=np.zeros(shape, np.uint8),
            errors=np.zeros(shape, np.int32),
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
                for name in ('status', 'errors', 'reward', 'score', 'prior'):
                    getattr(expansion, name)[row, i] = getattr(node, name)
        return devices.split(self.expander.mesh, expansion)
