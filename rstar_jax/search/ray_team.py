"""The workers of `elastic` as Ray actors: one for each host, or for each group of its devices.

A node that joins the cluster gets its actors within seconds; those of a node that leaves are lost.
The cluster is one that runs already (`ray start`, see launch/ray.sh): its address is in
RAY_ADDRESS, or is that of this machine's.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from rstar_jax.execution import workers
from rstar_jax.search.elastic import Answer, Item, Member
from rstar_jax.settings.errors import UserError, one_line

LOOK = 2.0  # seconds between two looks at the cluster's nodes
ANSWERS = 1.0  # seconds that `answers` waits at most
ACCELERATORS = ('TPU', 'GPU')  # what Ray calls them


class _Actor:
    """A Member in a process of its own; processes: so many share the host's cores."""

    def __init__(self, make: Callable[[], tuple[Callable[..., Any], float]], processes: int):
        # Sets the environment as for a command: else JAX takes three quarters of a GPU.
        from rstar_jax.job import command  # noqa: F401

        workers.share(processes)
        self._member = Member(*make())

    def poll(self, items: list[Item]) -> Answer:
        return self._member.poll(items)


class RayTeam:
    """An `elastic.Team` on a Ray cluster.

    Args:
      make: called in each worker's process; gives the arguments of its `Member`.
      devices: accelerators that a worker has; 0: all of its host's.
    """

    def __init__(self, make: Callable[[], tuple[Callable[..., Any], float]], devices: int = 0):
        self._ray, self._make, self._devices = _connected(), make, devices
        self._actors: dict[str, Any] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._waiting: dict[Any, str] = {}
        self._looked, self._count = -LOOK, 0

    def joined(self) -> list[str]:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return []
        self._looked = now
        fresh, taken = [], set(self._places.values())
        for node in self._ray.nodes():
            groups = _groups(node, self._devices)
            for number, options in enumerate(groups):
                if node['Alive'] and (node['NodeID'], number) not in taken:
                    fresh.append(self._start(node, number, options, len(groups)))
        return fresh

    def _start(
        self, node: dict[str, Any], number: int, options: dict[str, Any], processes: int
    ) -> str:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._count += 1
        name = f'worker {self._count} on {node["NodeManagerHostname"]}'
        there = NodeAffinitySchedulingStrategy(node['NodeID'], soft=False)
        actor = self._ray.remote(_Actor).options(scheduling_strategy=there, **options)
        self._actors[name] = actor.remote(self._make, processes)
        self._places[name] = node['NodeID'], number
        return name

    def ask(self, worker: str, items: list[Item]) -> None:
        self._waiting[self._actors[worker].poll.remote(items)] = worker

    def answers(self) -> list[tuple[str, Answer | None]]:
        if not self._waiting:
            time.sleep(ANSWERS)
            return []
        waiting = list(self._waiting)
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=ANSWERS)
        more, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        found = []
        for reference in dict.fromkeys([*ready, *more]):
            worker = self._waiting.pop(reference)
            try:
                found.append((worker, self._ray.get(reference)))
            except self._ray.exceptions.RayTaskError:
                raise  # an error of ours
            except self._ray.exceptions.RayError:
                self.drop(worker)
                found.append((worker, None))
        return found

    def drop(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        self._places.pop(worker, None)
        self._waiting = {x: name for x, name in self._waiting.items() if name != worker}
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def close(self) -> None:
        """Ends all workers and leaves the cluster as it is."""
        for worker in list(self._actors):
            self.drop(worker)
        self._ray.shutdown()


def _connected() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError('package ray', expected='not there', remedy='pip install ray') from None
    if not ray.is_initialized():
        try:
            ray.init(address='auto', log_to_driver=False, logging_level='ERROR')
        except ConnectionError as error:
            raise UserError(
                'Ray cluster',
                expected=f'not found ({one_line(error)})',
                remedy='start one with `ray start --head`, or see launch/ray.sh',
            ) from None
    return ray


def _groups(node: dict[str, Any], devices: int) -> list[dict[str, Any]]:
    """What each worker of a node asks of Ray."""
    resources = node.get('Resources', {})
    for kind in ACCELERATORS:
        count = int(resources.get(kind, 0))
        if count:
            size = min(devices or count, count)
            one = {'num_gpus': size} if kind == 'GPU' else {'resources': {kind: size}}
            return [one] * (count // size)
    return [{'num_cpus': 1}] if resources.get('CPU', 0) >= 1 else []
