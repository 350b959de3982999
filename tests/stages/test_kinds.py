"""The table of the stages: all of them run and are told, and what binds them is in the config."""

import pytest

from rstar_jax import rounds
from rstar_jax.job import ledger
from rstar_jax.job.progress import Events
from rstar_jax.report.stages import DESCRIBE
from rstar_jax.settings import configs, kinds
from rstar_jax.settings.table import KEYS
from rstar_jax.stages import order, sources
from rstar_jax.training import trainer


def test_every_stage_is_run_and_told():
    assert {*kinds.KINDS} == {*rounds.STAGES} == {*DESCRIBE}


@pytest.mark.parametrize('name', kinds.KINDS)
def test_a_stage_is_made_of_folders_and_keys_that_there_are(name):
    kind = kinds.KINDS[name]
    assert {*kind.needs, *kind.uses} <= {other.folder for other in kinds.KINDS.values()}
    for key in kind.binds:
        assert kinds.bound(KEYS, [key]), key
    assert {*kind.grows} <= {*kinds.bound(KEYS, kind.binds)}


def test_how_fast_it_runs_binds_nothing():
    settings = {'search.rollouts': 8, 'search.slots': 64, 'searching': 1}
    assert kinds.bound(settings, ('search',)) == {'search.rollouts': 8}


def test_a_training_that_has_begun_goes_on_with_another_attention(tmp_path):
    for attention in ('auto', 'cudnn', 'loop'):
        config = configs.default()
        config.training.sft.attention = attention
        round_ = sources.Round(configs.for_round(config, 1), tmp_path, 1, Events(None))
        stage = order.stage_of(round_, 'sft')
        ledger.check([(stage, 'round1', 'sft', configs.flatten(round_.config))])
        stage.begin()
        (stage.folder / 'metrics.jsonl').touch()
    assert stage.binding
    for name in kinds.TRAININGS:
        assert {f'training.{name}.{key}' for key in trainer.FREE} <= {*kinds.UNBOUND}
