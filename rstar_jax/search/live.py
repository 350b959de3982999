"""A search that never ends: questions come while others are being searched, one engine for all.

submit (any thread) -> inbox -> the search's rows, beside those of other questions
    -> Records to the job's callback, in the thread of `run`
"""

import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Callable

from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record
from rstar_jax.search.begin import make_expander, new_tree, tokenizer_of
from rstar_jax.search.children import Workers
from rstar_jax.search.config import Config
from rstar_jax.search.host import HostTree
from rstar_jax.search.loop import Loop
from rstar_jax.search.totals import Totals
from rstar_jax.settings.errors import UserError


@dataclasses.dataclass(eq=False)
class Job:
    """One question that is being searched.

    Attributes:
      question: its text.
      trees: how many are grown.
      seed: of the sampling.
      prompt_tokens: length of the prompt; 0 without a policy.
      done: called with each Record, in the thread of `Live.run`; then with None, as no tree is
        left, or with the exception that ended the search. Fewer trees may be grown than were asked
        for, see config.tokens and config.agree.
      cancelled: set by `cancel`; trees that have not begun are left out, others end as they are.
    """

    question: str
    trees: int
    seed: int
    prompt_tokens: int
    done: Callable[[Record | BaseException | None], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Says that nobody waits for it any more."""
        self.cancelled = True


class Live(Loop):
    """The search loop with a queue that is filled while it runs; see the module's text.

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
        expander = expander or make_expander(policy, ppm, config, mesh, trees)
        totals = Totals(0, expander.counters, None)
        super().__init__(iter(()), self._begun, expander, config, workers, totals)
        self.markless = None  # a question that is none must not end the service
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by number; until no tree of theirs is left
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ended: BaseException | None = None

    def submit(
        self,
        question: str,
        trees: int,
        done: Callable[[Record | BaseException | None], None],
        seed: int = 0,
    ) -> Job:
        """Has a question searched; from any thread.

        Raises:
          UserError: the question is too long, or the search has ended.
        """
        root = self._new_tree(Problem(0, question), 0, seed=seed).nodes[0]
        length, room = len(root.tokens), self.config.prompt_tokens
        if length > room:
            raise UserError(f'the question has {length} tokens with its prompt, at most {room} fit')
        job = Job(question, trees, seed, length, done)
        with self._lock:
            if self._ended is not None:
                raise UserError('the search has ended')
            self._inbox.put(job)
        return job

    def run(self) -> None:
        """Searches what comes until `close`; in a thread of its own."""
        ended: BaseException = UserError('the search has ended')
        try:
            for record in super().run():
                self._jobs[record.problem.index].done(record)
        except BaseException as error:
            ended = error
            raise
        finally:
            self.expander.close()
            with self._lock:
                self._ended = ended
            while not self._inbox.empty():
                if (job := self._inbox.get()) is not None:
                    job.done(ended)
            for job in self._jobs.values():
                job.done(ended)

    @property
    def busy(self) -> int:
        """How many questions are being searched or wait."""
        return len(self._jobs) + self._inbox.qsize()

    def close(self) -> None:
        """Ends `run`, whatever is being searched."""
        self._inbox.put(None)

    def more(self) -> bool:
        """Takes what has been submitted since; waits for it where nothing is left to search."""
        trees = [*self.growing.values(), *(tree for tree, _ in self.finished)]
        left = {tree.problem.index for tree in trees}
        left |= {line[0][0].index for line in self.queue}
        for number in self._jobs.keys() - left:
            self.spending.forget(number)
            self._jobs.pop(number).done(None)
        wait = not left
        while wait or not self._inbox.empty():
            job, wait = self._inbox.get(), False
            if job is None:
                return False
            number = next(self._numbers)
            self._jobs[number] = job
            problem = Problem(number, job.question, '', sampled_as=0)
            self.line_up([(problem, tree) for tree in range(job.trees)])
        self.queue = [x for x in self.queue if not self._jobs[x[0][0].index].cancelled]
        return True

    def unwanted(self, tree: HostTree) -> bool:
        return self._jobs[tree.problem.index].cancelled

    def _begun(self, problem: Problem, number: int) -> HostTree:
        return self._new_tree(problem, number, seed=self._jobs[problem.index].seed)
