"""Running model-written Python: a pool of warm workers, a sandboxed child for every program.

    with execution.Pool(limits=execution.Limits(seconds=10)) as pool:
        future = pool.submit(['x = 16', 'print(x)'])      # cells: the branch so far, then the step
        future.result()                                   # Result(ok=True, output='16', ...)

Nothing here imports jax, and nothing is imported before it is used: workers stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rstar_jax.execution.limits import Limits, Result, format_output
    from rstar_jax.execution.pool import Pool, run_many
    from rstar_jax.execution.workers import check

__all__ = ['Limits', 'Pool', 'Result', 'check', 'format_output', 'run_many']


def __getattr__(name: str):
    if name in ('Limits', 'Result', 'format_output'):
        from rstar_jax.execution import limits as module
    elif name in ('Pool', 'run_many'):
        from rstar_jax.execution import pool as module
    elif name == 'check':
        from rstar_jax.execution import workers as module
    else:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(module, name)
