"""Trees made by hand for the tests of the package."""

import numpy as np

from rstar_jax.data.problem import Problem
from rstar_jax.data.record import Record, Status


def tree(problem, number, answers, tokens=10.0, likelihoods=None, **counters):
    """A root, one step, and below it an answer node for each (answer, score, correct).

    likelihoods: of the answers' trajectories.
    """
    n = 2 + len(answers)
    return Record(
        problem=Problem.of(problem),
        tree=number,
        prompt='',
        texts=['', 'x = 1 <b>\n', *(f'\\boxed{{{a}}}' for a, _, _ in answers)],
        tokens=[[], [1, 2], *([3] for _ in answers)],
        parent=np.array([-1, 0, *[1] * len(answers)], np.int32),
        visits=np.arange(n, 0, -1).astype(np.int32),
        value_sum=np.ones(n, np.float32),
        score=np.array([np.nan, 0.1, *(s for _, s, _ in answers)], np.float32),
        depth=np.array([0, 1, *[2] * len(answers)], np.int32),
        status=np.array([Status.OPEN] * 2 + [Status.ANSWER] * len(answers), np.uint8),
        errors=np.zeros(n, np.int32),
        answers=['', '', *(a for a, _, _ in answers)],
        code=[''] * n,
        outputs=[''] * n,
        correct=[False, False, *(c for _, _, c in answers)],
        counters={'sampled_tokens': tokens, **counters},
        likelihood=None
        if likelihoods is None
        else np.array([0.0, -1.0, *(total + 1 for total in likelihoods)], np.float32),
    )
