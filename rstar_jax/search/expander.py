"""What the search asks of whatever writes the steps: local models, a script, a server."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from rstar_jax.search.host import HostTree, Node, Step

# Scores f32[R], here or on the devices, and which request each is of; -1 for none.
Scores = list[tuple[np.ndarray | jax.Array, Sequence[int]]]


class Expander(Protocol):
    """Writes candidates for the cursors of many trees at once, and scores them.

    Attributes:
      rows: trees in flight, on all devices; `width`, on each.
      mesh: local mesh on which the trees' arrays lie.
      counters: totals, such as `sampled` tokens.
      continuing: the tokenizer of what follows a step; None where tokens are not known.
      scores: scores in [-1, 1] of (row, child of its cursor); it need not wait for the devices.
        None where nothing is scored.
      room: what else than path_tokens bounds a path, for a message.
      left: trees that still grow, where no other will begin; else inf. The loop sets it.
      plenty: whether more is waiting than one chunk of work takes on: then the next one may begin
        before anybody has looked at what the last one did.
    """

    rows: int
    width: int
    mesh: Mesh
    counters: collections.Counter
    scores: Callable[[list[tuple[int, Node]]], Scores] | None
    continuing: Any = None
    room: str = ''
    left: float = math.inf
    plenty: bool = False

    def start(self, row: int, tree: HostTree) -> None:
        """A row is taken by a new tree."""

    def expand(self, row: int, tree: HostTree) -> None:
        """Asks for the candidates of the tree's cursor, the last node of `tree.path`."""

    def dispatch(self) -> Any:
        """Starts a chunk of work, and returns what to collect; None where there is none."""

    def collect(self, running: Any) -> list[Step]:
        """Waits for a chunk; returns the candidates that ended, in any order. The oldest first."""

    def close(self) -> None:
        """Ends what runs beside the loop."""

    def encode(self, text: str) -> list[int]:
        """Token ids of an executor output that follows a step; none where they are not known."""
        if self.continuing is None:
            return []
        return self.continuing.encode(text, add_special_tokens=False)
