"""The padded arguments of one call that computes known tokens behind paths.

A call has R rows of T tokens. What is computed for a tree, its segment, takes as many rows as it
needs, one after another: only the last is padded, so one shape serves a program's output of ten
tokens, a step of forty and a prompt.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Shape = tuple[int, int]  # rows of a device, tokens of each


@struct.dataclass
class Known:
    """What a call computes; rows in use come first.

    Attributes:
      trees: i32[R], each row's tree; one that does not exist for rows that are not used.
      tokens: i32[R,T].
      counts: i32[R], tokens of each row; 0 for none.
      starts: i32[R], where each row's segment goes: behind so many tokens of its path, or, of a
        step that is scored, into this cell.
      first: i32[R], the row on its device that each row's segment begins with.
    """

    trees: jax.Array
    tokens: jax.Array
    counts: jax.Array
    starts: jax.Array
    first: jax.Array

    def offsets(self) -> jax.Array:
        """i32[R]: where in its segment each row of one device begins."""
        return (jnp.arange(len(self.first)) - self.first) * self.tokens.shape[1]


class Batch:
    """Segments of all devices; `known`, whose parts lie one after another, takes them in."""

    def __init__(self, devices: int, shape: Shape, nowhere: int):
        """nowhere: a tree that does not exist."""
        self._rows, self._length = shape
        count = devices * self._rows
        self.known = Known(
            trees=np.full(count, nowhere, np.int32),
            tokens=np.zeros((count, self._length), np.int32),
            counts=np.zeros(count, np.int32),
            starts=np.zeros(count, np.int32),
            first=np.tile(np.arange(self._rows, dtype=np.int32), devices),
        )
        self._used = [0] * devices

    def put(self, device: int, tree: int, tokens: list[int], start: int) -> int:
        """Puts a segment into the next rows of a device; returns the last of them, of all rows."""
        used, known = self._used[device], self.known
        rows = -(-len(tokens) // self._length)
        self._used[device] += rows
        at = slice(device * self._rows + used, device * self._rows + used + rows)
        known.trees[at], known.starts[at], known.first[at] = tree, start, used
        known.tokens[at].reshape(-1)[: len(tokens)] = tokens
        known.counts[at] = np.minimum(len(tokens) - self._length * np.arange(rows), self._length)
        return at.stop - 1


def fits(lengths: list[int], shape: Shape, cut: bool) -> list[int]:
    """How many tokens of each segment, one after another, a call takes on one device.

    Of one that is longer than a call, as much as a call takes.

    cut: whether of one that does not fit the first part is taken; else it waits for another call.
    """
    rows, length = shape
    taken = []
    for tokens in lengths:
        count = min(tokens, shape[0] * length)
        if count > rows * length:
            count = rows * length if cut else 0
        rows -= -(-count // length)
        taken.append(count)
    return taken


def quickest(waiting: Sequence[list[int]], shapes: Sequence[Shape], besides: int) -> Shape:
    """The shape of the first of those calls that take what waits in the least time.

    Args:
      waiting: the lengths of each device's segments; the device with the most rows decides.
      shapes: to choose from, the largest first, with rows of one length.
      besides: tokens that take as long as what every call takes.
    """
    length = shapes[0][1]
    rows = max(sum(-(-tokens // length) for tokens in lengths) for lengths in waiting)
    times, first = [0], shapes[0]  # of so many rows, and the shape of their first call
    for left in range(1, min(rows, shapes[0][0]) + 1):
        takes = {
            shape: besides + shape[0] * length + times[max(0, left - shape[0])] for shape in shapes
        }
        first = min(takes, key=takes.__getitem__)
        times.append(takes[first])
    return first
