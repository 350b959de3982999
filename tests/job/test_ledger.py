"""The workdir's bookkeeping: completion, settings that bind, inputs that are new, the lock."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from rstar_jax import data
from rstar_jax.job import atomic, hosts, ledger
from rstar_jax.settings.errors import Later, UserError
from tests.data import samples


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
    assert not list(tmp_path.rglob(f'{atomic.TEMPORARY}*'))


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


def test_seconds_of_a_complete_stage_count_when_it_goes_on(tmp_path, monkeypatch):
    """Also those since they were last kept: of a short stage, all."""
    now = [100.0]
    monkeypatch.setattr(ledger.time, 'monotonic', lambda: now[0])
    for limit, seconds in ((2, 7.0), (4, 12.0)):
        search, row = stage(
            tmp_path / 'round1' / 'search', {'data.limit': limit}, growing=('data.limit',)
        )
        ledger.check([row])
        search.begin()
        (search.folder / 'tree').write_text('')
        now[0] += 7 if limit == 2 else 5
        search.finish({})
        assert search.done['seconds'] == seconds
        now[0] += 1000  # nobody was working


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
    with pytest.raises(UserError) as wrong:
        search.drop_if_stale()
    assert wrong.value.argument == str(search.folder)
    assert search.done


def test_an_input_that_was_not_there_before_reopens_what_is_of_its_round(tmp_path):
    names = [tmp_path / 'round1' / name for name in ('eval', 'ppm', 'search', 'synthesize')]
    evaluation = finished(names[0], inputs=(names[1], tmp_path / 'model'))
    (names[0] / 'tree').write_text('')
    finished(tmp_path / 'model')
    assert evaluation.drop_if_stale() is None
    finished(names[1])
    assert evaluation.drop_if_stale() == 'round1/ppm'
    assert not evaluation.done and evaluation.binding
    assert evaluation.drop_if_stale() is None  # it goes on
    evaluation.begin()
    evaluation.finish({})
    assert evaluation.drop_if_stale() is None
    search = finished(names[2], inputs=(names[3],), precious=True)
    finished(names[3])
    with pytest.raises(UserError) as wrong:
        search.drop_if_stale()
    assert wrong.value.argument == str(search.folder)


def test_an_input_may_be_a_model_in_one_file(tmp_path):
    (tmp_path / 'model.gguf').write_bytes(b'GGUF')
    stage = finished(tmp_path / 'eval', inputs=(tmp_path / 'model.gguf',))
    assert stage.done
    assert stage.drop_if_stale() is None


def stage(folder, settings, **options):
    """A stage bound by `settings`, and its row for `ledger.check`."""
    made = ledger.Stage(folder, settings, **options)
    return made, (made, folder.parent.name, folder.name, settings)


def test_settings_bind_only_what_has_begun(tmp_path):
    settings = {'seed': 0, 'search.rollouts': 8}

    def check(**changes):
        now = {**settings, **{key.replace('__', '.'): v for key, v in changes.items()}}
        search, row = stage(tmp_path / 'round1' / 'search', now)
        ledger.check([row])
        return search

    check()
    check(search__rollouts=16)  # nothing has begun
    check().begin()
    check(search__rollouts=16)  # it has begun, and made nothing
    (check().folder / 'tree-0-1-0.array_record').write_bytes(b'')
    for _ in range(2):  # what was asked for in vain binds nothing
        with pytest.raises(UserError) as error:
            check(search__rollouts=16)
        assert (error.value.argument, error.value.value) == ('search.rollouts', 16)
        assert '\n' not in str(error.value)
    with pytest.raises(UserError) as wrong:
        check(seed=1)
    assert (wrong.value.argument, wrong.value.value) == ('seed', 1)
    check()
    ledger.check([stage(tmp_path / 'round2' / 'search', {'seed': 1})[1]])  # another round
    kept = json.loads((tmp_path / 'config.json').read_text())
    assert kept == {'round1': settings, 'round2': {'seed': 1}}


def test_settings_of_many_rounds_are_written_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(ledger, 'write_json', lambda path, value: written.append(value))
    ledger.check([stage(tmp_path / f'round{n}' / 'search', {'seed': n})[1] for n in range(3)])
    assert written == [{f'round{n}': {'seed': n} for n in range(3)}]


def test_each_stage_of_a_round_is_bound_by_its_own_settings(tmp_path):
    """Whichever stages a command asks for, and whatever another one asked for before."""

    def check(rollouts, epochs, *names):
        both = {
            'search': {'seed': 0, 'search.rollouts': rollouts},
            'policy': {'seed': 0, 'training.sft.epochs': epochs},
        }
        whole = both['search'] | both['policy']
        stages = {name: ledger.Stage(tmp_path / 'round1' / name, both[name]) for name in names}
        ledger.check([(made, 'round1', name, whole) for name, made in stages.items()])
        return stages.values()

    for each in check(8, 2, 'search', 'policy'):
        each.begin()
        (each.folder / 'made').write_bytes(b'')
        each.finish({})
    check(8, 3, 'search')
    kept = json.loads((tmp_path / 'config.json').read_text())['round1']
    assert kept == {'seed': 0, 'search.rollouts': 8, 'training.sft.epochs': 2}
    for _ in range(2):
        with pytest.raises(UserError) as wrong:
            check(8, 3, 'search', 'policy')
        assert (wrong.value.argument, wrong.value.value) == ('training.sft.epochs', 3)
    check(8, 2, 'search', 'policy')


def test_a_key_of_a_newer_version_binds_by_its_default(tmp_path):
    search, row = stage(tmp_path / 'round1' / 'search', {'search.rollouts': 8, 'search.gone': 1})
    ledger.check([row])
    search.begin()
    (search.folder / 'tree').write_bytes(b'')

    def check(new):
        now = {'search.rollouts': 8, 'search.new': new}
        _, row = stage(tmp_path / 'round1' / 'search', now)
        ledger.check([row], defaults={'search.rollouts': 48, 'search.new': 'plain'})

    with pytest.raises(UserError) as wrong:
        check('other')
    assert (wrong.value.argument, wrong.value.value) == ('search.new', 'other')
    check('plain')


def test_what_grows_reopens_the_stage(tmp_path):
    def check(limit=8, strategies='greedy', **options):
        settings = {'data.limit': limit, 'eval.strategies': strategies}
        growing = tuple(settings)
        made, row = stage(tmp_path / 'round1' / 'search', settings, growing=growing, **options)
        ledger.check([row])
        return made

    def make(*settings):
        made = check(*settings)
        made.begin()
        (made.folder / 'tree-0-1-0.array_record').write_bytes(b'')
        made.finish({})

    make()
    assert check().done
    with pytest.raises(UserError) as wrong:
        check(4)
    assert (wrong.value.argument, wrong.value.value) == ('data.limit', 4)
    later = tmp_path / 'round2' / 'search'
    with pytest.raises(UserError) as wrong:
        check(9, followers=(later,))
    assert wrong.value.argument == 'data.limit' and str(later) in wrong.value.expected
    with pytest.raises(UserError) as wrong:
        check(9, 'mcts')
    assert wrong.value.argument == 'eval.strategies'
    assert check().done
    reopened = check(9)
    assert reopened.done is None and reopened.binding
    make(9)
    assert check(9, 'mcts, greedy').done is None
    make(0)  # all
    with pytest.raises(UserError) as wrong:
        check(9)
    assert (wrong.value.argument, wrong.value.value) == ('data.limit', 9)
    make(0, 'greedy,mcts')
    assert check(0, 'mcts, greedy').done


def test_what_is_found_missing_leaves_all_as_it_is(tmp_path):
    """As a benchmark whose name has a slip: what was complete stays so."""

    def check(limit, **options):
        settings = {'eval.limit': limit}
        made, row = stage(tmp_path / 'round1' / 'eval', settings, growing=('eval.limit',))
        ledger.check([row], **options)
        return made

    made = check(2)
    made.begin()
    (made.folder / 'tree').write_text('')
    made.finish({})
    looked = []

    def missing(grown):
        looked.append(grown)
        raise UserError('no such benchmark')

    kept = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(UserError) as wrong:
        check(4, further=missing)
    assert wrong.value.argument == 'no such benchmark'
    assert looked == [{made.folder}]
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    check(2, further=looked.append)
    assert looked[1:] == [set()] and made.done
    assert check(4, further=looked.append).done is None


def test_an_empty_setting_is_told_in_a_word(tmp_path):
    made, _ = stage(tmp_path / 'round1' / 'search', {'data.levels': ''})
    made.begin()
    made.finish({})
    _, row = stage(tmp_path / 'round1' / 'search', {'data.levels': '1-3'})
    with pytest.raises(UserError) as wrong:
        ledger.check([row])
    assert 'nothing' in wrong.value.expected


def test_what_would_be_older_than_its_source_is_told_first(tmp_path):
    """All that is, through any number of stages."""

    def check(*left_out):
        rows, before = [], ()
        for number in (1, 2, 3):
            for name in ('search', 'curate', 'policy'):
                folder, precious = tmp_path / f'round{number}' / name, name == 'search'
                _, row = stage(folder, {}, inputs=before, precious=precious)
                rows += [] if row[1:3] in left_out else [row]
                before = (folder,)
        ledger.check(rows)
        return [made for made, *_ in rows]

    for made in check()[:-2]:
        made.begin()
        (made.folder / 'made').write_text('')
        made.finish({})
    check()  # two are left to be done
    (tmp_path / 'round1' / 'curate' / 'done.json').unlink()
    for _ in range(2):
        with pytest.raises(UserError) as error:
            check()
        assert error.value.argument == f'{tmp_path}/round2/search, {tmp_path}/round3/search'
    check(('round1', 'curate'))  # which is not done now
    shutil.rmtree(tmp_path / 'round2' / 'search')
    with pytest.raises(UserError) as wrong:
        check(('round1', 'curate'))
    assert wrong.value.argument == f'{tmp_path}/round3/search'
    shutil.rmtree(tmp_path / 'round3' / 'search')
    check()


@pytest.mark.parametrize(
    'name', ['config.json', 'round1/search/begun.json', 'round1/search/done.json']
)
@pytest.mark.parametrize('text', ['{', '[]', '3'])
def test_a_broken_file_is_a_user_error(tmp_path, name, text):
    search, row = stage(tmp_path / 'round1' / 'search', {})
    search.begin()
    (search.folder / 'tree.array_record').touch()  # begun.json is read where something was made
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as wrong:
        ledger.check([row])
    assert wrong.value.argument == str(tmp_path / name)


def test_rounds_are_folders_with_a_number(tmp_path):
    for name in ('round10', 'round2', 'round0', 'round1_old', 'round3-old', 'rounds', 'round'):
        (tmp_path / name).mkdir()
    (tmp_path / 'round4').write_text('')
    assert ledger.rounds(tmp_path) == [(n, tmp_path / f'round{n}') for n in (0, 2, 10)]
    assert ledger.rounds(tmp_path / 'missing') == []


def test_two_processes_do_not_share_a_workdir(tmp_path):
    program = (
        'import pathlib, sys; from rstar_jax.job import ledger\n'
        'with ledger.lock(pathlib.Path(sys.argv[1])): print("held", flush=True); sys.stdin.read()'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    try:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(Later) as refused, ledger.lock(tmp_path):
            pass
        assert refused.value.argument == str(tmp_path)
    finally:
        other.communicate('')
    with ledger.lock(tmp_path):
        pass


@pytest.mark.parametrize('error', [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_has_a_file_for_a_lock(tmp_path, monkeypatch, error):
    """NFS without its daemon, Lustre without flock."""

    def flock(file, how):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with ledger.lock(tmp_path):
        with pytest.raises(Later) as refused, ledger.lock(tmp_path):
            pass
        assert str(atomic.owner(tmp_path / '.lock')) in refused.value.remedy
    for number in range(2):
        with data.TreeStore(tmp_path / 'trees') as store:
            assert store.append(samples.grown(number, index=number))


def test_a_workdir_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError) as wrong, ledger.lock(tmp_path / 'file' / 'w'):
        pass
    assert wrong.value.argument


def test_of_several_processes_the_first_one_writes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ledger.time, 'monotonic', lambda: now[0])
    search, row = stage(tmp_path / 'round1' / 'search', {'seed': 0})
    monkeypatch.setattr(hosts, 'is_first', lambda: False)
    ledger.check([row])
    search.begin()
    now[0] += 60
    search.beat()
    assert search.seconds == 60
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(hosts, 'is_first', lambda: True)
    ledger.check([row])
    search.begin()
    assert (tmp_path / 'config.json').exists() and search.begun


@pytest.mark.parametrize('write', [ledger.write_json, atomic.write_json])
def test_writers_of_one_file_may_have_the_same_process_id(tmp_path, monkeypatch, write):
    """As on hosts that each run a container: one writes all of it while the other is at work."""
    path, names = tmp_path / 'begun.json', []
    monkeypatch.setattr(os, 'getpid', lambda: 1)

    def meanwhile(_):
        names.append([x.name for x in tmp_path.iterdir() if x.name.startswith('.')])
        if len(names) == 1:
            write(path, 'other')
            assert json.loads(path.read_text()) == 'other'

    monkeypatch.setattr(os, 'fsync', meanwhile)
    write(path, 'one')
    assert json.loads(path.read_text()) == 'one'
    assert [len(found) for found in names[:2]] == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        ledger.write_json(tmp_path / 'done.json', {'figures': object()})
    assert not list(tmp_path.iterdir())
