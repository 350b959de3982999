"""The table of the stages: all of them run and are told, and what binds them is in the config."""

import pytest

from rstar_jax import rounds, stages
from rstar_jax.keys import KEYS
from rstar_jax.report.stages import DESCRIBE


def test_every_stage_is_run_and_told():
    assert {*stages.KINDS} == {*rounds.STAGES} == {*DESCRIBE}


@pytest.mark.parametrize('name', stages.KINDS)
def test_a_stage_is_made_of_folders_and_keys_that_there_are(name):
    kind = stages.KINDS[name]
    assert {*kind.needs, *kind.uses} <= {other.folder for other in stages.KINDS.values()}
    for key in kind.binds:
        assert stages.bound(KEYS, [key]), key
    assert {*kind.grows} <= {*stages.bound(KEYS, kind.binds)}


def test_how_fast_it_runs_binds_nothing():
    settings = {'search.rollouts': 8, 'search.slots': 64, 'searching': 1}
    assert stages.bound(settings, ('search',)) == {'search.rollouts': 8}
