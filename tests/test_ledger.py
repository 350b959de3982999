"""The workdir's bookkeeping: completion, settings that bind, inputs that are new, the lock."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from rstar_jax import ledger
from rstar_jax.errors import UserError


def finished(folder: pathlib.Path, **arguments) -> ledger.Stage:
    stage = ledger.Stage(folder, **arguments)
    stage.begin()
    stage.finish({'trees': 3})
    return stage


def test_a_finished_stage_says_what_it_made(tmp_path):
    stage = ledger.Stage(tmp_path / 'search')
    assert stage.done is None
    assert not stage.begun
    stage.begin()
    assert stage.begun
    assert stage.done is None
    stage.finish({'trees': 3})
    assert stage.done['figures'] == {'trees': 3}
    assert 0 <= stage.done['seconds'] < 5
    assert not list(tmp_path.rglob('*.tmp'))


def test_seconds_of_a_killed_run_are_counted(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ledger.time, 'monotonic', lambda: now[0])
    stage = ledger.Stage(tmp_path / 'search')
    stage.begin()
    now[0] += 60
    stage.beat()
    now[0] += 1
    stage.beat()  # too soon to be written
    again = ledger.Stage(tmp_path / 'search')
    now[0] += 1000  # nobody was working
    again.begin()
    now[0] += 5
    assert again.seconds == 65


def test_a_new_input_makes_the_stage_stale(tmp_path):
    search = finished(tmp_path / 'search')
    curate = finished(tmp_path / 'curate', inputs=(search.folder,))
    assert curate.drop_if_stale() is None
    finished(search.folder)
    assert curate.drop_if_stale() == f'{tmp_path.name}/search'
    assert not curate.folder.exists()


def test_precious_results_are_not_deleted(tmp_path):
    policy = finished(tmp_path / 'policy')
    search = finished(tmp_path / 'search', inputs=(policy.folder,), precious=True)
    finished(policy.folder)
    with pytest.raises(UserError, match='made from an older .*policy: delete the folder'):
        search.drop_if_stale()
    assert search.done


def test_an_input_that_was_not_there_before_changes_nothing(tmp_path):
    stage = finished(tmp_path / 'eval', inputs=(tmp_path / 'ppm',))
    finished(tmp_path / 'ppm')
    assert stage.drop_if_stale() is None


def test_an_input_may_be_a_model_in_one_file(tmp_path):
    (tmp_path / 'model.gguf').write_bytes(b'GGUF')
    stage = finished(tmp_path / 'eval', inputs=(tmp_path / 'model.gguf',))
    assert stage.done
    assert stage.drop_if_stale() is None


def test_settings_bind_only_what_has_begun(tmp_path):
    stages = {
        'search': ledger.Stage(tmp_path / 'search', ('seed', 'search')),
        'sft': ledger.Stage(tmp_path / 'sft', ('training.sft',)),
    }
    settings = {'seed': 0, 'search.rollouts': 8, 'search.slots': 64, 'training.sft.epochs': 2}

    def check(**changes):
        now = {**settings, **{key.replace('__', '.'): v for key, v in changes.items()}}
        ledger.check_settings(tmp_path, 'round1', now, stages, unbound=('search.slots',))

    check()
    check(search__rollouts=16)  # nothing has begun
    check()
    stages['search'].begin()
    check(search__rollouts=16)  # it has begun, and made nothing
    check()
    (stages['search'].folder / 'tree-0-1-0.array_record').write_bytes(b'')
    check(training__sft__epochs=3, search__slots=8)
    with pytest.raises(UserError) as error:
        check(search__rollouts=16)
    message = str(error.value)
    assert message.startswith('--config.search.rollouts=16: ')
    assert 'was made with 8' in message
    assert 'another --workdir' in message
    assert '\n' not in message
    with pytest.raises(UserError, match='--config.seed=1'):
        check(seed=1)
    ledger.check_settings(tmp_path, 'round2', {**settings, 'seed': 1}, {})  # another round
    kept = json.loads((tmp_path / 'config.json').read_text())
    assert kept['round1']['search.rollouts'] == 8
    assert kept['round2']['seed'] == 1


def test_a_key_of_a_newer_version_binds_by_its_default(tmp_path):
    stages = {'search': ledger.Stage(tmp_path / 'search', ('search',))}
    ledger.check_settings(tmp_path, 'round1', {'search.rollouts': 8, 'search.gone': 1}, stages)
    finished(stages['search'].folder)

    def check(new):
        now = {'search.rollouts': 8, 'search.new': new}
        defaults = {'search.rollouts': 48, 'search.new': 'plain'}
        ledger.check_settings(tmp_path, 'round1', now, stages, defaults=defaults)

    with pytest.raises(UserError, match='search.new=other: .* was made with plain'):
        check('other')
    check('plain')


def test_a_limit_that_is_raised_reopens_the_stage(tmp_path):
    search = ledger.Stage(tmp_path / 'search', ('data',), growing=('data.limit',))

    def check(limit, followers=()):
        stage = dataclasses.replace(search, followers=followers)
        ledger.check_settings(tmp_path, 'round1', {'data.limit': limit}, {'search': stage})

    check(8)
    finished(search.folder)
    (search.folder / 'tree-0-1-0.array_record').write_bytes(b'')
    check(8)
    assert search.done
    with pytest.raises(UserError, match='--config.data.limit=4: .* was made with 8'):
        check(4)
    later = tmp_path / 'round2' / 'search'
    with pytest.raises(UserError, match='data.limit=9: .*round2/search was made from the first 8'):
        check(9, (later,))
    assert search.done
    check(9)
    assert search.done is None and search.binding
    finished(search.folder)
    check(0)  # all
    assert search.done is None
    finished(search.folder)
    with pytest.raises(UserError, match='--config.data.limit=9: .* was made with 0'):
        check(9)


def test_a_broken_file_is_a_user_error(tmp_path):
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(UserError, match='config.json: not JSON'):
        ledger.check_settings(tmp_path, 'round1', {}, {})


def test_two_processes_do_not_share_a_workdir(tmp_path):
    program = (
        'import pathlib, sys; from rstar_jax import ledger\n'
        'with ledger.lock(pathlib.Path(sys.argv[1])): print("held", flush=True); sys.stdin.read()'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    try:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(UserError, match='another run is writing'), ledger.lock(tmp_path):
            pass
    finally:
        other.communicate('')
    with ledger.lock(tmp_path):
        pass


def test_a_workdir_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'), ledger.lock(tmp_path / 'file' / 'w'):
        pass
