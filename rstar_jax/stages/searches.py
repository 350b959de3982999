"""How stages search: their settings and seeds, and by whom: this job's processes, or Ray's."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import search
from rstar_jax.data.record import Record
from rstar_jax.search import elastic, ray_team
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import SETTINGS
from rstar_jax.stages import checkpoints
from rstar_jax.stages.round import Round

RAY = 'ray'  # --config.job.leases
SEEDS_APART = 1_000_003  # of the searches of two rounds
SYNTHESIS_APART = SEEDS_APART // 2  # of a round's search and its new problems
# Keys of the section `execution`, and what search.Config calls them.
EXECUTION = {
    'isolation': 'isolation',
    'seconds': 'code_seconds',
    'memory_mb': 'code_memory_mb',
    'workers': 'workers',
}
CALLED = {
    'ppm': 'ppm.path',
    'problems': 'data.problems',
    **{name: f'execution.{key}' for key, name in EXECUTION.items()},
}


def isolation(config: ConfigDict) -> str:
    """What execution.isolation asks for: all layers where a server elsewhere has the policy."""
    asked = config.execution.isolation
    elsewhere = checkpoints.is_endpoint(config.policy.path)
    return 'strict' if asked == 'auto' and elsewhere else asked


def search_config(config: ConfigDict, section: str = 'search', **changes: Any) -> search.Config:
    """The search engine's settings: sections search and execution, with `changes`.

    section: whose settings the changes are, for errors.
    """
    fields = {field.name for field in dataclasses.fields(search.Config)}
    given = {key: value for key, value in config.search.items() if key in fields}
    if changes.get('use_ground_truth', True):  # which decides, whatever answers agree
        del given['agree']
    given |= {EXECUTION[key]: value for key, value in config.execution.items()}
    given['isolation'] = isolation(config)
    with of_settings(section):
        return search.Config(**{**given, **changes})


def of_settings(section: str = 'search') -> contextlib.AbstractContextManager[None]:
    """Within it, errors of a search's arguments are of the section's settings, or of `search`'s."""
    fields = (field.name for field in dataclasses.fields(search.Config))
    shared = {name: f'search.{name}' for name in fields if f'{section}.{name}' not in SETTINGS}
    return errors.of_setting(section, {**shared, **CALLED})


def search_seed(round_: Round) -> int:
    """The seed of the round's search: another in each, so that problems are not tried as before."""
    return round_.config.seed + SEEDS_APART * (round_.number - 1)


def synthesis_seed(round_: Round) -> int:
    """The seed of what the round writes: its search is not to find again what has voted there."""
    return search_seed(round_) + SYNTHESIS_APART


def by_ray(round_: Round) -> bool:
    """Whether workers on a Ray cluster search, in place of this job's processes."""
    return round_.config.job.leases == RAY


def searcher(round_: Round, say: Callable[[str], None]) -> tuple:
    """What stands for `search.run` in the round's search, and the policy and the PPM for it.

    say: gets a line that stays.
    """
    if by_ray(round_):
        run = on_ray(round_.config, say)
        return run, *(checkpoints.searching_path(round_, kind) for kind in ('policy', 'ppm'))
    return search.run, *(checkpoints.searching_model(round_, kind) for kind in ('policy', 'ppm'))


def on_ray(settings: ConfigDict, say: Callable[[str], None]) -> Callable[..., Iterator[Record]]:
    """`search.run` by workers on Ray, for models by the paths that these can read.

    settings: the round's. say: as of `searcher`.
    """
    if jax.process_count() > 1:
        raise UserError(
            'job.leases',
            RAY,
            f'{jax.process_count()} processes were started',
            'start one: it deals the trees, and its workers are on the Ray cluster',
        )

    def run(problems, policy, ppm, *, config, seed, trees, share):
        every = search.items(problems, range(trees))
        items = [item for item in every if (item[0].index, item[1]) not in share.skip]
        if not items:
            return
        remote = checkpoints.is_endpoint(policy)
        job = elastic.Job(
            policy=checkpoints.endpoint(settings) if remote else _anywhere(policy),
            ppm=None if ppm is None else _anywhere(ppm),
            dtype=settings.policy.dtype,
            weights=settings.policy.weights,
            config=config,
            seed=seed,
            trees=trees,
            total=len(items),
            keep_seconds=settings.job.keep_seconds,
            compiled=settings.compiled,
        )
        team = ray_team.RayTeam(job.begin, settings.job.devices)
        with contextlib.closing(team):
            kept, told = share.snapshots, share.progress
            yield from elastic.run(items, team, snapshots=kept, progress=told, say=say)

    return run


def _anywhere(path: str | pathlib.Path) -> str:
    """A model's path for a process that works in another folder; a hub name as it is."""
    path = pathlib.Path(path)
    return str(path.absolute() if path.exists() else path)
