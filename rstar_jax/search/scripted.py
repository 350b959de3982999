"""An expander without models: texts from a function, scores from a function, the same trees."""

import collections
from collections.abc import Callable

import numpy as np

from rstar_jax import parallel, steps
from rstar_jax.search.expander import Scores
from rstar_jax.search.host import Step
from rstar_jax.steps import marks

Texts = Callable[[str, str, int], list[str]]
Score = Callable[[str, str], float]


class Scripted:
    """Drives the search's trees on the device with scripted candidates; see `scripted`."""

    def __init__(self, texts: Texts, score: Score | None, trees: int):
        self.texts, self.score = texts, score
        self.rows = self.width = trees
        self.mesh = parallel.local_mesh(devices=parallel.local_mesh().devices.flat[:1])
        self.counters: collections.Counter = collections.Counter()
        self.plenty = False
        self.growing: dict = {}
        self.asked: list[int] = []

    @property
    def has_ppm(self) -> bool:
        return self.score is not None

    def start(self, row: int, tree) -> None:
        self.growing[row] = tree

    def expand(self, row: int, tree) -> None:
        self.asked.append(row)

    def dispatch(self):
        asked, self.asked = self.asked, []
        return asked or None

    def collect(self, asked) -> list[Step]:
        ended = []
        for row in asked or []:
            tree = self.growing[row]
            texts = self.texts(tree.problem['question'], tree.prefix, len(tree.candidates))
            if len(texts) != len(tree.candidates):
                raise ValueError(f'{len(texts)} texts for {len(tree.candidates)} candidates')
            ended += [Step(row, i, text, [], kind_of(text)) for i, text in enumerate(texts)]
        return ended

    def close(self) -> None:
        """Nothing runs beside the loop."""

    def encode(self, text: str) -> list[int]:
        return []

    def scores(self, requests) -> Scores:
        trees = ((self.growing[row], node) for row, node in requests)
        found = [self.score(tree.problem['question'], tree.prefix + x.text) for tree, x in trees]
        return [(np.array(found, np.float32), range(len(found)))]


def scripted(texts: Texts, score: Score | None = None, trees: int = 8) -> Scripted:
    """Returns an expander whose candidates and scores come from functions.

    Args:
      texts: texts(question, prefix_text, n) -> n candidate texts; prefix_text is the texts of the
        nodes from the root on, executor outputs included, '' at the root.
      score: score(question, prefix_text) -> PPM score, with the step to be scored at the end of
        prefix_text; None searches without a PPM.
      trees: trees in flight at once.
    """
    return Scripted(texts, score, trees)


def kind_of(text: str) -> int:
    """The kind of the mark with which a candidate's text ends."""
    for mark, kind in (
        (steps.ANSWER_END, marks.ANSWER),
        (steps.CODE_END, marks.CODE),
        (steps.STEP_END, marks.STEP),
    ):
        if text.rstrip().endswith(mark):
            return kind
    return marks.EOS
