"""Where a tree goes next: the searches, as functions that move cursors over the same trees.

    mcts    down from the root by UCT, once a rollout                       (`tree.walk`)
    puct    the same with the policy's own likelihood of a step as its prior
    beam    level by level: the `width` best steps of all are expanded
    dvts    diverse verifier tree search: `width` subtrees from the root, each goes on with its best

Beam search and DVTS rank steps by their PPM scores (without one, the first are the best). A beam
that has found an answer, or several at once, has ended: one beam fewer goes on, in DVTS without the
rest of its own subtree. Best-of-n and majority voting need no function of their own: many
trees of one candidate and one rollout (`config.sampled`), and a choice among their answers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rstar_jax.data.record import Status
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.tree import NO_NODE, ROOT, Rules, Tree

Walk = Callable[[Tree, int, Rules], Tree]


def _by_level(tree: Tree, n: int, rules: Rules, choose: Callable) -> Tree:
    """To the next beam of this level, or to the first of those that `choose` takes of the next.

    Beams are the nodes with `chosen`, all of one level; those without children are left.
    """
    rows = jnp.arange(tree.cursor.shape[0])
    walking = ~tree.finished & (tree.child_start[rows, tree.cursor] != NO_NODE)
    level = tree.depth[rows, tree.cursor][:, None]
    inside = jnp.arange(tree.parent.shape[1]) < tree.size[:, None]
    left = tree.chosen & (tree.child_start == NO_NODE) & (tree.depth == level)
    below = inside & (tree.depth == level + 1) & (tree.status == Status.OPEN)
    best = choose(tree, below, inside & (tree.status == Status.ANSWER), rules)
    here = left.any(axis=1)
    going = jnp.where(here[:, None], left, best)
    cursor = jnp.argmax(going, axis=1).astype(jnp.int32)
    onward = walking & ~here
    return tree.replace(
        chosen=jnp.where(onward[:, None], best, tree.chosen),
        cursor=jnp.where(walking, cursor, tree.cursor),
        finished=tree.finished | (walking & ~going.any(axis=1)),
    )


def _best_of_all(tree: Tree, below: jax.Array, answers: jax.Array, rules: Rules) -> jax.Array:
    """bool[G,N]: of `below` the best; as many as there are beams that have not ended."""
    return _highest(tree, below, rules.width - _above(tree, answers).sum(axis=1))


def _best_of_each(tree: Tree, below: jax.Array, answers: jax.Array, rules: Rules) -> jax.Array:
    """bool[G,N]: the best child of each beam that has not ended; of the root's the best ones."""
    rows, parent = jnp.arange(below.shape[0])[:, None], jnp.maximum(tree.parent, 0)
    first_level = tree.parent == ROOT
    left = rules.width - (answers & first_level).sum(axis=1)
    going = below & ~_above(tree, answers)[rows, parent]
    rank = _ranks(tree, going)
    least = jnp.full(rank.shape, rank.shape[1]).at[rows, parent].min(rank)
    best = going & (rank == least[rows, parent])
    at_root = (below & first_level).any(axis=1)
    return jnp.where(at_root[:, None], _highest(tree, below, left), best)


def _above(tree: Tree, nodes: jax.Array) -> jax.Array:
    """bool[G,N]: which have a child among `nodes`."""
    rows = jnp.arange(nodes.shape[0])[:, None]
    return jnp.zeros(nodes.shape, bool).at[rows, jnp.maximum(tree.parent, 0)].max(nodes)


def _highest(tree: Tree, below: jax.Array, width: jax.Array) -> jax.Array:
    """bool[G,N]: the `width` (i32[G]) highest-scored nodes of `below`, the first of ties."""
    return below & (_ranks(tree, below) < width[:, None])


def _ranks(tree: Tree, nodes: jax.Array) -> jax.Array:
    """i32[G,N]: 0 for the highest-scored of `nodes`, and so on; the first of ties; others last."""
    scores = jnp.where(nodes, jnp.nan_to_num(tree.score), -jnp.inf)
    return jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)


WALKS: dict[str, Walk] = {
    'mcts': trees_lib.walk,
    'puct': trees_lib.walk,
    'beam': functools.partial(_by_level, choose=_best_of_all),
    'dvts': functools.partial(_by_level, choose=_best_of_each),
}
