"""What all stages have in common, and that a new one is a file and a line in a list."""

import pytest

from rstar_jax import rounds, stages
from rstar_jax import settings as configs
from rstar_jax.stages import STAGES, Round, Stage, running


def test_a_new_stage_is_a_class_and_a_line(tmp_path, monkeypatch):
    class Count(Stage):
        name = 'curate'  # whose settings bind it
        folder = 'count'

        def run(self, round_, work):
            (work.folder / 'made.txt').write_text('1')
            return {'counted': 1}

        def describe(self, figures):
            return f'{figures["counted"]} counted'

    stage, round_ = Count(), Round(configs.default(), tmp_path, 1)
    running.run_all([(round_, stage)])
    done = stage.kept(round_).done
    assert done['figures'] == {'counted': 1} and stage.describe(done['figures']) == '1 counted'
    (tmp_path / 'round1' / 'count' / 'made.txt').unlink()
    running.run_all([(round_, stage)])  # is complete
    assert stage.kept(round_).done == done
    assert not (tmp_path / 'round1' / 'count' / 'made.txt').exists()


@pytest.mark.parametrize('stage', STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_made_of_what_others_make(stage, tmp_path):
    folders = {other.folder for other in STAGES}
    assert {*stage.needs, *stage.uses} <= folders
    bound = stage.bound(Round(configs.default(), tmp_path, 1))
    assert bound.keys() <= configs.flatten(configs.default()).keys()
    assert bool(bound) == (stage.name != 'export')


def test_the_method_runs_every_stage_in_the_order_of_the_list():
    order = [stage.name for stage in STAGES]
    method = [name for _, name in rounds.method(1, 1)]
    assert {*method} == {*order} == {*stages.BY_NAME}
    assert [name for number, name in rounds.method(1, 1) if number] == [
        name for name in order if name not in ('bootstrap', 'base')
    ]


def test_how_fast_a_search_runs_does_not_bind_it(tmp_path):
    config = configs.default()
    round_ = Round(config, tmp_path, 1)
    before = stages.BY_NAME['search'].bound(round_)
    config.search.slots, config.execution.workers = 64, 7
    assert stages.BY_NAME['search'].bound(round_) == before
    config.search.rollouts += 1
    assert stages.BY_NAME['search'].bound(round_) != before


def test_a_workdir_does_not_keep_the_key_of_a_server(tmp_path):
    config = configs.default()
    config.serve.key = 'secret'
    assert 'secret' not in Round(config, tmp_path, 1).settings.values()
