"""Answers that mean the same vote together: the one way in which answers are counted."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

from rstar_jax.grading import grader


@dataclasses.dataclass(frozen=True)
class Votes:
    """How several answers have voted, by their places.

    Attributes:
      classes: of each answer, equivalent ones sharing a number.
      sums: of each class, in the order of its first answer: the weights of its answers.
    """

    classes: list[int]
    sums: dict[int, float]

    @property
    def winner(self) -> int:
        """The place of the first answer of the class of most votes, of equals the first."""
        return self.classes.index(max(self.sums, key=self.sums.__getitem__))

    @property
    def lead(self) -> float:
        """By how much it is ahead of the next class."""
        first, second, *_ = [*sorted(self.sums.values(), reverse=True), 0, 0]
        return first - second

    def of(self, place: int) -> float:
        """The votes of the class of one answer."""
        return self.sums[self.classes[place]]


def count(
    answers: Sequence[str],
    weights: Sequence[float] | None = None,
    classes: Callable[[Sequence[str]], list[int]] = grader.classes,
) -> Votes:
    """Counts the votes of some answers.

    Args:
      answers: at least one.
      weights: of each; 1 by default.
      classes: numbers answers by their equivalence class.
    """
    found = classes(answers)
    sums: dict[int, float] = collections.defaultdict(int)
    for class_, weight in zip(found, [1] * len(found) if weights is None else weights):
        sums[class_] += weight
    return Votes(found, dict(sums))
