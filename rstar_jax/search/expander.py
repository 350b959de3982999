"""What the search asks of whatever writes the steps: local models, a script, a server."""

import collections
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from rstar_jax.search.host import HostTree, Node, Step

# A child to be scored: the row, its number among the children of the row's cursor, and itself.
Request = tuple[int, int, Node]
# Of the devices one after another: scores f32[R], and of which tree of the device and which of its
# children each is, i32[R]; a tree that does not exist, for none.
Scores = list[tuple[np.ndarray | jax.Array, np.ndarray, np.ndarray]]


class Expander(Protocol):
    """Writes candidates for the cursors of many trees at once, and scores them.

    Attributes:
      rows: trees in flight, on all devices; `width`, on each.
      mesh: local mesh on which the trees' arrays lie.
      counters: totals, such as `sampled` tokens.
      marked: whether the policy has the marks as tokens; None where its tokens are not known.
      continuing: the tokenizer of what follows a step; None where tokens are not known.
      scores: scores in [-1, 1], in parts; it need not wait for the devices. None where nothing is
        scored.
      room: what else than path_tokens bounds a path, for a message.
      left: trees that still grow, where no other will begin; else inf. The loop sets it.
      plenty: whether more is waiting than one chunk of work takes on: then the next one may begin
        before anybody has looked at what the last one did.
    """

    rows: int
    width: int
    mesh: Mesh
    counters: collections.Counter
    scores: Callable[[list[Request]], Scores] | None
    marked: bool | None = None
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

    def encode(self, text: str, before: str = '') -> list[int]:
        """Token ids of an executor output that follows a step; none where they are not known.

        before: what it follows, for whoever reads the texts otherwise than they are written.
        """
        if self.continuing is None:
            return []
        return self.continuing.encode(text, add_special_tokens=False)
