"""A round's search with the round's models: by this job's processes, or by workers on Ray."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from rstar_jax import data, elastic, parallel, ray_team, search, sources
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
    items = [x for x in search.items(problems, trees) if (x[0]['index'], x[1]) not in store]
    if not items:
        return
    policy, ppm = (sources.searching_path(round_, kind) for kind in ('policy', 'ppm'))
    job = elastic.Job(
        policy=str(policy),
        ppm=None if ppm is None else str(ppm),
        dtype=round_.config.policy.dtype,
        config=sources.search_config(round_.config, rollouts=rollouts),
        seed=sources.search_seed(round_),
        trees=trees.stop,
        problems=problems[:: -(-len(problems) // SAMPLE)],
        keep_seconds=round_.config.job.keep_seconds,
    )
    with ray_team.team(job.begin, round_.config.job.devices) as team:
        yield from elastic.run(items, team, flights=flights, progress=progress, say=say)
