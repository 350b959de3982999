"""Judging answers: is this one equivalent to that one.

    grading.equivalent(r'\\frac{1}{2}', '0.5')        # True
    grading.equivalent_many([(answer, truth), ...])   # in parallel, bounded in time and memory
    grading.classes(['0.5', '1/2', '2'])              # [0, 0, 1]

Text and plain numbers are compared in this process; the rest goes to warm worker processes that
use math-verify and sympy. Nothing here imports jax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rstar_jax.grading.grader import (
        Grader,
        classes,
        equivalent,
        equivalent_many,
        set_workers,
        shared,
    )

__all__ = ['Grader', 'classes', 'equivalent', 'equivalent_many', 'set_workers', 'shared']


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from rstar_jax.grading import grader

    return getattr(grader, name)
