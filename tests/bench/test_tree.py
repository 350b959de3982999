"""The bench of tree operations: both sides do the work that it says."""

import jax
import numpy as np
import pytest

from rstar_jax.bench import tree
from rstar_jax.search import tree as trees_lib
from rstar_jax.settings.errors import UserError


def test_every_simulation_walks_from_the_root_and_expands_one_node():
    trees, children, simulations = 3, 4, 7
    nodes = 1 + simulations * children
    expansions = tree.random_expansions(trees, simulations, children, seed=0)
    ours = tree.Ours(tree.simulation, tree.ENDLESS, trees, nodes, expansions)
    ours.seconds()
    grown = jax.device_get(ours.tree)
    np.testing.assert_array_equal(grown.size, nodes)
    np.testing.assert_array_equal((grown.child_count > 0).sum(axis=1), simulations)
    # Each expansion backed one answer up to the root, and the walk was left at an open leaf.
    np.testing.assert_array_equal(grown.visits[:, trees_lib.ROOT], simulations)
    rows = np.arange(trees)
    assert (grown.child_count[rows, grown.cursor] == 0).all()
    np.testing.assert_array_equal(grown.moves, grown.depth[rows, grown.cursor] - 1)


def test_mctx_adds_one_node_a_simulation():
    theirs = tree.Mctx(trees=3, nodes=29, simulations=7, children=4)
    theirs.seconds()
    np.testing.assert_array_equal((np.asarray(theirs.tree.parents) >= 0).sum(axis=1), 7)
    assert 1 < theirs.mean_depth() < 4


@pytest.mark.parametrize(
    ('settings', 'argument'),
    [({'nodes': 4}, '--children'), ({'children': 0}, '--children'), ({'trees': 0}, '--trees')],
)
def test_wrong_settings_are_named(settings, argument):
    with pytest.raises(UserError) as error:
        tree.Settings(**settings)
    assert error.value.argument == argument
