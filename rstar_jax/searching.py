"""Searches of a round and of its evaluation: by this job's processes, or by workers on Ray."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import data, elastic, parallel, ray_team, search, sources
from rstar_jax.errors import UserError
from rstar_jax.search import Record
from rstar_jax.sources import Round

RAY = 'ray'  # --config.job.leases
SAMPLE = 512  # problems that a worker on Ray is told of in advance

# grow(problems, numbers of their trees, rollouts, trees that are done, progress) -> Records
Grow = Callable[[list[dict[str, Any]], range, int, data.TreeStore, Callable], Iterator[Record]]


def begin(round_: Round, flights: data.Flights, say: Callable[[str], None]) -> Grow:
    """What grows the round's trees, each process's share of them.

    flights: keeps trees in flight. say: gets a line that stays.
    """
    if round_.config.job.leases == RAY:
        return functools.partial(_on_ray, round_, flights, say)
    models = sources.searching_policy(round_), sources.searching_ppm(round_)
    return functools.partial(_here, round_, flights, models)


def _here(round_, flights, models, problems, trees, rollouts, store, progress) -> Iterator[Record]:
    config = sources.search_config(round_.config, rollouts=rollouts)
    dealt = trees[:1] if config.in_order else trees  # in order, one stands for all of a problem
    items = search.items(problems, dealt)
    name = f'{round_.folder.name} search {trees.start}'
    before = {(p['index'], tree) for p in problems for tree in range(trees.start)}
    return search.run(
        problems,
        *models,
        config=config,
        seed=sources.search_seed(round_),
        trees=trees.stop,
        skip=frozenset(store.keys() | before),
        earlier=store,
        progress=progress,
        leases=parallel.dealt(items, name, round_.config.job.leases),
        flights=flights,
    )


def _on_ray(round_, flights, say, problems, trees, rollouts, store, progress) -> Iterator[Record]:
    run = on_ray(round_.config, round_.config.policy.weights, say, flights)
    before = {(p['index'], tree) for p in problems for tree in range(trees.start)}
    return run(
        problems,
        *(sources.searching_path(round_, kind) for kind in ('policy', 'ppm')),
        config=sources.search_config(round_.config, rollouts=rollouts),
        seed=sources.search_seed(round_),
        trees=trees.stop,
        skip=store.keys() | before,
        progress=progress,
    )


def evaluating(round_: Round, base: bool, say: Callable[[str], None]) -> Callable | None:
    """What stands in for `search.run` in an evaluation, as of `sources.evaluated_models`.

    None where this job's processes share it out.
    """
    if round_.config.job.leases != RAY:
        return None
    policy, ppm = sources.evaluated_paths(round_, base)
    weights = '' if base or round_.number else round_.config.policy.weights
    run = on_ray(round_.config, weights, say)

    def stand_in(problems, _, judge, **given):
        """Whether the PPM guides a strategy, the evaluation knows."""
        return run(problems, policy, None if judge is None else ppm, **given)

    return stand_in


def on_ray(
    settings: ConfigDict,
    weights: str,
    say: Callable[[str], None],
    flights: data.Flights | None = None,
) -> Callable[..., Iterator[Record]]:
    """`search.run` by workers on Ray, for models by the paths that these can read.

    settings: the round's. weights: '' or int8. flights, say: as of `begin`.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'--config.job.leases=ray: {jax.process_count()} processes were started; one deals '
            'the trees, and its workers are on the Ray cluster'
        )

    def run(problems, policy, ppm, *, config, seed, trees, skip, progress, **_):
        items = [
            x for x in search.items(problems, range(trees)) if (x[0]['index'], x[1]) not in skip
        ]
        if not items:
            return
        job = elastic.Job(
            policy=str(policy),
            ppm=None if ppm is None else str(ppm),
            dtype=settings.policy.dtype,
            weights=weights,
            config=config,
            seed=seed,
            trees=trees,
            problems=problems[:: -(-len(problems) // SAMPLE)],
            keep_seconds=settings.job.keep_seconds,
            compiled=settings.compiled,
        )
        with ray_team.team(job.begin, settings.job.devices) as team:
            yield from elastic.run(items, team, flights=flights, progress=progress, say=say)

    return run
