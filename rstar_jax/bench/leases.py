"""Leases: idle hosts when trees are shared out by number, and by leases (simulated).

Hosts have `rows` places for trees in flight each; a tree takes a place for a time drawn from the
trees of a run (`--trees=WORKDIR/round1/search`: their sampled tokens; or an interchange file: the
length of their texts), of mean `mean_seconds`, each together with its question. It is multiplied by
a noise of mean 1 (`noise`: deviation of its logarithm), so that no two trees are alike. Without
`trees` times are of a gamma distribution of the given `spread` (standard deviation / mean), and
questions tell nothing. Hosts differ in speed by `uneven` (standard deviation), and `slow` of them
have half of it.

static: lease k goes to host k modulo their number; leases: to whoever has room; both of the sizes
that `leases.dealt` has, and long questions first (`search.items`); as_given: leases in the order
of the drawing. Idle is the share of all places' time, weighed by speed, from the first tree to the
end of the last. longest: the time of the longest tree, as a share of all. leases_per_second: what
the one that deals has to answer, on average, and in the busiest minute but the first.
"""

import collections
import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rstar_jax.job import leases
from rstar_jax.settings.errors import UserError


def run(
    *,
    hosts: int = 256,
    problems: int = 747_000,
    rows: int = 32,
    mean_seconds: float = 600.0,
    spread: float = 0.8,
    trees: str = '',
    noise: float = 0.25,
    uneven: float = 0.03,
    slow: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Returns idle shares and hours, longest, spread, and the load on who deals."""
    for name, count in (('hosts', hosts), ('problems', problems), ('rows', rows)):
        if not count:
            raise UserError(f'--{name}=0: expected at least 1')
    rng = np.random.default_rng(seed)
    times, questions = _drawn(trees, spread, noise, problems, rng)
    given = mean_seconds * times
    # As search.items has them.
    seconds = given[np.argsort(-questions, kind='stable')]
    speed = np.maximum(rng.normal(1.0, uneven, hosts), 0.5)
    speed[rng.permutation(hosts)[:slow]] *= 0.5
    starts = leases.bounds(problems, hosts)
    count = len(starts) - 1
    work = seconds.sum()

    def idle(hours: float) -> float:
        """Of the speed that all hosts have, what is not used until the end."""
        return 1 - work / (3600 * hours * rows * speed.sum())

    def ended(take: Callable[[int], int | None], times: np.ndarray) -> tuple[float, list[float]]:
        ends, asked = _simulated(take, times, speed, rows, starts)
        return max(ends) / 3600, asked

    own = [iter(range(host, count, hosts)) for host in range(hosts)]
    static, _ = ended(lambda host: next(own[host], None), seconds)
    everyone, again = iter(range(count)), iter(range(count))
    shared, asked = ended(lambda host: next(everyone, None), seconds)
    as_given, _ = ended(lambda host: next(again, None), given)
    minutes = collections.Counter(int(time // 60) for time in asked if time >= 60)
    return {
        'static_idle': idle(static),
        'leases_idle': idle(shared),
        'as_given_idle': idle(as_given),
        'static_hours': static,
        'leases_hours': shared,
        'longest': float(seconds.max() / 3600 / shared),
        'spread': float(seconds.std() / seconds.mean()),
        'leases_per_second': count / 3600 / shared,
        'most_leases_per_second': max(minutes.values(), default=0) / 60,
    }


def _drawn(
    path: str, spread: float, noise: float, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Times of so many trees, of mean 1, and lengths of their questions."""
    if not path:
        times = rng.gamma(spread**-2, spread**2, count) if spread else np.ones(count)
        return times, np.zeros(count)
    found = np.array(list(_measured(path)), float).reshape(-1, 2)
    if not len(found):
        raise UserError(f'--trees={path}: holds no trees')
    times, questions = found[rng.integers(len(found), size=count)].T
    times = times / found[:, 0].mean()
    return times * rng.lognormal(-(noise**2) / 2, noise, count), questions


def _measured(path: str) -> Iterator[tuple[int, int]]:
    """(size, length of the question) of a run's trees."""
    from rstar_jax import data

    if path.endswith('.jsonl'):
        for tree in data.import_trees(path):
            texts = [node['text'] or '' for node in tree['rstar'].values()]
            yield len(''.join(texts)), len(tree['question'])
        return
    with data.TreeStore(path, writer=None) as store:
        for record in store:
            yield record.counters['sampled_tokens'], len(record.problem['question'])


def _simulated(
    take: Callable[[int], int | None],
    seconds: np.ndarray,
    speed: np.ndarray,
    rows: int,
    starts: Sequence[int],
) -> tuple[list[float], list[float]]:
    """(when each host was done, when leases were taken): a host takes one when a place is free
    and it has no tree left to put there."""
    queues: list[collections.deque] = [collections.deque() for _ in speed]
    ends, asked = [0.0] * len(speed), []
    free = [(0.0, host) for _ in range(rows) for host in range(len(speed))]
    heapq.heapify(free)
    while free:
        now, host = heapq.heappop(free)
        if not queues[host]:
            lease = take(host)
            if lease is None:
                continue
            asked.append(now)
            queues[host].extend(seconds[starts[lease] : starts[lease + 1]].tolist())
        end = now + queues[host].popleft() / speed[host]
        ends[host] = max(ends[host], end)
        heapq.heappush(free, (end, host))
    return ends, asked
