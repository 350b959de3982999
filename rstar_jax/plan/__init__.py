"""Does it fit, and how long does it take: before a run, and without the hardware.

    __main__            python -m rstar_jax.plan: published models on this machine's devices
    slices              chips of a TPU slice, as the compiler for it describes them
    compiled_search     what a search takes on given chips, compiled from shapes alone
    compiled_training   the same of a training; collectives: what chips exchange
    tables              --plan=TOPOLOGY: both, in lines of text
    small_run, hours    --plan=TOPOLOGY --problems=N: the whole job, by what a small run was like

What weights, gradients and moments hold is counted by `training.memory`, as the check before a run
does.
"""

from rstar_jax.plan.hours import whole_job
from rstar_jax.plan.tables import on_slices

__all__ = ['on_slices', 'whole_job']
