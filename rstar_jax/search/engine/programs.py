"""Every function that a search compiles, each once: what is shared, what is donated.

Each is called with a mesh and the settings of its function: the mapped one, see `devices.mapped`.
Engine, memory plan, `--plan` and benches take them from here, so that they compile the same ones.
What is donated is replaced by the result: whoever calls keeps no other reference to it.
"""

import functools

import jax
import jax.numpy as jnp

from rstar_jax.data.record import Status
from rstar_jax.search import strategies
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.engine import decode, prefill, state
from rstar_jax.search.engine.devices import mapped


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


DECODE = functools.partial(
    mapped,
    decode.decode,
    shared=('params', 'stops', 'settings'),
    donated=('cells', 'slots'),
)
EXTEND = functools.partial(mapped, prefill.extend, shared=('params',), donated=('path',))
SCORE = functools.partial(mapped, prefill.score, shared=('params',), donated=('cells_kv',))
APPEND = functools.partial(mapped, state.append, donated=('path',))
COPY = functools.partial(mapped, state.copy, donated=('into',))
OPEN = functools.partial(mapped, state.open_cells, donated=('cells',))
LOOK = functools.partial(mapped, state.look)
PACK = functools.partial(mapped, state.pack)
RESIZE = functools.partial(mapped, state.resize)
GROW = functools.partial(mapped, state.grow)
FIRST_PATH = functools.partial(mapped, state.first_path)
RESET = functools.partial(mapped, trees_lib.reset, donated=('tree',))
PUT_SCORES = functools.partial(mapped, _put_scores, donated=('expansion',))
ADVANCE = functools.partial(mapped, _advance, shared=('rules',), donated=('tree',))


@functools.partial(jax.jit, donate_argnums=0)  # the only reference is replaced by the result
def with_tree(trees: trees_lib.Tree, row: int, tree: trees_lib.Tree) -> trees_lib.Tree:
    """`trees` with `tree` in one of the rows."""
    return jax.tree.map(lambda x, y: x.at[row].set(y), trees, tree)


def tree_of(trees: trees_lib.Tree, row: int) -> trees_lib.Tree:
    """One tree out of many, of its own device's alone: else all devices' would go to each."""

    def own(x):
        for shard in x.addressable_shards:
            first = shard.index[0].start or 0
            if first <= row < first + len(shard.data):
                return shard.data
        raise IndexError(row)

    width = len(trees.size.addressable_shards[0].data)
    return _row(jax.tree.map(own, trees), row % width)


@jax.jit  # in one call: field by field takes as long as a small tree's search
def _row(trees: trees_lib.Tree, row: int) -> trees_lib.Tree:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), trees)
