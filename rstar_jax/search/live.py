"""A search that never ends: questions come while others are being searched, one engine for all.

submit (any thread) -> inbox -> the search's rows, beside those of other questions
    -> Records to the job's callback, in the thread of `run`

What fails for one question ends that one; what fails for all (the devices) ends those that are in
flight, and the others are searched by a new engine.
"""

import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Callable

from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record, Status
from rstar_jax.search.begin import make_expander, new_tree, tokenizer_of
from rstar_jax.search.budget import Budget
from rstar_jax.search.children import Judge, Workers
from rstar_jax.search.config import Config
from rstar_jax.search.expander import Expander
from rstar_jax.search.loop import Loop
from rstar_jax.search.nodes import HostTree, Node, Step
from rstar_jax.search.share import Item, Queue
from rstar_jax.search.totals import Totals
from rstar_jax.settings.errors import UserError

FAILURES = 3  # of an engine, and no tree in between, end the search


class Ended(Exception):
    """The search takes no more questions."""


@dataclasses.dataclass(eq=False)
class Job:
    """One question that is being searched.

    Attributes:
      question: its text.
      trees: how many are grown.
      seed: of the sampling.
      prompt_tokens: length of the prompt; 0 without a policy.
      done: called with each Record, in the thread of `Live.run`; last with None, as no tree is
        left, or with the exception that ended it. Fewer trees may be grown than were asked for, see
        config.tokens and config.agree.
      cancelled: set by `cancel`; trees that have not begun are left out, others end as they are.
    """

    question: str
    trees: int
    seed: int
    prompt_tokens: int
    done: Callable[[Record | BaseException | None], None]
    cancelled: bool = False
    failed: bool = False

    def cancel(self) -> None:
        """Says that nobody waits for it any more."""
        self.cancelled = True

    def tell(self, event: Record | BaseException | None) -> None:
        """Calls `done`, but for what follows an exception."""
        if self.failed:
            return
        if isinstance(event, BaseException):
            self.failed = self.cancelled = True
        self.done(event)


class _Guarded(Judge):
    """A judge whose errors end the question that they are of."""

    def __init__(
        self,
        config: Config,
        workers: Workers,
        expander: Expander,
        failed: Callable[[HostTree, Exception], None],
    ):
        super().__init__(config, workers, expander)
        self.markless = None  # a question that is none must not end the service
        self._failed = failed

    def begin(self, tree: HostTree, step: Step) -> None:
        try:
            super().begin(tree, step)
        except Exception as error:
            self._failed(tree, error)
            empty = dataclasses.replace(step, text='', tokens=[], error=None)
            tree.candidates[step.candidate] = Node(empty)

    def children(self, tree: HostTree) -> list[Node]:
        try:
            return super().children(tree)
        except Exception as error:
            self._failed(tree, error)
            return [Node(tree.candidates[0].step, status=Status.UNPARSABLE)]


class Live(Queue):
    """A search and the queue of its trees, which is filled while it runs; see the module's text.

    A tree is the same as `search.run` grows for problem 0 with the same seed: what else is being
    searched changes nothing.
    """

    def __init__(
        self,
        policy=None,
        ppm=None,
        *,
        config: Config,
        trees: int,
        workers: Workers,
        expander=None,
        mesh=None,
    ):
        """Args are those of `search.run`; trees: how many at once there is to be room for."""
        self._new_tree = functools.partial(
            new_tree, config=config, tokenizer=tokenizer_of(policy, ppm)
        )
        self._make = lambda: expander or make_expander(policy, ppm, config, mesh, trees)
        self.config, self._workers = config, workers
        self._failures = 0
        self._loop: Loop | None = None
        self._begin([])
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by number; until no tree of theirs is left
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ended: BaseException | None = None

    def _begin(self, waiting: list[list[Item]]) -> None:
        """An engine without a tree; waiting: as `Queue.lines`."""
        expander = self._make()
        budget = Budget(self.config, self._workers.grader.classes)
        super().__init__(iter(()), budget, Totals(0, expander.counters, None))
        self.lines = waiting
        judge = _Guarded(self.config, self._workers, expander, self._fail)
        self._loop = Loop(self, self._begun, expander, judge)

    def submit(
        self,
        question: str,
        trees: int,
        done: Callable[[Record | BaseException | None], None],
        seed: int = 0,
    ) -> Job:
        """Has a question searched; from any thread.

        Raises:
          UserError: the question is too long.
          Ended: the search has.
        """
        root = self._new_tree(Problem(0, question), 0, seed=seed).nodes[0]
        length, room = len(root.tokens), self.config.prompt_tokens
        if length > room:
            raise UserError('question', expected=f'{length} tokens with its prompt, {room} fit')
        job = Job(question, trees, seed, length, done)
        with self._lock:
            if self._ended is not None:
                raise Ended('the search has ended') from self._ended
            self._inbox.put(job)
        return job

    def run(self) -> None:
        """Searches what comes until `close`; in a thread of its own.

        Raises what keeps failing.
        """
        ended: BaseException = Ended('the search has ended')
        try:
            while not self._searched():
                self._loop.expander.close()
                self._loop = None  # its memory, for the next one
                self._begin(self.lines)
        except BaseException as error:
            ended = error
            raise
        finally:
            if self._loop is not None:
                self._loop.expander.close()
            with self._lock:
                self._ended = ended
            while not self._inbox.empty():
                if (job := self._inbox.get()) is not None:
                    job.tell(ended)
            for job in self._jobs.values():
                job.tell(ended)

    def _searched(self) -> bool:
        """Searches until `close`, or until the engine fails: then what is in flight has failed."""
        try:
            for record in self._loop.run():
                self._failures = 0
                self._jobs[record.problem.index].tell(record)
            return True
        except Exception as error:
            self._failures += 1
            if self._failures == FAILURES:
                raise
            for number in self.begun:
                self._jobs[number].tell(error)
        return False

    def _fail(self, tree: HostTree, error: Exception) -> None:
        self._jobs[tree.problem.index].tell(error)

    @property
    def busy(self) -> int:
        """How many questions are being searched or wait."""
        return len(self._jobs) + self._inbox.qsize()

    def close(self) -> None:
        """Ends `run`, whatever is being searched."""
        self._inbox.put(None)

    def more(self, room: int) -> bool:
        """Takes what has been submitted since; waits for it where nothing is left to search."""
        left = {*self.begun, *(line[0][0].index for line in self.lines)}
        for number in self._jobs.keys() - left:
            self.budget.forget(number)
            self._jobs.pop(number).tell(None)
        wait = not left
        while wait or not self._inbox.empty():
            job, wait = self._inbox.get(), False
            if job is None:
                self._loop.crowded = 0  # their questions have been told
                return False
            number = next(self._numbers)
            self._jobs[number] = job
            problem = Problem(number, job.question, '', sampled_as=0)
            self.line_up([(problem, tree) for tree in range(job.trees)])
        self.lines = [x for x in self.lines if not self._jobs[x[0][0].index].cancelled]
        return True

    def unwanted(self, tree: HostTree) -> bool:
        return self._jobs[tree.problem.index].cancelled

    def _begun(self, problem: Problem, number: int) -> HostTree:
        return self._new_tree(problem, number, seed=self._jobs[problem.index].seed)
