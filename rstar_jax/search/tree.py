"""Search trees as arrays on the device, many at once.

One call of `advance` takes what the host learnt about the children of each tree's cursor, adds
them, backs up their rewards and walks on by UCT to the next node that has no children yet:

    host: candidates -> Expansion --advance--> Tree with a new cursor, path from root to cursor

Every function works on G trees at once, written with explicit gathers and scatters (a vmapped
while loop would select over whole arrays in each of its turns). Semantics: paper section 3.2 and
the released code; UCT(s) = Q(s) + c sqrt(ln N(parent) / N(s)).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rstar_jax.data.record import Status

NO_NODE = -1
ROOT = 0
NEGATIVE_REWARD = -1.0


@struct.dataclass
class Tree:
    """G search trees of up to N nodes. Children of one node have consecutive indices.

    Attributes:
      parent: i32[G,N], NO_NODE for the root.
      child_start: i32[G,N], the first child, NO_NODE where there is none yet.
      child_count: i32[G,N].
      visits: i32[G,N].
      value_sum: f32[G,N].
      score: f32[G,N], PPM scores, nan where there is none.
      prior: f32[G,N], the policy's own likelihood of a step among its siblings.
      chosen: bool[G,N], beams of the level that is being expanded (beam search, DVTS).
      depth: i32[G,N].
      status: u8[G,N], Status codes.
      size: i32[G], nodes in use.
      cursor: i32[G], the node to be expanded next.
      rollout: i32[G], rollouts done.
      moves: i32[G], moves made in this rollout; -1 before the one that starts it at a root that
        already has children.
      finished: bool[G].
    """

    parent: jax.Array
    child_start: jax.Array
    child_count: jax.Array
    visits: jax.Array
    value_sum: jax.Array
    score: jax.Array
    prior: jax.Array
    chosen: jax.Array
    depth: jax.Array
    status: jax.Array
    size: jax.Array
    cursor: jax.Array
    rollout: jax.Array
    moves: jax.Array
    finished: jax.Array


@struct.dataclass
class Expansion:
    """The children of the cursor of each tree, packed to the front.

    Attributes:
      active: bool[G], trees that are to be expanded now.
      count: i32[G], children.
      status: u8[G,n].
      reward: f32[G,n], of ANSWER children.
      score: f32[G,n], PPM scores, nan where there is none.
      prior: f32[G,n], the policy's own likelihood of each, together 1.
      last: bool[G], trees that are finished with this.
    """

    active: jax.Array
    count: jax.Array
    status: jax.Array
    reward: jax.Array
    score: jax.Array
    prior: jax.Array
    last: jax.Array | bool = False


@struct.dataclass
class Rules:
    """What `advance` goes by; traced, so that changing a number compiles nothing anew.

    Attributes:
      exploration: f32[], c of UCT.
      unvisited_value: f32[], UCT of a child without visits.
      puct: bool[], whether the bonus goes by the prior (AlphaZero's formula).
      stop_reward: f32[], a tree is finished with the first answer that has this reward.
      width: i32[], beams of beam search and DVTS.
      rollouts: i32[].
      max_depth: i32[].
      logarithm: f32[N+1], ln of each visit count (0 for 0). A table, so that every backend walks
        the same way.
    """

    exploration: jax.Array
    unvisited_value: jax.Array
    puct: jax.Array
    stop_reward: jax.Array
    width: jax.Array
    rollouts: jax.Array
    max_depth: jax.Array
    logarithm: jax.Array

    @classmethod
    def of(cls, config) -> 'Rules':
        """Returns the rules of a `search.Config`."""
        counts = np.maximum(np.arange(config.nodes + 1), 1)
        return cls(
            exploration=np.float32(config.exploration),
            unvisited_value=np.float32(config.unvisited_value),
            puct=np.bool_(config.strategy == 'puct'),
            stop_reward=np.float32(config.stop_reward),
            width=np.int32(config.width),
            rollouts=np.int32(config.rollouts),
            max_depth=np.int32(config.max_depth),
            logarithm=np.log(counts).astype(np.float32),
        )


def init(trees: int, nodes: int) -> Tree:
    """Returns G trees of one root each, the cursor on it, none visited."""

    full, each = (functools.partial(jnp.full, shape) for shape in ((trees, nodes), (trees,)))
    return Tree(
        parent=full(NO_NODE, jnp.int32),
        child_start=full(NO_NODE, jnp.int32),
        child_count=full(0, jnp.int32),
        visits=full(0, jnp.int32),
        value_sum=full(0, jnp.float32),
        score=full(jnp.nan, jnp.float32),
        prior=full(0, jnp.float32),
        chosen=full(False, bool),
        depth=full(0, jnp.int32),
        status=full(Status.OPEN, jnp.uint8),
        size=each(1, jnp.int32),
        cursor=each(ROOT, jnp.int32),
        rollout=each(0, jnp.int32),
        moves=each(0, jnp.int32),
        finished=each(False, bool),
    )


def fresh(nodes: int) -> Tree:
    """Returns one tree of a root, without the axis G: arrays [N], numbers []."""
    return jax.tree.map(lambda x: x[0], init(1, nodes))


def reset(tree: Tree, rows: jax.Array) -> Tree:
    """Puts a fresh root in the trees of `rows` (bool[G])."""
    roots = init(*tree.parent.shape)

    def choose(new, old):
        return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, roots, tree)


def uct(value_sum, visits, prior, parent_visits, rules: Rules) -> jax.Array:
    """What a child is worth to the walk: f32, i32, f32, i32 -> f32, of one shape or broadcast.

    UCT, where a node without visits is worth `unvisited_value` and a parent without visits gives no
    bonus; or PUCT: Q + c prior sqrt(N(parent)) / (1 + N), which needs no exception.
    """
    count = jnp.maximum(visits, 1).astype(jnp.float32)
    mean = value_sum / count
    bonus = rules.exploration * jnp.sqrt(rules.logarithm[parent_visits] / count)
    plain = jnp.where(visits > 0, mean + bonus, rules.unvisited_value)
    share = jnp.sqrt(parent_visits.astype(jnp.float32)) / (1 + visits)
    return jnp.where(rules.puct, mean + rules.exploration * prior * share, plain)


def best_child(tree: Tree, node: jax.Array, n: int, rules: Rules) -> jax.Array:
    """Returns for each tree the open child of `node` (i32[G]) with the highest UCT, or NO_NODE.

    The first of equals wins.
    """
    rows = jnp.arange(node.shape[0])
    start, count = tree.child_start[rows, node], tree.child_count[rows, node]
    children = jnp.maximum(start, 0)[:, None] + jnp.arange(n)
    parent_visits = tree.visits[rows, node][:, None]
    at = (rows[:, None], jnp.minimum(children, tree.parent.shape[1] - 1))
    values = uct(tree.value_sum[at], tree.visits[at], tree.prior[at], parent_visits, rules)
    walkable = (jnp.arange(n) < count[:, None]) & (tree.status[at] == Status.OPEN)
    best = jnp.argmax(jnp.where(walkable, values, -jnp.inf), axis=1)
    return jnp.where(walkable.any(axis=1), start + best, NO_NODE).astype(jnp.int32)


def expand(tree: Tree, expansion: Expansion) -> Tree:
    """Adds the children of each active tree's cursor, with the values that are theirs alone."""
    trees, nodes = tree.parent.shape
    n = expansion.status.shape[1]
    rows = jnp.arange(trees)
    cursor = tree.cursor
    count = jnp.where(expansion.active, expansion.count, 0)
    new = tree.size[:, None] + jnp.arange(n)
    at = (rows[:, None], jnp.where(jnp.arange(n) < count[:, None], new, nodes))
    depth = tree.depth[rows, cursor] + 1
    status = expansion.status
    is_open, is_answer = status == Status.OPEN, status == Status.ANSWER
    scored = ~jnp.isnan(expansion.score)
    value = jnp.where(is_open, jnp.where(scored, expansion.score, 0.0), NEGATIVE_REWARD)
    value = jnp.where(is_answer, expansion.reward, value)
    visits = jnp.where(is_open & ~scored, 0, 1)

    def put(array, values):
        values = jnp.broadcast_to(values, (trees, n)).astype(array.dtype)
        return array.at[at].set(values, mode='drop', unique_indices=True)

    parent_at = (rows, jnp.where(expansion.active, cursor, nodes))
    return tree.replace(
        parent=put(tree.parent, cursor[:, None]),
        visits=put(tree.visits, visits),
        value_sum=put(tree.value_sum, value),
        score=put(tree.score, expansion.score),
        prior=put(tree.prior, expansion.prior),
        depth=put(tree.depth, depth[:, None]),
        status=put(tree.status, status),
        child_start=tree.child_start.at[parent_at].set(tree.size, mode='drop'),
        child_count=tree.child_count.at[parent_at].set(count, mode='drop'),
        size=tree.size + count,
    )


def backup(tree: Tree, expansion: Expansion) -> Tree:
    """Adds the rewards of the new ANSWER children, one by one, to the cursor and all above it."""
    trees, nodes = tree.parent.shape
    n = expansion.status.shape[1]
    rows = jnp.arange(trees)
    counted = (jnp.arange(n) < expansion.count[:, None]) & (expansion.status == Status.ANSWER)
    counted &= expansion.active[:, None]
    rewards = jnp.where(counted, expansion.reward, 0.0)
    answers = counted.sum(axis=1, dtype=jnp.int32)

    def ascend(state):
        node, visits, value_sum = state
        there = jnp.maximum(node, 0)
        value = value_sum[rows, there]
        # In the order of the children, as a float sum depends on it.
        value = functools.reduce(lambda total, j: total + rewards[:, j], range(n), value)
        at = (rows, jnp.where(node == NO_NODE, nodes, node))
        value_sum = value_sum.at[at].set(value, mode='drop')
        visits = visits.at[at].add(answers, mode='drop')
        return jnp.where(node == NO_NODE, NO_NODE, tree.parent[rows, there]), visits, value_sum

    start = jnp.where(answers > 0, tree.cursor, NO_NODE)
    state = start, tree.visits, tree.value_sum
    _, visits, value_sum = jax.lax.while_loop(lambda s: (s[0] != NO_NODE).any(), ascend, state)
    return tree.replace(visits=visits, value_sum=value_sum)


def walk(tree: Tree, n: int, rules: Rules) -> Tree:
    """Moves each cursor on, through as many rollouts as it takes, to a node without children.

    A rollout ends after `max_depth` moves or where every child is terminal, which makes their
    parent terminal too; where that is the root, or all rollouts are done, the tree is finished.
    """
    rows = jnp.arange(tree.cursor.shape[0])

    def walking(tree):
        return ~tree.finished & (tree.child_start[rows, tree.cursor] != NO_NODE)

    def move(tree):
        active = walking(tree)
        child = best_child(tree, tree.cursor, n, rules)
        stuck = active & (child == NO_NODE)
        exhausted_at = (rows, jnp.where(stuck, tree.cursor, tree.parent.shape[1]))
        status = tree.status.at[exhausted_at].set(jnp.uint8(Status.EXHAUSTED), mode='drop')
        moves = tree.moves + active
        ended = stuck | (active & (moves >= rules.max_depth))
        rollout = tree.rollout + ended
        finished = (stuck & (tree.cursor == ROOT)) | (ended & (rollout >= rules.rollouts))
        return tree.replace(
            status=status,
            cursor=jnp.where(ended, ROOT, jnp.where(active, child, tree.cursor)),
            moves=jnp.where(ended, -1, moves),
            rollout=rollout,
            finished=tree.finished | finished,
        )

    return jax.lax.while_loop(lambda t: walking(t).any(), move, tree)


def paths(tree: Tree, longest: int) -> jax.Array:
    """Returns i32[G, longest]: the nodes from the root to the cursor, NO_NODE behind them."""
    rows = jnp.arange(tree.cursor.shape[0])

    def ascend(node, _):
        return jnp.where(node == NO_NODE, NO_NODE, tree.parent[rows, jnp.maximum(node, 0)]), node

    _, upward = jax.lax.scan(ascend, tree.cursor, length=longest)
    depth = tree.depth[rows, tree.cursor][:, None]
    order = depth - jnp.arange(longest)
    downward = jnp.take_along_axis(upward.T, jnp.maximum(order, 0), axis=1)
    return jnp.where(order >= 0, downward, NO_NODE)


def advance(tree: Tree, expansion: Expansion, rules: Rules, walk: Callable = walk) -> Tree:
    """Expands, backs up and walks on: one simulation of every active tree.

    walk: where to, see `strategies`.
    """
    tree = backup(expand(tree, expansion), expansion)
    n = expansion.status.shape[1]
    answered = (expansion.status == Status.ANSWER) & (jnp.arange(n) < expansion.count[:, None])
    enough = (answered & (expansion.reward >= rules.stop_reward)).any(axis=1) | expansion.last
    enough &= expansion.active
    return walk(tree.replace(finished=tree.finished | enough), n, rules)
