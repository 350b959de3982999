"""When enough has been searched of a problem: tokens spent, or answers that agree.

A problem's trees grow one after another, and what was sampled in vain behind an answer does not
count, so that what ends it does not depend on what else is being searched, nor on where a run was
stopped and went on.
"""

import collections
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from rstar_jax.search.config import Config
from rstar_jax.search.host import HostTree, Node
from rstar_jax.search.record import Record, Status

JOB = '\0job'  # of a problem in a Live search; no row of a data set has such a field


def name_of(problem: dict[str, Any]) -> Hashable:
    """What tells a problem from others; in a Live search all have one index."""
    return problem.get(JOB, problem['index'])


class Spending:
    """What finished trees have sampled and answered, by problem; kept where a setting needs it."""

    def __init__(self, config: Config, classes: Callable[[Sequence[str]], list[int]]):
        """classes: numbers answers by their equivalence class, as `grading.classes`."""
        self.config, self._classes = config, classes
        self._tokens: collections.Counter[Hashable] = collections.Counter()
        self._answers: dict[Hashable, list[str]] = collections.defaultdict(list)

    def add(self, record: Record) -> None:
        """Counts a finished tree."""
        if not self.config.in_order:
            return
        name = name_of(record.problem)
        sampled = record.counters['sampled_tokens']  # all that earlier versions counted
        self._tokens[name] += int(record.counters.get('spent_tokens', sampled))
        self._answers[name] += [record.answers[i] for i in record.answer_nodes]

    def forget(self, name: Hashable) -> None:
        """Drops what was counted of a problem of which no tree is left."""
        self._tokens.pop(name, None)
        self._answers.pop(name, None)

    def left(self, problem: dict[str, Any]) -> float:
        """Tokens that may still be sampled for a problem."""
        sampled = self._tokens[name_of(problem)]
        return self.config.tokens - sampled if self.config.tokens else math.inf

    def done(self, problem: dict[str, Any]) -> bool:
        """Whether no further tree of a problem is wanted."""
        return self.left(problem) <= 0 or self._agreed(self._answers[name_of(problem)])

    def ends(self, tree: HostTree, children: list[Node]) -> bool:
        """Whether a tree in flight is finished with these children."""
        if tree.spent >= tree.tokens_left:
            return True
        if not self.config.agree or all(node.status != Status.ANSWER for node in children):
            return False
        answers = [x.answer for x in (*tree.nodes, *children) if x.status == Status.ANSWER]
        return self._agreed(self._answers[name_of(tree.problem)] + answers)

    def _agreed(self, answers: list[str]) -> bool:
        """Whether the commonest answer leads by as many as wanted."""
        if not self.config.agree or not answers:
            return False
        common = collections.Counter(self._classes(answers)).most_common(2)
        counts = [count for _, count in common] + [0]
        return counts[0] - counts[1] >= self.config.agree
