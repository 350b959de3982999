"""When enough has been searched of a problem: tokens spent, or answers that agree.

A problem's trees grow one after another, and what was sampled in vain behind an answer does not
count, so that what ends it does not depend on what else is being searched, nor on where a run was
stopped and went on.
"""

import collections
import math
from collections.abc import Callable, Sequence

from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record, Status
from rstar_jax.grading import votes
from rstar_jax.search.config import Config
from rstar_jax.search.nodes import HostTree, Node


class Budget:
    """What finished trees have sampled and answered, by problem; kept where a setting needs it."""

    def __init__(self, config: Config, classes: Callable[[Sequence[str]], list[int]]):
        """classes: numbers answers by their equivalence class, as `grading.classes`."""
        self.config, self._classes = config, classes
        self._tokens: collections.Counter[int] = collections.Counter()
        self._answers: dict[int, list[str]] = collections.defaultdict(list)

    def add(self, record: Record) -> None:
        """Counts a finished tree."""
        if not self.config.in_order:
            return
        index = record.problem.index
        self._tokens[index] += int(record.counters['spent_tokens'])
        self._answers[index] += [record.answers[i] for i in record.answer_nodes]

    def forget(self, index: int) -> None:
        """Drops what was counted of a problem of which no tree is left."""
        self._tokens.pop(index, None)
        self._answers.pop(index, None)

    def left(self, problem: Problem) -> float:
        """Tokens that may still be sampled for a problem."""
        return self.config.tokens - self._tokens[problem.index] if self.config.tokens else math.inf

    def done(self, problem: Problem) -> bool:
        """Whether no further tree of a problem is wanted."""
        return self.left(problem) <= 0 or self._agreed(problem, [])

    def ends(self, tree: HostTree, children: list[Node]) -> bool:
        """Whether a tree in flight is finished with these children."""
        if tree.spent >= tree.tokens_left:
            return True
        if all(node.status != Status.ANSWER for node in children):
            return False
        nodes = *tree.nodes, *children
        return self._agreed(tree.problem, [x.answer for x in nodes if x.status == Status.ANSWER])

    def _agreed(self, problem: Problem, more: list[str]) -> bool:
        """Whether the commonest answer leads by as many as wanted."""
        if not self.config.agree or not (answers := self._answers[problem.index] + more):
            return False
        return votes.count(answers, classes=self._classes).lead >= self.config.agree
