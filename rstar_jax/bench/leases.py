"""Leases: idle hosts when trees are shared out by number, and by leases (simulated).

Hosts have `rows` places for trees in flight each; a tree takes a place for a time drawn from the
trees of a run (`--trees=WORKDIR/round1/search`: their sampled tokens), or from a gamma distribution
of the given `spread` (standard deviation / mean). Hosts differ in speed by `uneven` (standard
deviation), and `slow` of them have half of it. static: lease k goes to host k modulo their number;
leases: to whoever has room; both of the sizes that `parallel.dealt` has. Idle is the share of all
places' time, weighed by speed, from the first tree to the end of the last. longest: the time of the
longest tree, as a share of all. leases_per_second: what the one that deals has to answer, on
average, and in the busiest minute but the first.
"""

import collections
import heapq
from collections.abc import Callable, Sequence

import numpy as np

from rstar_jax.errors import UserError
from rstar_jax.parallel import leases


def run(
    *,
    hosts: int = 256,
    problems: int = 747_000,
    rows: int = 32,
    mean_seconds: float = 600.0,
    spread: float = 0.8,
    trees: str = '',
    uneven: float = 0.03,
    slow: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Returns static_idle, leases_idle, hours of both, longest, and the load on who deals."""
    rng = np.random.default_rng(seed)
    seconds = mean_seconds * _drawn(trees, spread, problems, rng)
    speed = np.maximum(rng.normal(1.0, uneven, hosts), 0.5)
    speed[rng.permutation(hosts)[:slow]] *= 0.5
    starts = leases.bounds(problems, hosts)
    count = len(starts) - 1
    work = seconds.sum()

    def shares(times: Sequence[float]) -> float:
        """Idle share: of the speed that all hosts have, what is not used until the end."""
        return 1 - work / (max(times) * rows * speed.sum())

    static = [iter(range(host, count, hosts)) for host in range(hosts)]
    ends, _ = _simulated(lambda host: next(static[host], None), seconds, speed, rows, starts)
    everyone = iter(range(count))
    shared, asked = _simulated(lambda host: next(everyone, None), seconds, speed, rows, starts)
    minutes = collections.Counter(int(time // 60) for time in asked if time >= 60)
    return {
        'static_idle': shares(ends),
        'leases_idle': shares(shared),
        'static_hours': max(ends) / 3600,
        'leases_hours': max(shared) / 3600,
        'longest': float(seconds.max() / max(shared)),
        'leases_per_second': count / max(shared),
        'most_leases_per_second': max(minutes.values(), default=0) / 60,
    }


def _drawn(folder: str, spread: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Times of so many trees, of mean 1."""
    if not folder:
        return rng.gamma(spread**-2, spread**2, count)
    from rstar_jax import data

    with data.TreeStore(folder, writer=None) as store:
        tokens = np.array([record.counters['sampled_tokens'] for record in store])
    if not len(tokens):
        raise UserError(f'--trees={folder}: holds no trees')
    return rng.choice(tokens, count) / tokens.mean()


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
