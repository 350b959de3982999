"""Every function that a search compiles, each once: what is shared, what is donated.

Engine, memory plan, `--plan` and benches take them from here, so that they compile the same ones.
What is donated is replaced by the result: whoever calls keeps no other reference to it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rstar_jax.search import strategies
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.engine import copies, decode, devices, prefill, state
from rstar_jax.search.record import Status


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of a module and how it is mapped over devices, see `devices.mapped`.

    Attributes:
      f: its arguments are arrays, its keyword-only arguments settings.
      shared: arguments that are whole on each device; of the others each has its part.
      donated: arguments whose memory the result takes over.
    """

    f: Callable
    shared: tuple[str, ...] = ()
    donated: tuple[str, ...] = ()

    def on(self, mesh: Mesh, **settings: Any) -> Callable:
        """The function for one mesh, with its settings: the same object for equal arguments."""
        return devices.mapped(self.f, mesh, self.shared, self.donated, **settings)


def _advance(tree, expansion, rules, *, longest: int, strategy: str):
    """Grows the trees; returns them, and what the host must know: paths, finished, rollouts."""
    tree = trees_lib.advance(tree, expansion, rules, strategies.WALKS[strategy])
    return tree, (trees_lib.paths(tree, longest), tree.finished, tree.rollout)


def _put_scores(expansion, values, trees, children):
    """Notes scores f32[R] of i32[R] children of trees; an answer's score is its reward."""
    answers = expansion.status.at[trees, children].get(mode='fill', fill_value=0) == Status.ANSWER
    nowhere = expansion.status.shape[0]
    judged = jnp.where(answers, trees, nowhere)
    return expansion.replace(
        score=expansion.score.at[trees, children].set(values, mode='drop'),
        reward=expansion.reward.at[judged, children].set(values, mode='drop'),
    )


DECODE = Program(
    decode.decode, shared=('params', 'stops', 'settings', 'iterations'), donated=('cells', 'slots')
)
EXTEND = Program(prefill.extend, shared=('params',), donated=('path',))
SCORE = Program(prefill.score, shared=('params',), donated=('cells_kv',))
APPEND = Program(copies.append, donated=('path',))
COPY = Program(copies.copy, donated=('into',))
OPEN = Program(state.open_cells, donated=('cells',))
LOOK = Program(state.look)
PACK = Program(state.pack)
RESIZE = Program(state.resize)
GROW = Program(state.grow)
FIRST_PATH = Program(state.first_path)
RESET = Program(trees_lib.reset, donated=('tree',))
PUT_SCORES = Program(_put_scores, donated=('expansion',))
ADVANCE = Program(_advance, shared=('rules',), donated=('tree',))


@functools.partial(jax.jit, donate_argnums=0)  # the only reference is replaced by the result
def with_tree(trees: trees_lib.Tree, row: int, tree: trees_lib.Tree) -> trees_lib.Tree:
    """`trees` with `tree` in one of the rows."""
    return jax.tree.map(lambda x, y: x.at[row].set(y), trees, tree)


@jax.jit
def tree_of(trees: trees_lib.Tree, row: int) -> trees_lib.Tree:
    """One tree out of many, in one call: field by field takes as long as a small tree's search."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), trees)
