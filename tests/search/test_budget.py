"""What is counted of a problem until its trees have spent enough, or agree."""

import types

from rstar_jax import grading, search
from rstar_jax.data.problem import Problem
from rstar_jax.search.budget import Budget


def test_a_problem_that_is_forgotten_begins_anew():
    """A service would keep what it counted of every question for ever."""
    config = search.Config(tokens=100, agree=1, use_ground_truth=False)
    budget, problem = Budget(config, grading.classes), Problem(7, 'q')
    record = types.SimpleNamespace(
        problem=problem, counters={'spent_tokens': 60.0}, answers=['', '5'], answer_nodes=[1]
    )
    assert budget.left(problem) == 100 and not budget.done(problem)
    budget.add(record)
    assert budget.left(problem) == 40 and budget.done(problem)
    budget.forget(7)
    assert budget.left(problem) == 100 and not budget.done(problem)
