"""The search loop: problems in, finished trees out.

    problems -> rows (trees in flight) -> expander: candidates of each tree's cursor
        -> programs run, answers graded (worker processes, while the device decodes on)
        -> PPM scores -> tree.advance on the device -> next cursor, or a finished Record

The host keeps what only the edges need (texts, programs, outputs); which node comes next is
decided on the device.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rstar_jax import execution, grading, parallel, steps
from rstar_jax.errors import UserError
from rstar_jax.search import devices, flight, sampling, strategies
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.config import Config
from rstar_jax.search.engine import Ended, Engine
from rstar_jax.search.record import TERMINAL_ANSWERS, Record, Status
from rstar_jax.steps import marks

# Prompts that are looked at to find what all have in common.
PROMPTS = 512
# After so many candidates without a single mark and no tree beyond its root, a search ends.
MARKLESS = 32
MARKS = (marks.STEP, marks.CODE, marks.ANSWER)

Item = tuple[dict[str, Any], int]  # a problem and the number of its tree


@dataclasses.dataclass
class Candidate:
    """One sampled step on its way to becoming a child."""

    ended: Ended
    answer: str = ''
    code: str = ''
    run: Future | None = None
    grade: Future | None = None

    def done(self) -> bool:
        return all(future is None or future.done() for future in (self.run, self.grade))


@dataclasses.dataclass
class Child:
    """A node about to be added."""

    candidate: Candidate
    text: str
    tokens: list[int]
    status: Status = Status.OPEN
    errors: int = 0
    reward: float = 0.0
    score: float = float('nan')
    prior: float = 0.0
    output: str = ''
    correct: bool = False


@dataclasses.dataclass
class Task:
    """The host's side of one tree in flight; lists run over its nodes, the root first.

    origin holds, for each node, the candidate it was, its sampled tokens and the kind of its end;
    open, whether it may be walked into.
    """

    problem: dict[str, Any]
    tree: int
    seed: int
    prompt: str
    tokens: list[list[int]]
    texts: list[str] = dataclasses.field(default_factory=lambda: [''])
    tags: list[str] = dataclasses.field(default_factory=lambda: ['0'])
    code: list[str] = dataclasses.field(default_factory=lambda: [''])
    outputs: list[str] = dataclasses.field(default_factory=lambda: [''])
    answers: list[str] = dataclasses.field(default_factory=lambda: [''])
    correct: list[bool] = dataclasses.field(default_factory=lambda: [False])
    errors: list[int] = dataclasses.field(default_factory=lambda: [0])
    origin: list[tuple] = dataclasses.field(default_factory=lambda: [()])
    open: list[bool] = dataclasses.field(default_factory=lambda: [True])
    likelihood: list[float] = dataclasses.field(default_factory=lambda: [0.0])
    nodes: list[int] = dataclasses.field(default_factory=list)
    candidates: list[Candidate | None] = dataclasses.field(default_factory=list)
    sampled: int = 0
    # Known tokens that the models were run on: by the PPM, by the policy.
    computed: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    rollouts: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[int, int]:
        return self.problem['index'], self.tree

    @property
    def prefix(self) -> str:
        """The partial solution down to the cursor."""
        return ''.join(self.texts[node] for node in self.nodes)

    def history(self) -> list[str]:
        """Programs of the nodes above, since the last `<end_of_code>`."""
        cells = []
        for node in reversed(self.nodes[1:]):
            if steps.CODE_END in self.texts[node]:
                break
            cells.append(self.code[node])
        return cells[::-1]

    def add(self, parent: int, children: list[Child]) -> None:
        for number, child in enumerate(children, 1):
            ended = child.candidate.ended
            self.texts.append(child.text)
            self.tokens.append(child.tokens)
            self.tags.append(f'{self.tags[parent]}.{number}')
            self.code.append(child.candidate.code)
            self.outputs.append(child.output)
            self.answers.append(child.candidate.answer)
            self.correct.append(child.correct)
            self.errors.append(child.errors)
            self.origin.append((ended.candidate, len(ended.tokens), ended.kind))
            self.open.append(child.status == Status.OPEN)
            self.likelihood.append(ended.likelihood)


@dataclasses.dataclass
class Workers:
    """The processes that run programs and grade answers beside the device."""

    pool: execution.Pool
    grader: grading.Grader

    @classmethod
    @contextlib.contextmanager
    def start(cls, config: Config) -> Iterator['Workers']:
        """Starts them with the limits of `config`; stops them at the end of the block."""
        limits = execution.Limits(seconds=config.code_seconds, memory_mb=config.code_memory_mb)
        count = config.workers or None
        with (
            execution.Pool(count, limits, config.isolation, _announce) as pool,
            grading.Grader(workers=count) as grader,
        ):
            yield cls(pool, grader)


@functools.cache
def _announce(line: str) -> None:
    """Prints a line once a process."""
    print(line, flush=True)


def run(
    problems: Iterable[dict[str, Any]],
    policy=None,
    ppm=None,
    *,
    config: Config,
    expander=None,
    seed: int = 0,
    trees: int = 1,
    skip: frozenset = frozenset(),
    progress: Callable[[dict[str, float]], None] | None = None,
    mesh=None,
    workers: 'Workers | None' = None,
    leases: Iterable[list[Item]] | None = None,
    flights: flight.Flights | None = None,
) -> Iterator[Record]:
    """Searches and yields each tree as it is finished, in no fixed order.

    Args:
      problems: {'index', 'question', 'answer', ...} each.
      policy: models.Policy that writes the steps; or give `expander`.
      ppm: models.PPM that scores them, or None.
      config: what is searched.
      expander: an object with the calls of `Engine`, such as `scripted(...)`, in place of models.
      seed: of the sampling. A tree is the same for the same seed, problem index and tree number,
        whatever else is searched beside it.
      trees: trees to grow for each problem, numbered from 0.
      skip: (problem index, tree number) of trees that are not wanted, such as those done before.
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
    tokenizer = policy.tokenizer if policy else None
    make = functools.partial(_task, seed=seed, config=config, tokenizer=tokenizer)
    if expander is None:
        mesh = mesh or parallel.local_mesh(tensor=config.tensor)
        some = todo[:: -(-len(todo) // PROMPTS)]
        prompts = [make(problem, number).tokens[0] for problem, number in some]
        expander = Engine(policy, ppm, config, mesh, total, prompts)
        _announce(f'search: {expander.plan}')
    with contextlib.ExitStack() as stack:
        workers = workers or stack.enter_context(Workers.start(config))
        about = _Report(total, expander.counters, progress)
        yield from _Search(wanted, make, expander, config, workers, about, flights).run()


def _task(problem: dict[str, Any], number: int, *, seed: int, config: Config, tokenizer) -> Task:
    order = 0
    if config.examples == 'shuffled':
        order = int(sampling.key_of(seed, problem['index'], number, 'examples')[0])
    prompt = steps.prompt(problem['question'], config.prompt, order)
    tokens = tokenizer(prompt)['input_ids'] if tokenizer else []
    return Task(problem, number, seed, prompt, [tokens])


def _advance(tree, expansion, rules, longest: int, strategy: str):
    """Grows the trees; returns them, and what the host must know: paths, finished, rollouts."""
    tree = trees_lib.advance(tree, expansion, rules, strategies.WALKS[strategy])
    return tree, (trees_lib.paths(tree, longest), tree.finished, tree.rollout)


class _Search:
    """The loop's state: which tree is in which row, and the tree arrays on the devices."""

    def __init__(
        self,
        leases: Iterator[list[Item]],
        make,
        expander,
        config: Config,
        workers: Workers,
        report: '_Report',
        flights: flight.Flights | None = None,
    ):
        self.expander, self.config, self.workers = expander, config, workers
        self.leases: Iterator[list[Item]] | None = leases
        self.make, self.report, self.flights = make, report, flights
        self.queue: list[Item] = []  # the next one is the last
        self.tasks: dict[int, Task] = {}
        self.markless: list[str] | None = []
        self.free = list(range(expander.rows))[::-1]
        self.split = NamedSharding(expander.mesh, P('data'))
        self.rules = trees_lib.Rules.of(config)
        mesh = expander.mesh
        self.trees = devices.make(mesh, trees_lib.init, expander.trees, config.nodes)
        self.reset = devices.mapped(trees_lib.reset, mesh, 2, donate=(0,))
        # The trees are donated: the only reference to them is replaced by the result.
        self.advance = devices.mapped(
            _advance,
            mesh,
            3,
            shared=(2,),
            donate=(0,),
            longest=config.max_depth + 2,
            strategy=config.strategy,
        )

    def run(self) -> Iterator[Record]:
        try:
            while self._more():
                self._fill()
                running = self.expander.dispatch()
                for ended in self.expander.collect(running):
                    self._judge(ended)
                ready = [row for row, task in self.tasks.items() if self._ready(task)]
                if ready:
                    yield from self._grow(ready)
                elif running is None:
                    self._await_workers()
                self._tell()
                if self.flights is not None and self.flights.due():
                    self._keep_flights()
        finally:
            if self.flights is not None and self.tasks:  # stopped before the end
                with contextlib.suppress(RuntimeError):  # in a call that had the arrays donated
                    self._keep_flights()
        self._tell(final=True)

    def _keep_flights(self) -> None:
        """Keeps every tree that is in one piece: of one that grows right now, the host knows
        another number of nodes than the device."""
        packed = {}
        for row, task in self.tasks.items():
            arrays = jax.device_get(_tree_of(self.trees, row))
            if 1 < len(task.texts) == int(arrays.size):
                packed[task.key] = flight.pack(task, arrays)
        self.flights.keep(packed)

    def _resumed(self, row: int) -> list[int]:
        """Path to the cursor of a tree that begins: its root, or as far as it has been kept."""
        task, kept = self.tasks[row], None
        if self.flights is not None and (data := self.flights.find(task.key)) is not None:
            kept = flight.unpack(data, task, self.config.nodes)
        if kept is None:
            return [trees_lib.ROOT]
        arrays, nodes = kept
        self.trees = jax.device_put(_with_tree(self.trees, row, arrays), self.split)
        return nodes

    def _more(self) -> bool:
        """Takes more leases where there is room; False when all is done."""
        while self.leases is not None and len(self.queue) < len(self.free):
            lease = next(self.leases, None)
            if lease is None:
                self.leases = None
            elif not lease:
                break
            else:
                self.queue = [*lease[::-1], *self.queue]
        return bool(self.leases is not None or self.queue or self.tasks)

    def _tell(self, final: bool = False) -> None:
        rollouts = sum(task.rollouts for task in self.tasks.values())
        self.report.tick(rollouts / self.config.rollouts, final)

    def _fill(self) -> None:
        """Puts waiting problems into free rows."""
        fresh = np.zeros(self.expander.rows, bool)
        starting = []
        while self.queue and self.free:
            row, task = self.free.pop(), self.make(*self.queue.pop())
            self.tasks[row] = task
            task.started = time.monotonic()
            fresh[row] = True
            starting.append(row)
        if starting:
            self.trees = self.reset(self.trees, jax.device_put(fresh, self.split))
        for row in starting:
            nodes = self._resumed(row)
            self.expander.start(row, self.tasks[row])
            self._ask(row, nodes)

    def _ask(self, row: int, nodes: list[int]) -> None:
        task = self.tasks[row]
        task.nodes = nodes
        if self._room(task) < 0:  # the prompt is too long: the tree ends at its root
            task.candidates = []
            return
        task.candidates = [None] * self.config.candidates
        self.expander.expand(row, task, nodes, task.tags[nodes[-1]])

    def _room(self, task: Task) -> int:
        """Tokens that the path to the cursor leaves for steps."""
        return self.config.path_tokens - sum(len(task.tokens[node]) for node in task.nodes)

    # --- candidates ---

    def _judge(self, ended: Ended) -> None:
        """Starts whatever a candidate needs: its program to be run, its answer to be graded."""
        task = self.tasks[ended.row]
        candidate = Candidate(ended)
        task.candidates[ended.candidate] = candidate
        task.sampled += ended.sampled
        if ended.text is None or not ended.text.strip():
            return
        box = steps.boxed(ended.text)
        if box is not None:
            candidate.answer = box
            if self.config.use_ground_truth:
                candidate.grade = self.workers.grader.submit(box, task.problem['answer'])
        elif ended.kind != marks.ANSWER:
            candidate.code = steps.code_of(ended.text)
            cells = [*task.history(), candidate.code]
            whole = self.config.failed_steps == 'again'
            candidate.run = self.workers.pool.submit(cells, whole)

    def _ready(self, task: Task) -> bool:
        if any(c is None for c in task.candidates):
            return False
        return all(c.done() for c in self._kept(task))

    def _await_workers(self) -> None:
        futures = [
            future
            for task in self.tasks.values()
            for c in task.candidates
            if c is not None
            for future in (c.run, c.grade)
            if future is not None and not future.done()
        ]
        if futures:
            wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)

    def _kept(self, task: Task) -> list[Candidate]:
        """Candidates that become children: identical texts merged, the first answer alone."""
        alive = [c for c in task.candidates if c.ended.text is not None]
        if self.config.first_answer_only:
            answers = [c for c in alive if c.ended.kind == marks.ANSWER]
            if answers:
                return answers[:1]
        unique: dict[str, Candidate] = {}
        for candidate in alive:
            unique.setdefault(candidate.ended.text, candidate)
        return list(unique.values())

    def _children(self, task: Task) -> list[Child]:
        cursor = task.nodes[-1]
        children = [self._child(task, cursor, c) for c in self._kept(task)]
        room = self._room(task)
        ended = [child.candidate.ended for child in children]
        means = np.array([e.likelihood / max(e.sampled, 1) for e in ended])
        priors = np.exp(means - means.max(initial=0))
        for child, prior in zip(children, priors / priors.sum(), strict=True):
            child.prior = float(prior)
        for child in children:
            if child.status == Status.OPEN and len(child.tokens) + self.config.step_tokens > room:
                child.status = Status.TOO_DEEP
        return children

    def _child(self, task: Task, cursor: int, candidate: Candidate) -> Child:
        ended = candidate.ended
        child = Child(candidate, ended.text, ended.tokens)
        if candidate.answer:
            child.status = Status.ANSWER
            if candidate.grade is not None:
                child.correct = candidate.grade.result()
                child.reward = 1.0 if child.correct else -1.0
        elif candidate.run is None:
            child.status = Status.UNPARSABLE
        else:
            result = candidate.run.result()
            child.output = result.output if result.ok else result.error
            child.errors = 0 if result.ok else task.errors[cursor] + 1
            if child.errors >= self.config.error_threshold:
                child.status = Status.CODE_ERRORS
            if child.status == Status.CODE_ERRORS or steps.CODE_END in ended.text:
                child.text = steps.with_output(ended.text, child.output)
                added = self.expander.encode(child.text[len(ended.text) :])
                child.tokens = ended.tokens + added
        return child

    # --- trees ---

    def _grow(self, ready: list[int]) -> Iterator[Record]:
        """Adds the children of the ready trees' cursors and lets each tree walk on."""
        born = {row: self._children(self.tasks[row]) for row in ready}
        self._look_for_marks(born)
        self._score(born)
        expansion = self._expansion(born)
        self.trees, look = self.advance(self.trees, expansion, self.rules)
        paths, finished, rollouts = jax.device_get(look)
        for row, children in born.items():
            task = self.tasks[row]
            task.add(task.nodes[-1], children)
            task.rollouts = int(rollouts[row])
        for row in ready:
            if finished[row]:
                yield self._finish(row)
            else:
                self._ask(row, [int(node) for node in paths[row] if node >= 0])

    def _look_for_marks(self, born: dict[int, list[Child]]) -> None:
        """Raises UserError when the first trees all end at their root, as no mark is written."""
        if self.markless is None:
            return
        for row, children in born.items():
            candidates = self.tasks[row].candidates
            if any(child.status in (Status.OPEN, Status.ANSWER) for child in children) or any(
                candidate.ended.kind in MARKS for candidate in candidates
            ):
                self.markless = None
                return
            self.markless += [candidate.ended.text or '' for candidate in candidates]
        if len(self.markless) >= MARKLESS:
            raise UserError(
                f'search: of the first {len(self.markless)} candidates none ends in a mark '
                f'({steps.STEP_END} and others), so every tree ends at its root; the first is '
                f'{self.markless[0][:60]!r}: use a policy that was trained on the step form, or '
                '--config.search.prompt=few_shot for another'
            )

    def _score(self, born: dict[int, list[Child]]) -> None:
        """Asks the PPM about children that can be walked into, and answers where it decides."""
        wanted = [
            (row, child)
            for row, children in born.items()
            for child in children
            if child.status == Status.OPEN
            or (child.status == Status.ANSWER and not self.config.use_ground_truth)
        ]
        if not wanted or not self.expander.has_ppm:
            return
        scores = self.expander.scores(wanted)
        for (row, child), score in zip(wanted, scores, strict=True):
            self.tasks[row].computed[0] += len(child.tokens)
            child.score = score
            if child.status == Status.ANSWER:
                child.reward = score

    def _expansion(self, born: dict[int, list[Child]]) -> trees_lib.Expansion:
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
            for i, child in enumerate(children):
                expansion.status[row, i] = child.status
                expansion.errors[row, i] = child.errors
                expansion.reward[row, i] = child.reward
                expansion.score[row, i] = child.score
                expansion.prior[row, i] = child.prior
        return jax.device_put(expansion, self.split)

    def _finish(self, row: int) -> Record:
        task = self.tasks.pop(row)
        self.free.append(row)
        arrays = jax.device_get(_tree_of(self.trees, row))
        size = int(arrays.size)
        status = arrays.status[:size]
        answers = [
            TERMINAL_ANSWERS.get(Status(s), answer)
            for s, answer in zip(status.tolist(), task.answers, strict=True)
        ]
        by_ppm, by_policy = task.computed
        record = Record(
            problem=task.problem,
            tree=task.tree,
            prompt=task.prompt,
            texts=task.texts,
            tokens=task.tokens,
            parent=arrays.parent[:size],
            visits=arrays.visits[:size],
            value_sum=arrays.value_sum[:size],
            score=arrays.score[:size],
            depth=arrays.depth[:size],
            status=status,
            errors=arrays.errors[:size],
            answers=answers,
            code=task.code,
            outputs=task.outputs,
            correct=task.correct,
            counters={
                'sampled_tokens': float(task.sampled),
                'policy_computed': float(by_policy + task.sampled),
                'ppm_computed': float(by_ppm),
                'seconds': time.monotonic() - task.started,
            },
            likelihood=np.array(task.likelihood, np.float32),
        )
        self.report.finished(record)
        return record


@jax.jit
def _tree_of(trees: trees_lib.Tree, row: int) -> trees_lib.Tree:
    """One tree out of many, in one call: field by field takes as long as a small tree's search."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), trees)


@functools.partial(jax.jit, donate_argnums=0)  # the only reference is replaced by the result
def _with_tree(trees: trees_lib.Tree, row: int, tree: trees_lib.Tree) -> trees_lib.Tree:
    """`trees` with `tree` in one of the rows."""
    return jax.tree.map(lambda x, y: x.at[row].set(y), trees, tree)


class _Report:
    """Totals of a run, reported about once a second."""

    def __init__(self, total: int, counters, callback):
        self.total, self.counters, self.callback = total, counters, callback
        self.started = self.last = time.monotonic()
        self.done = self.solved = self.nodes = 0

    def finished(self, record: Record) -> None:
        self.done += 1
        self.solved += record.solved
        self.nodes += len(record.texts)

    def tick(self, under_way: float, final: bool = False) -> None:
        """under_way: what is done of the trees in flight, in trees.

        Where others search too, a process may get more than its share of all, or less.
        """
        self.total = self.done if final else max(self.total, self.done)
        now = time.monotonic()
        if self.callback is None or (now - self.last < 1.0 and not final):
            return
        self.last = now
        seconds = now - self.started
        sampled = self.counters['sampled']
        done = self.done + under_way
        left = (self.total - done) * seconds / done if done else float('nan')
        self.callback(
            {
                **self.counters,
                'trees_done': self.done,
                'trees_total': self.total,
                'solved': self.solved,
                'nodes': self.nodes,
                'tokens': sampled,
                'tokens_per_second': sampled / max(seconds, 1e-9),
                'slot_use': self.counters['live_slot_steps'] / max(self.counters['slot_steps'], 1),
                'seconds': seconds,
                'seconds_left': left,
            }
        )
