"""The bench of whole searches: the plain loop grows the same trees, and tokens are counted."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from rstar_jax import steps
from rstar_jax.bench import _plain_loop, search
from rstar_jax.models import tiny
from rstar_jax.parallel import compiled
from rstar_jax.settings.errors import UserError
from tests.search import favoured, test_engine

# One size of the decode batch, so that little is compiled.
CONFIG = dataclasses.replace(test_engine.CONFIG, slots=1)
PROBLEMS = test_engine.PROBLEMS[:2]


@pytest.fixture(scope='module')
def policy():
    made = tiny.policy(['print(1)\n x = 1 + 2 \\boxed{3} apples Tom'], num_layers=1)
    return favoured.favour(made)


@pytest.fixture(scope='module')
def runs(policy):
    """The same problems by the engine and by the plain loop, with a PPM."""
    task = search.Task(policy, search.random_ppm(policy, 1), CONFIG, PROBLEMS)
    return [search.measured(kind, task) for kind in (search.Ours, _plain_loop.LockStep)]


def test_the_plain_loop_grows_the_same_trees(runs):
    ours, plain = runs
    # The plain loop keeps no likelihoods.
    records = {
        key: dataclasses.replace(record, likelihood=plain.records[key].likelihood)
        for key, record in ours.records.items()
    }
    test_engine.assert_same(records, plain.records, exact=False)
    assert sum(np.isfinite(record.score).sum() for record in ours.records.values()) > 3


def test_tokens_are_counted(runs):
    ours, plain = runs
    prompts = sum(len(tree.nodes[0].tokens) for tree in ours.trees)
    for run in runs:
        sampled = sum(record.counters['sampled_tokens'] for record in run.records.values())
        nodes, tokens = _outputs(run)
        # In front of `<output>` stand a newline and a mark, where the model did not write them.
        assert 0 <= run.unique() - prompts - sampled - tokens <= 2 * nodes
        assert run.counters['policy_computed'] >= sampled + prompts
        figures = run.figures()
        assert figures['ppm_tokens_per_unique'] >= 1
        assert figures['trees_per_minute'] > 0
        assert 0 < figures['slot_use'] <= 1
        assert 0 < figures['processor_use'] <= 1
    # Every prompt again for every step, every partial solution again for every score.
    for name in ('policy_computed', 'ppm_computed'):
        assert plain.counters[name] > ours.counters[name]
    # The engine stops candidates that cannot matter.
    assert plain.unique() >= ours.unique()


def test_the_plain_loop_can_be_ended_early(policy, capsys):
    task = search.Task(policy, None, CONFIG, PROBLEMS)
    cut, whole = (
        search.measured(_plain_loop.LockStep, task, 'plain loop', most) for most in (0.0, math.inf)
    )
    assert not cut.records and not cut.counters['sampled']
    assert len(whole.records) == len(PROBLEMS)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith('plain loop: 0 trees in ')
    assert told[-1].startswith(f'plain loop: {len(PROBLEMS)} trees in ')


def _outputs(run):
    """(nodes with an executor's output, tokens from `<output>` on in all of them)."""
    (mark,) = run.encode(steps.OUTPUT)
    found = [
        node.tokens[::-1].index(mark) + 1
        for tree in run.trees
        for node in tree.nodes
        if node.text.endswith(f'{steps.OUTPUT}{node.output}{steps.OUTPUT_END}')
    ]
    return len(found), sum(found)


def test_seconds_of_compiling_are_counted_once():
    spans = [('', *span, '') for span in [(1.0, 5.0), (2.0, 3.0), (4.0, 7.0), (9.0, 9.5)]]
    assert search.covered(spans) == 6.5

    def unheard_of(x):
        return x * 3 + 1

    with search.compiling() as (heard, _):
        jax.jit(unheard_of)(np.arange(7))
    assert {event for event, *_ in heard} == {*search.COMPILING} - {compiled.WAITED}
    assert 'unheard_of' in heard[-1][-1]


@pytest.mark.parametrize(
    ('settings', 'argument'), [({'count': 0}, '--count'), ({'model': 'somewhere'}, '--model')]
)
def test_wrong_settings_are_named(settings, argument):
    with pytest.raises(UserError) as error:
        search.Settings(**settings)
    assert error.value.argument == argument
