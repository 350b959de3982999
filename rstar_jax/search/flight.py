"""Trees in flight as bytes: what a tree has found so far, from which it grows on.

The candidates that are being sampled are left out: they come again as they were, for their keys
follow from their place in the tree.
"""

import dataclasses
import time
from typing import Any, Protocol

import numpy as np
from flax import serialization

from rstar_jax.search import tree as trees_lib

Key = tuple[int, int]  # problem index, tree number

# Of a Task, what the walk or the loop makes anew when the tree goes on.
LEFT_OUT = ('problem', 'nodes', 'candidates', 'started')


class Flights(Protocol):
    """Where trees in flight are kept."""

    def due(self) -> bool:
        """Whether it is time to keep them again."""

    def keep(self, trees: dict[Key, bytes]) -> None:
        """Keeps all trees that are in flight now, in place of those kept before."""

    def find(self, key: Key) -> bytes | None:
        """The tree as it was kept last, None where it was not."""


def pack(task: Any, tree: trees_lib.Tree) -> bytes:
    """A tree in flight: the host's side (`loop.Task`), and its row of the arrays, on the host."""
    size = int(tree.size)
    fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    host = {name: value for name, value in fields.items() if name not in LEFT_OUT}
    arrays = {f.name: np.asarray(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
    arrays = {name: x[:size] if x.ndim else x for name, x in arrays.items()}
    host['origin'] = [list(origin) for origin in task.origin]
    host['sampled'] -= sum(c.ended.sampled for c in task.candidates if c is not None)
    index, number = task.key
    return serialization.msgpack_serialize(
        {
            'index': index,
            'number': number,
            'host': host,
            'arrays': arrays,
            'seconds': time.monotonic() - task.started,
        }
    )


def key_of(data: bytes) -> tuple[Key, int]:
    """Which tree it is, and how many rollouts of it are done."""
    fields = serialization.msgpack_restore(data)
    return (fields['index'], fields['number']), fields['host']['rollouts']


def unpack(data: bytes, task: Any, nodes: int) -> tuple[trees_lib.Tree, list[int]] | None:
    """Makes `task`, which has not begun, the one that was packed.

    nodes: room of a tree (N).

    Returns:
      The tree's row of the arrays, and the nodes from the root to its cursor; None where it does
      not fit, and is to begin anew.
    """
    fields = serialization.msgpack_restore(data)
    saved, host = fields['arrays'], fields['host']
    size = int(saved['size'])
    if size > nodes or host['prompt'] != task.prompt or host['seed'] != task.seed:
        return None
    for name, value in host.items():
        setattr(task, name, value)
    task.origin = [tuple(origin) for origin in task.origin]
    task.started = time.monotonic() - fields['seconds']
    fresh = trees_lib.fresh(nodes)
    row = {}
    for name, value in saved.items():
        row[name] = value
        if value.ndim:
            row[name] = np.array(getattr(fresh, name))
            row[name][:size] = value
    path, node = [], int(saved['cursor'])
    while node != trees_lib.NO_NODE:
        path.append(node)
        node = int(saved['parent'][node])
    return trees_lib.Tree(**row), path[::-1]
