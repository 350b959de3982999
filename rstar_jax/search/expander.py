"""What the search asks of whatever writes the steps: local models, a script, a server."""

import collections
from typing import Any, Protocol

from jax.sharding import Mesh

from rstar_jax.search.host import HostTree, Node, Step


class Expander(Protocol):
    """Writes candidates for the cursors of many trees at once, and scores them.

    Attributes:
      rows: trees in flight, on all devices; `width`, on each.
      mesh: local mesh on which the trees' arrays lie.
      counters: totals, such as `sampled` tokens.
      has_ppm: whether there are scores.
    """

    rows: int
    width: int
    mesh: Mesh
    counters: collections.Counter
    has_ppm: bool

    def start(self, row: int) -> None:
        """A row is taken by a new tree."""

    def expand(self, row: int, tree: HostTree) -> None:
        """Asks for the candidates of the tree's cursor, the last node of `tree.path`."""

    def dispatch(self) -> Any:
        """Starts some work, and returns what to collect; None where there is nothing to do."""

    def collect(self, running: Any) -> list[Step]:
        """Waits for work that was dispatched; returns the candidates that ended, in any order."""

    def scores(self, requests: list[tuple[int, Node]]) -> list[float]:
        """Scores, in [-1, 1], of children of the rows' cursors."""

    def encode(self, text: str) -> list[int]:
        """Token ids of an executor output that follows a step; none where they are not known."""
