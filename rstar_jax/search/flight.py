"""Trees in flight as bytes: what a tree has found so far, from which it grows on.

The candidates that are being sampled are left out: they come again as they were, for their keys
follow from their place in the tree.
"""

import dataclasses
import io
import time
from typing import Any, Protocol

import msgpack
import numpy as np
from flax import serialization

from rstar_jax.data.record import Status
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.host import HostTree, Node, Step

Key = tuple[int, int]  # problem index, tree number

# What the walk or the loop makes anew when the tree goes on.
LEFT_OUT = ('problem', 'path', 'candidates', 'started', 'tokens_left', 'nodes')
PENDING = ('run', 'grade')  # of a node, done by then


class Flights(Protocol):
    """Where trees in flight are kept."""

    def due(self) -> bool:
        """Whether it is time to keep them again."""

    def keep(self, trees: dict[Key, bytes]) -> None:
        """Keeps all trees that are in flight now, in place of those kept before."""

    def find(self, key: Key) -> bytes | None:
        """The tree as it was kept last, None where it was not."""


def pack(tree: HostTree, arrays: trees_lib.Tree) -> bytes:
    """A tree in flight: the host's side, and its row of the arrays, on the host."""
    size = int(arrays.size)
    host = {name: value for name, value in vars(tree).items() if name not in LEFT_OUT}
    host['sampled'] -= sum(node.step.sampled for node in tree.candidates if node is not None)
    held = {f.name: np.asarray(getattr(arrays, f.name)) for f in dataclasses.fields(arrays)}
    index, number = tree.key
    return serialization.msgpack_serialize(
        {
            'index': index,  # the first three are read by `key_of`
            'number': number,
            'host': host,
            'nodes': [_packed_node(node) for node in tree.nodes],
            'arrays': {name: x[:size] if x.ndim else x for name, x in held.items()},
            'seconds': time.monotonic() - tree.started,
        },
        in_place=True,
    )


def _packed_node(node: Node) -> dict[str, Any]:
    fields = {name: value for name, value in vars(node).items() if name not in PENDING}
    return {**fields, 'step': dict(vars(node.step)), 'status': int(node.status)}


def key_of(data: bytes) -> tuple[Key, int]:
    """Which tree it is, and how many rollouts of it are done; nothing else is decoded."""
    unpacker = msgpack.Unpacker(io.BytesIO(data), max_buffer_size=len(data))
    unpacker.read_map_header()
    (_, index), (_, number), (_, host) = ((unpacker.unpack(), unpacker.unpack()) for _ in range(3))
    return (index, number), host['rollouts']


def unpack(data: bytes, tree: HostTree, nodes: int) -> tuple[trees_lib.Tree, list[int]] | None:
    """Makes `tree`, which has not begun, the one that was packed.

    nodes: room of a tree (N).

    Returns:
      The tree's row of the arrays, and the nodes from the root to its cursor; None where it does
      not fit, and is to begin anew.
    """
    fields = serialization.msgpack_restore(data)
    saved, host = fields['arrays'], fields['host']
    size = int(saved['size'])
    if size > nodes or host['prompt'] != tree.prompt or host['seed'] != tree.seed:
        return None
    for name, value in host.items():
        setattr(tree, name, value)
    known = {field.name for field in dataclasses.fields(Node)}  # another version has others
    tree.nodes = []
    for node in fields['nodes']:
        node |= {'step': Step(**node['step']), 'status': Status(node['status'])}
        tree.nodes.append(Node(**{name: node[name] for name in known & node.keys()}))
    tree.started = time.monotonic() - fields['seconds']
    row = {}
    for name, value in vars(trees_lib.fresh(nodes)).items():
        row[name] = saved[name]
        if value.ndim:
            row[name] = np.array(value)
            row[name][:size] = saved[name]
    path, node = [], int(saved['cursor'])
    while node != trees_lib.NO_NODE:
        path.append(node)
        node = int(saved['parent'][node])
    return trees_lib.Tree(**row), path[::-1]
