"""One final answer out of the answers of several trajectories (paper, section 4.1 and appendix).

Every search tree of a problem stands for one trajectory: its answer with the highest PPM score.
Only in `pooled` all answers of all trees vote, weighted by their scores: where these are far apart
that is the PPM's choice, and where they are close the majority of what was sampled.
Answers are grouped by mathematical equivalence, not by spelling: 1/2 and 0.5 vote together.
"""

import functools
import math
from collections.abc import Sequence

from rstar_jax import grading
from rstar_jax.grading import votes

Candidate = tuple[str, float]  # an answer ('' where the tree found none) and its score in [-1, 1]

MODES = ('best', 'majority', 'weighted', 'pooled', 'any')


def top_of(trajectories: int) -> int:
    """How many of so many trajectories vote in the majority: half of them, but 4 to 8."""
    return min(8, max(4, trajectories // 2))


def best(candidates: Sequence[Candidate]) -> str:
    """Returns the answer with the highest score, the first of equals; '' where there is none."""
    ranked = _ranked(candidates)
    return ranked[0][0] if ranked else ''


def majority(candidates: Sequence[Candidate], top: int) -> str:
    """Returns the commonest answer among the `top` highest scores.

    Of equally common answers the one whose best score is higher wins.
    """
    return _vote([(answer, 1.0) for answer, _ in _ranked(candidates)[:top]])


def weighted(candidates: Sequence[Candidate]) -> str:
    """Returns the answer with the largest sum of weights, (1 + score) / 2 for each trajectory.

    Scores lie in [-1, 1]. Shifted, a trajectory that the PPM dislikes counts for little; as they
    are, many of them would count against the answer that they share.
    """
    return _vote([(answer, (1 + score) / 2) for answer, score in _ranked(candidates)])


def answers(candidates: Sequence[Candidate]) -> list[str]:
    """Returns the answers there are; `any` asks whether one of them is right."""
    return [answer for answer, _ in _ranked(candidates)]


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drops trajectories without an answer; highest score first, in their order where equal."""
    found = [(a, -1.0 if math.isnan(s) else s) for a, s in candidates if a]
    return sorted(found, key=lambda candidate: -candidate[1])


@functools.lru_cache(20_000)
def _classes(answers: tuple[str, ...]) -> list[int]:
    """Several modes vote on the same answers of a problem, which workers compare for seconds."""
    return grading.classes(answers)


def _vote(found: list[Candidate]) -> str:
    if not found:
        return ''
    answers, weights = zip(*found)
    return answers[votes.count(answers, weights, _classes).winner]  # of equals the best scored
