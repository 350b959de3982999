"""An expander without models: texts from a function, scores from a function, the same trees."""

import collections
from collections.abc import Callable

import numpy as np

from rstar_jax import parallel, steps
from rstar_jax.search.expander import Expander, Scores
from rstar_jax.search.host import HostTree, Step
from rstar_jax.steps import marks


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
