"""The arrays of all trees in flight on this host's devices: a row each, grown and walked there.

children, PPM scores -> Expansion --advance--> new cursors, and a look at them for the host
"""

from typing import Any

import numpy as np

from rstar_jax.search import tree as trees_lib
from rstar_jax.search.config import Config
from rstar_jax.search.engine import devices, programs
from rstar_jax.search.expander import Expander, Scores
from rstar_jax.search.nodes import Node


class Forest:
    """As many rows as the expander has, on its mesh; see `tree` for what becomes of them."""

    def __init__(self, expander: Expander, config: Config):
        self.mesh, self.config, self.rows = expander.mesh, config, expander.rows
        self.rules = trees_lib.Rules.of(config)
        self.arrays = devices.make(self.mesh, trees_lib.init, expander.width, config.nodes)
        self.reset = programs.RESET(self.mesh)
        longest = config.max_depth + 2
        self.advance = programs.ADVANCE(self.mesh, longest=longest, strategy=config.strategy)

    def begin(self, rows: list[int]) -> None:
        """Puts fresh roots into rows."""
        fresh = np.isin(np.arange(self.rows), rows)
        self.arrays = self.reset(self.arrays, devices.split(self.mesh, fresh))

    def put(self, row: int, tree: trees_lib.Tree) -> None:
        """Has one tree go on; tree: its row alone."""
        self.arrays = devices.split(self.mesh, programs.with_tree(self.arrays, row, tree))

    def tree(self, row: int) -> trees_lib.Tree:
        """One tree's row, on its device."""
        return programs.tree_of(self.arrays, row)

    def grow(self, born: dict[int, list[Node]], last: set[int], scores: Scores) -> Any:
        """Adds the children of cursors and walks on.

        born: by row. last: rows whose trees are finished with them. scores: of the children.

        Returns:
          What the device will tell: paths i32[rows, longest], finished bool[rows] and rollouts
          i32[rows].
        """
        shape = (self.rows, self.config.candidates)
        expansion = trees_lib.Expansion(
            active=np.isin(np.arange(self.rows), [*born]),
            count=np.zeros(shape[0], np.int32),
            status=np.zeros(shape, np.uint8),
            reward=np.zeros(shape, np.float32),
            score=np.full(shape, np.nan, np.float32),
            prior=np.zeros(shape, np.float32),
            last=np.isin(np.arange(self.rows), [*last]),
        )
        for row, children in born.items():
            expansion.count[row] = len(children)
            for i, node in enumerate(children):
                for name in ('status', 'reward', 'prior'):
                    getattr(expansion, name)[row, i] = getattr(node, name)
        expansion = devices.split(self.mesh, expansion)
        for part in scores:
            put = programs.PUT_SCORES(self.mesh)
            expansion = put(expansion, *devices.split(self.mesh, part))
        self.arrays, look = self.advance(self.arrays, expansion, self.rules)
        return look
