"""Settings of earlier versions: where they are now. Workdirs hold them, and files of users."""

from collections.abc import Mapping
from typing import Any

from rstar_jax.settings.table import SETTINGS, TRAININGS, training_rows

_OF_ALL_SEARCHES = ('max_depth', 'width', 'exploration', 'failed_steps', 'examples', 'step_tokens')
_OF_ALL_SEARCHES += ('path_tokens', 'top_p', 'repetition', 'agree')
# name: what it is called now
MOVED = {
    'eval.folder': 'data.folder',
    **{f'eval.{key}': f'search.{key}' for key in _OF_ALL_SEARCHES},
    **{
        f'training.{kind}.{key}': row.name
        for kind in TRAININGS
        for key, row in training_rows(kind).items()
        if f'training.{kind}.{key}' not in SETTINGS
    },
    **{f'training.{kind}.checkpoint_minutes': 'job.keep_seconds' for kind in TRAININGS},
}


def today(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a stage as a workdir holds them, under the names that they have now."""
    moved = {MOVED[name]: value for name, value in recorded.items() if name in MOVED}
    return {**moved, **{name: value for name, value in recorded.items() if name not in MOVED}}
