"""The search loop: problems in, finished trees out.

    problems -> rows (trees in flight) -> expander: candidates of each tree's cursor
        -> programs run, answers graded (worker processes, while the device decodes on)
        -> PPM scores -> tree.advance on the device -> next cursor, or a finished Record

`host` has the trees' texts, `children` what becomes of candidates; which node comes next is decided
on the device.
"""

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
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.children import Judge, Workers, announce
from rstar_jax.search.config import Config
from rstar_jax.search.engine import Engine, devices, programs, sampling
from rstar_jax.search.expander import Expander
from rstar_jax.search.host import HostTree, Node
from rstar_jax.search.record import Record, Status
from rstar_jax.search.totals import Totals
from rstar_jax.steps import marks

# Prompts that are looked at to find what all have in common.
PROMPTS = 512
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
    progress: Callable[[dict[str, float]], None] | None = None,
    mesh=None,
    workers: Workers | None = None,
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
      progress: called about once a second with the totals so far.
      mesh: local mesh (data, tensor); all devices of this host by default.
      workers: started worker processes, to be shared by several searches; started and stopped
        here by default.

    Raises:
      UserError: neither policy nor expander is given, or a setting is out of range.
    """
    if (policy is None) == (expander is None):
        raise UserError('search.run: give either a policy or an expander')
    todo = [(p, t) for p in problems for t in range(trees) if (p['index'], t) not in skip]
    if not todo:
        return
    tokenizer = policy.tokenizer if policy else None
    make = functools.partial(new_tree, seed=seed, config=config, tokenizer=tokenizer)
    if expander is None:
        mesh = mesh or parallel.local_mesh(tensor=config.tensor)
        some = todo[:: -(-len(todo) // PROMPTS)]
        prompts = [make(problem, number).nodes[0].tokens for problem, number in some]
        expander = Engine(policy, ppm, config, mesh, len(todo), prompts)
        announce(f'search: {expander.plan}')
    with contextlib.ExitStack() as stack:
        workers = workers or stack.enter_context(Workers.start(config))
        yield from Loop(todo, make, expander, config, workers, progress).run()


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

    def __init__(self, todo, make, expander: Expander, config: Config, workers: Workers, progress):
        """Args:
        todo: (problem, tree number) each.
        make: turns such a pair into a HostTree.
        expander, config, workers, progress: as for `run`.
        """
        self.expander, self.config = expander, config
        self.judge = Judge(config, workers, expander.encode)
        self.totals = Totals(len(todo), expander.counters, progress)
        self.make, self.queue = make, todo[::-1]
        self.growing: dict[int, HostTree] = {}
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
        while self.more():
            self.fill()
            running = self.expander.dispatch()
            for step in self.expander.collect(running):
                self.judge.begin(self.growing[step.row], step)
            ready = [row for row, tree in self.growing.items() if self.judge.ready(tree)]
            if ready:
                yield from self.grow(ready)
            elif running is None:
                self.await_workers()
            self.tell()
        self.tell(final=True)

    def more(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.queue or self.growing)

    def tell(self, final: bool = False) -> None:
        rollouts = sum(tree.rollouts for tree in self.growing.values())
        self.totals.tick(rollouts / self.config.rollouts, final)

    def fill(self) -> None:
        """Puts waiting problems into free rows."""
        fresh = np.zeros(self.expander.rows, bool)
        starting = []
        while self.queue and self.free:
            row = self.free.pop()
            self.growing[row] = self.make(*self.queue.pop())
            self.growing[row].started = time.monotonic()
            fresh[row] = True
            starting.append(row)
        if starting:
            self.arrays = self.reset(self.arrays, devices.split(self.expander.mesh, fresh))
        for row in starting:
            self.expander.start(row)
            self._ask(row, [trees_lib.ROOT])

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

    def grow(self, ready: list[int]) -> Iterator[Record]:
        """Adds the children of the ready trees' cursors and lets each tree walk on."""
        born = {row: self.judge.children(self.growing[row]) for row in ready}
        self._look_for_marks(born)
        self._score(born)
        self.arrays, look = self.advance(self.arrays, self._expansion(born), self.rules)
        paths, finished, rollouts = jax.device_get(look)
        for row, children in born.items():
            tree = self.growing[row]
            tree.add(children)
            tree.rollouts = int(rollouts[row])
        for row in ready:
            if finished[row]:
                yield self._finish(row)
            else:
                self._ask(row, [int(node) for node in paths[row] if node >= 0])

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

    def _score(self, born: dict[int, list[Node]]) -> None:
        """Asks the PPM about children that can be walked into, and answers where it decides."""
        wanted = [
            (row, node)
            for row, children in born.items()
            for node in children
            if node.is_open or (node.status == Status.ANSWER and not self.config.use_ground_truth)
        ]
        if not wanted or not self.expander.has_ppm:
            return
        scores = self.expander.scores(wanted)
        for (row, node), score in zip(wanted, scores, strict=True):
            self.growing[row].computed['ppm'] += len(node.tokens)
            node.score = score
            if node.status == Status.ANSWER:
                node.reward = score

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
        )
        for row, children in born.items():
            expansion.active[row] = True
            expansion.count[row] = len(children)
            for i, node in enumerate(children):
                for name in ('status', 'errors', 'reward', 'score', 'prior'):
                    getattr(expansion, name)[row, i] = getattr(node, name)
        return devices.split(self.expander.mesh, expansion)

    def _finish(self, row: int) -> Record:
        tree = self.growing.pop(row)
        self.free.append(row)
        record = tree.record(jax.device_get(programs.tree_of(self.arrays, row)))
        self.totals.finished(record)
        return record
