"""Walk, expansion and backup of many trees on the device, against mctx, with models that are free.

A simulation is the same on both sides: walk from the root by UCT to a node without children of its
own, expand it, back up to the root. Ours adds all its children as nodes, mctx one node and the
statistics of its children's edges, so that for the same nodes mctx needs `children` times as many
simulations (milliseconds_per_node and its counterpart). Of each expansion's children one is an
answer, which is backed up to the root; the others have a PPM score.

    ours    one call of the host for each simulation, as in a search. `advances_per_second` is the
            search's own form, where a rollout goes on from where the last expansion was made
    mctx    its `search`, all simulations in one compiled call, with our UCT as its rule

ratio_vs_mctx has arrays of the same number of nodes on both sides, and as many simulations;
ratio_vs_mctx_small gives mctx arrays that are just large enough for them.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax.data.record import Status
from rstar_jax.search import tree as trees_lib
from rstar_jax.search.config import Config
from rstar_jax.settings.errors import UserError

ENDLESS = 1 << 30
EXPLORATION = 2.0
# Moves of a rollout in the search's own form, as in its settings.
MAX_DEPTH = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """nodes: of each tree; children: of each node that is expanded; repeats: the best counts."""

    trees: int = 256
    nodes: int = 2048
    children: int = 8
    repeats: int = 3
    seed: int = 0

    def __post_init__(self):
        if self.trees < 1:
            raise UserError('--trees', self.trees, 'needs at least 1')
        if not 1 <= self.children < self.nodes:
            needs = f'needs a number from 1 to below --nodes={self.nodes}'
            raise UserError('--children', self.children, needs)


def run(settings: Settings) -> dict[str, float]:
    """Of ours, of mctx, and the ratios; the sides take turns."""
    trees, nodes, children = settings.trees, settings.nodes, settings.children
    simulations = (nodes - 1) // children
    grown = random_expansions(trees, simulations, children, settings.seed)
    sides = {
        'ours': Ours(simulation, ENDLESS, trees, nodes, grown),
        'advance': Ours(trees_lib.advance, MAX_DEPTH, trees, nodes, grown),
        'mctx': Mctx(trees, nodes, simulations, children),
        'small': Mctx(trees, simulations + 1, simulations, children),
    }
    # The first turn warms up.
    turns = [
        {name: side.seconds() for name, side in sides.items()} for _ in range(settings.repeats + 1)
    ]
    best = {name: min(turn[name] for turn in turns[1:]) for name in sides}
    a_simulation = {name: 1e3 * seconds / simulations for name, seconds in best.items()}
    return {
        'simulations_per_second': trees * simulations / best['ours'],
        'advances_per_second': trees * simulations / best['advance'],
        'ratio_vs_mctx': best['mctx'] / best['ours'],
        'ratio_vs_mctx_small': best['small'] / best['ours'],
        'milliseconds_per_simulation': a_simulation['ours'],
        'milliseconds_per_advance': a_simulation['advance'],
        'mctx_milliseconds_per_simulation': a_simulation['mctx'],
        'mctx_small_milliseconds_per_simulation': a_simulation['small'],
        'milliseconds_per_node': a_simulation['ours'] / children,
        'mctx_milliseconds_per_node': a_simulation['mctx'],
        'mean_depth': sides['ours'].mean_depth(),
        'mctx_mean_depth': sides['mctx'].mean_depth(),
    }


def random_expansions(
    trees: int, count: int, children: int, seed: int
) -> list[trees_lib.Expansion]:
    """What a free model says: random scores, and one answer that is right or wrong."""
    rng = np.random.default_rng(seed)
    shape = (trees, children)
    status = np.full(shape, Status.OPEN, np.uint8)
    status[:, -1] = Status.ANSWER
    return [
        jax.device_put(
            trees_lib.Expansion(
                active=np.ones(trees, bool),
                count=np.full(trees, children, np.int32),
                status=status,
                reward=rng.choice([-1, 1], shape).astype(np.float32),
                score=rng.uniform(-1, 1, shape).astype(np.float32),
                prior=np.full(shape, 1 / children, np.float32),
            )
        )
        for _ in range(count)
    ]


def simulation(tree, expansion, rules):
    """`advance`, but each walk begins at the root."""
    tree = trees_lib.backup(trees_lib.expand(tree, expansion), expansion)
    start = {
        'cursor': jnp.full_like(tree.cursor, trees_lib.ROOT),
        'moves': jnp.full_like(tree.moves, -1),
    }
    return trees_lib.walk(tree.replace(**start), expansion.status.shape[1], rules)


class Ours:
    """Our trees, with the same expansions in each run; `tree` is that of the last one."""

    def __init__(self, step, max_depth: int, trees: int, nodes: int, expansions):
        self._new = functools.partial(trees_lib.init, trees, nodes)
        self._expansions = expansions
        # Its table of logarithms goes as far as there are nodes.
        config = Config(rollouts=nodes, candidates=1, max_depth=1, exploration=EXPLORATION)
        self._rules = trees_lib.Rules.of(config).replace(
            rollouts=np.int32(ENDLESS), max_depth=np.int32(max_depth)
        )
        # Donated: the loop below holds no other reference to the trees.
        self._step = jax.jit(step, donate_argnums=0)
        self.tree: Any = None

    def seconds(self) -> float:
        tree = jax.block_until_ready(self._new())
        start = time.perf_counter()
        for expansion in self._expansions:
            tree = self._step(tree, expansion, self._rules)
        self.tree = jax.block_until_ready(tree)
        return time.perf_counter() - start

    def mean_depth(self) -> float:
        """Of the nodes that were expanded."""
        return float(np.asarray(self.tree.depth)[np.asarray(self.tree.child_count) > 0].mean())


class Mctx:
    """mctx's search over trees of up to `nodes` nodes, stopped after some simulations."""

    def __init__(self, trees: int, nodes: int, simulations: int, children: int):
        try:
            import mctx
        except ImportError:
            raise UserError('mctx', expected='not found', remedy='pip install mctx') from None
        zeros = jnp.zeros(trees)
        priors = jnp.zeros((trees, children))
        embedding = jnp.arange(trees, dtype=jnp.float32)
        root = mctx.RootFnOutput(prior_logits=priors, value=zeros, embedding=embedding)

        def model(params, key, action, embedding):
            del params, key
            value = jnp.sin(embedding * 7.1 + action)
            output = mctx.RecurrentFnOutput(
                reward=zeros, discount=jnp.ones(trees), prior_logits=priors, value=value
            )
            return output, value

        def select(key, tree, node, depth):
            del key, depth
            # An action not tried yet counts as one visit of value 0.
            visits = jnp.maximum(tree.children_visits[node], 1).astype(jnp.float32)
            log_visits = jnp.log(jnp.maximum(tree.node_visits[node], 1).astype(jnp.float32))
            bonus = EXPLORATION * jnp.sqrt(log_visits / visits)
            return jnp.argmax(tree.children_values[node] + bonus)

        def loop(lower, upper, body, state):
            del upper
            return jax.lax.fori_loop(lower, simulations, body, state)

        def search(key):
            return mctx.search(
                (),
                key,
                root=root,
                recurrent_fn=model,
                root_action_selection_fn=lambda key, tree, node: select(key, tree, node, 0),
                interior_action_selection_fn=select,
                num_simulations=nodes - 1,
                loop_fn=loop,
            )

        self._search, self._simulations = jax.jit(search), simulations
        self.tree: Any = None

    def seconds(self) -> float:
        start = time.perf_counter()
        self.tree = jax.block_until_ready(self._search(jax.random.key(0)))
        return time.perf_counter() - start

    def mean_depth(self) -> float:
        """Of the nodes that the simulations added."""
        parents = np.asarray(self.tree.parents)[:, : self._simulations + 1]
        depth = np.zeros_like(parents)
        rows = np.arange(len(parents))
        for node in range(1, parents.shape[1]):
            depth[:, node] = depth[rows, parents[:, node]] + 1
        return float(depth[:, 1:].mean())
