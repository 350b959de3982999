"""Training of the policy (SFT) and of reward models, out of a round's examples.

    policy, metrics = training.sft(policy, examples, training.settings('sft'), directory)
    ppm, metrics = training.ppm(policy, examples, training.settings('ppm'), directory)

Both go on where they were stopped, and return at once when `directory` holds their result.

What trains is imported when it is used: whoever counts FLOPs needs no checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rstar_jax.training.defaults import LOSSES, settings

if TYPE_CHECKING:
    from rstar_jax.training.fit import check, ppm, sft, start_dtype

__all__ = [
    'LOSSES',
    'check',
    'ppm',
    'settings',
    'sft',
    'start_dtype',
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from rstar_jax.training import fit

    return getattr(fit, name)
