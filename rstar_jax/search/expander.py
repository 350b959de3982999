"""What the search asks of whatever writes the steps: local models, a server, or functions.

The last are here: the same trees on the device, by texts and scores from anywhere.
"""

import collections
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from rstar_jax import parallel, steps
from rstar_jax.search.nodes import HostTree, Node, Step
from rstar_jax.steps import marks

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


class Scripted(Expander):
    """Drives the search's trees on the device with candidates and scores that come from functions.

    Args:
      texts: texts(question, prefix_text, n) -> n candidate texts; prefix_text is the texts of the
        nodes from the root on, executor outputs included, '' at the root.
      score: score(question, prefix_text) -> PPM score, with the step to be scored at the end of
        prefix_text; None searches without a PPM.
      trees: trees in flight at once.
    """

    def __init__(
        self,
        texts: Callable[[str, str, int], list[str]],
        score: Callable[[str, str], float] | None = None,
        trees: int = 8,
    ):
        self._texts, self._score = texts, score
        self.rows = self.width = trees
        self.mesh = parallel.local_mesh(devices=parallel.local_mesh().devices.flat[:1])
        self.counters: collections.Counter = collections.Counter()
        self.scores = self._scores if score else None
        self._growing: dict[int, HostTree] = {}
        self._asked: list[int] = []

    def start(self, row: int, tree: HostTree) -> None:
        self._growing[row] = tree

    def expand(self, row: int, tree: HostTree) -> None:
        self._asked.append(row)

    def dispatch(self) -> list[int] | None:
        asked, self._asked = self._asked, []
        return asked or None

    def collect(self, running: list[int] | None) -> list[Step]:
        ended = []
        for row in running or []:
            tree = self._growing[row]
            count = len(tree.candidates)
            try:
                texts = self._texts(tree.problem.question, tree.prefix, count)
                if len(texts) != count:
                    raise ValueError(f'{len(texts)} texts for {count} candidates')
            except Exception as error:
                ended += [Step(row, i, '', [], marks.EOS, error=error) for i in range(count)]
                continue
            ended += [Step(row, i, text, [], _kind_of(text)) for i, text in enumerate(texts)]
        return ended

    def _scores(self, requests) -> Scores:
        rows, numbers, nodes = zip(*requests)
        trees = zip((self._growing[row] for row in rows), nodes)
        found = [self._score(tree.problem.question, tree.prefix + x.text) for tree, x in trees]
        return [(np.array(found, np.float32), np.int32(rows), np.int32(numbers))]


def _kind_of(text: str) -> int:
    """The kind of the mark with which a candidate's text ends."""
    kinds = (kind for mark, kind in steps.stops('sft').items() if text.rstrip().endswith(mark))
    return next(kinds, marks.EOS)
