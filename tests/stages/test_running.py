"""What a run lacks is told in a line before its first stage begins."""

import pathlib
import shutil

import jax
import pytest

from rstar_jax import data, main, models, parallel
from rstar_jax import settings as configs
from rstar_jax.job import ledger
from rstar_jax.job.progress import Events
from rstar_jax.models import tiny
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import BY_NAME, Round, checkpoints, running, train
from rstar_jax.stages import problems as own_problems
from rstar_jax.stages.stage import Ahead
from tests.stages import doing
from tests.worlds import REPOSITORY, command

WRONG_FILES = [
    (None, 'no such file'),
    ('', 'empty'),
    ('{"question": "1+1?", "answer": "2"}\n{"question": \n', 'line 2'),
    ('{"question": "1+1?"}\n', 'without an answer'),
]


@pytest.mark.parametrize(('content', 'message'), WRONG_FILES, ids=lambda x: str(x)[:12])
def test_wrong_problem_files_are_one_line(world, tmp_path, capsys, content, message):
    path = tmp_path / 'wrong.jsonl'
    if content is not None:
        path.write_text(content)
    arguments = command(world, tmp_path / 'run', f'--config.data.problems={path}')[3:]
    assert main.main([*arguments, '--stages=search']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert 'wrong.jsonl' in error
    assert message in error
    # Nothing was made, and nothing binds: the right path is taken.
    assert not (tmp_path / 'run' / 'round1').exists()
    assert main.main([*arguments[:-1], '--stages=search', '--config.data.problems=also.json']) == 2
    assert 'also.json' in capsys.readouterr().err


def test_problems_that_rounds_share_are_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoints, 'check_searching', lambda round_, ahead: None)
    monkeypatch.setattr(
        own_problems, 'split', lambda r, known: read.append(r.number) or ([], {}, {})
    )
    config, other = configs.default(), configs.default()
    other.data.overlap = config.data.overlap + 1
    rounds = [
        Round(used, tmp_path, number, Events(None))
        for number, used in enumerate((config, config, other), 1)
    ]
    doing.check([(round_, 'search') for round_ in rounds])
    assert read == [1, 3]
    doing.check([(rounds[1], 'search')])  # files may have changed since
    assert read == [1, 3, 2]


def test_a_trained_policy_that_is_passed_over_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, 'check_searching', lambda round_, ahead: None)
    monkeypatch.setattr(own_problems, 'split', lambda r, known: ([], {}, {}))
    config = configs.default()
    config.first_round = config.last_round = 2

    def told(path):
        config.policy.path = str(path)
        used = Round(configs.for_round(config, 2), tmp_path, 2, Events(None))
        return doing.check([(used, 'search')])

    assert told('instruct') == []
    ledger.write_json(tmp_path / 'round1' / 'policy' / 'done.json', {})
    (line,) = told('instruct')
    assert 'round 2: searches with instruct' in line and '--config.policy.path=previous' in line
    assert told(tmp_path / 'round1' / 'policy') == told('previous') == []


def test_built_in_problems_are_made_where_a_benchmark_asks_for_them(tmp_path):
    path = tmp_path / 'sums.json'
    path.write_text('[{"index": 0, "question": "1+1?", "answer": "2"}]')

    def found(names, limit):
        config = configs.default()
        config.eval.benchmarks, config.eval.limit, config.data.limit = names, 3, limit
        problems = own_problems.benchmarks(Round(config, tmp_path, 1, Events(None)))
        return {name: len(rows) for name, rows in problems.items()}

    assert found(str(path), 10**12) == {'sums': 1}  # more than there are
    assert found(f'{path}, arithmetic', 40) == {'sums': 1, 'arithmetic': 3}
    with pytest.raises(UserError, match='known are arithmetic, '):
        found('arithmetics', 40)


def alone(monkeypatch):
    """Neither models nor problems are read."""
    monkeypatch.setattr(checkpoints, 'check_searching', lambda round_, ahead: None)
    monkeypatch.setattr(own_problems, 'split', lambda r, known: ([], {}, {}))
    monkeypatch.setattr(own_problems, 'benchmarks', lambda round_, whole=False: {})


def test_each_pass_of_a_search_is_looked_at(tmp_path, monkeypatch):
    alone(monkeypatch)
    config = configs.default()
    config.search.more_rollouts = (64, 10**6)
    with pytest.raises(UserError, match='a tree of .* nodes, with rollouts=1000000'):
        doing.check([(Round(config, tmp_path, 1, Events(None)), 'search')])


def test_prompts_that_an_evaluation_has_no_room_for(tmp_path, monkeypatch):
    models.save(tiny.policy(['What is 1 + 1?'], num_layers=1), tmp_path / 'policy')
    monkeypatch.setattr(own_problems, 'benchmarks', lambda round_: {})
    config = configs.default()
    config.policy.path = config.base.path = str(tmp_path / 'policy')
    config.search.prompt, config.search.path_tokens = 'few_shot', 100_000

    def look(tokens, name):
        config.search.path_tokens = tokens
        return doing.check([(Round(config, tmp_path / 'run', 0, Events(None)), name)])

    for name in ('eval', 'base'):
        assert look(100_000, name) == []
        with pytest.raises(UserError, match='path_tokens=300: a prompt has'):
            look(300, name)


@pytest.mark.parametrize('name', ['sft', 'ppm'])
def test_a_model_that_no_training_can_hold(tmp_path, monkeypatch, name):
    policy = tiny.policy(['What is 1 + 1?'], num_layers=1)
    models.save(policy, tmp_path / 'policy')
    shapes = models.decoder.abstract_params(policy.config, headless=name == 'ppm')
    count = sum(x.size for x in jax.tree.leaves(shapes))
    config = configs.default()
    config.base.path = str(tmp_path / 'policy')
    round_ = Round(config, tmp_path / 'run', 1, Events(None))
    devices = parallel.shares(policy.config, jax.device_count())

    def look(lora, bytes_each):
        monkeypatch.setattr(train, 'device_bytes', lambda mesh: bytes_each * count / devices)
        config.training[name].lora = lora
        return BY_NAME[name].check(round_, Ahead({BY_NAME['sft'].place(round_)}))

    for lora, bytes_each in ((0, 11), (16, 3.9)):  # LoRA ends as the whole model in float32
        with pytest.raises(UserError) as error:
            look(lora, bytes_each)
        assert f'training.{name}' in error.value.argument
    assert look(0, 12) == look(16, 12) == look(0, 0) == []  # 0: a device that does not say


LATER = [
    ('eval.benchmarks=missing.json', '--config.eval.benchmarks=missing.json: no such file'),
    ('base.path=nowhere', '--config.base.path=nowhere: '),
    ('ppm.path=nowhere', '--config.ppm.path=nowhere: '),
    ('search.tensor=3', '--config.search.tensor=3: needs a divisor of the 8 devices'),
    ('eval.candidates=500000', 'candidates=500000: a tree of '),
    ('ppm.path=previous', '--config.ppm.path=previous: '),
    ('data.overlap=13', 'every problem is in a benchmark (problems): train on others'),
    ('training.sft.learning_rate=inf', 'needs a finite number'),
    ('curate.sft=missing.json', 'missing.json: no such file'),
    ('curate.pairs=missing.json', 'missing.json: no such file'),
]


@pytest.mark.parametrize(('flag', 'message'), LATER, ids=[flag for flag, _ in LATER])
def test_what_a_later_stage_lacks_is_told_before_the_first(world, tmp_path, capsys, flag, message):
    assert main.main(command(world, tmp_path / 'run', f'--config.{flag}')[3:]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert message in error
    assert not list((tmp_path / 'run').glob('round*'))


def test_devices_of_workers_on_ray_are_not_looked_for_here(world, tmp_path, capsys):
    flags = '--config.job.leases=ray', '--config.search.tensor=3', '--config.data.problems=no.json'
    assert main.main(command(world, tmp_path / 'run', *flags)[3:]) == 2
    assert 'no.json: no such file' in capsys.readouterr().err
    round_ = Round(main.parse(str(world / 'config.py'), flags[:2])[0], tmp_path, 1, Events(None))
    assert BY_NAME['eval'].check(round_, Ahead()) == []


def test_a_policy_is_no_ppm(world, tmp_path, capsys):
    models.save(models.load(world / 'policy', 'float32'), tmp_path / 'policy')
    flag = f'--config.ppm.path={tmp_path / "policy"}'
    assert main.main(command(world, tmp_path / 'run', flag)[3:]) == 2
    assert 'a policy, not a PPM: has no value_head.bin' in capsys.readouterr().err


def test_a_ppm_is_no_policy(world, tmp_path, capsys):
    """Though a policy with tied embeddings has the same weights."""
    ppm = models.init_ppm(models.load(world / 'policy', 'float32'))
    models.save_ppm(ppm, tmp_path / 'ppm')
    for file in ('value_head.bin', 'value_head.safetensors', None):
        flag = f'--config.policy.path={tmp_path / "ppm"}'
        assert main.main(command(world, tmp_path / 'run', flag)[3:]) == 2
        assert capsys.readouterr().err == f'error: {flag}: holds a ppm, not a policy\n'
        if file:
            (tmp_path / 'ppm' / file).unlink()


def test_a_model_is_read_but_for_its_weights(world, tmp_path):
    folder, flag = tmp_path / 'policy', '--config.base.path'
    models.save(models.load(world / 'policy', 'float32'), folder)
    checkpoints.check_model(folder, 'policy', flag)
    config = (folder / 'config.json').read_text()
    for name, content, message in (
        ('model.safetensors', (folder / 'model.safetensors').read_bytes()[:-1], 'is cut off'),
        ('model.safetensors', None, r'expected model\*.safetensors'),
        ('tokenizer.json', b'{', 'its tokenizer cannot be read'),
        ('config.json', config.replace('"vocab_size": ', '"vocab_size": 1').encode(), 'has shape'),
        ('config.json', b'{"model_type": "qwen2", "rope_theta": "x"}', 'config.json: cannot be r'),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=f'^{flag}={folder}: {folder}.*{message}'):
            checkpoints.check_model(folder, 'policy', flag)
        (folder / name).write_bytes(whole)


def test_a_trained_policy_is_no_ppm(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HOME', str(world.parent))
    for path in (world / 'policy', f'~/{world.name}/policy'):
        flag = '--config.ppm.path='
        assert main.main(command(world, tmp_path / 'run', f'{flag}{path}')[3:]) == 2
        error = capsys.readouterr().err
        assert error == f'error: {flag}{world / "policy"}: holds a policy, not a ppm\n'


@pytest.mark.parametrize(
    ('given', 'flags', 'message'),
    [
        ('sft', [], '--config.curate.pairs=: ppm has nothing to train on'),
        ('pairs', [], '--config.curate.sft=: sft has nothing to train on'),
        ('sft', ['--stages=curate,sft'], ''),
        (
            'pairs',
            ['--stages=curate,ppm', '--config.training.ppm.loss=orm'],
            'ppm.loss=orm: learns from trajectories, which no file holds',
        ),
    ],
)
def test_files_of_examples_are_of_what_is_trained(
    world, tmp_path, capsys, monkeypatch, given, flags, message
):
    items = {
        'sft': {'query': 'q', 'response': 'r'},
        'pairs': {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'},
    }
    shutil.copytree(world / 'policy', tmp_path / 'run' / 'round1' / 'policy')
    path = tmp_path / 'given.json'
    ledger.write_json(path, [items[given]])
    monkeypatch.setattr(running, 'run_stage', lambda *_: None)
    arguments = command(
        world, tmp_path / 'run', '--stages=curate,sft,ppm', f'--config.curate.{given}={path}'
    )
    code = main.main([*arguments[3:], *flags])
    assert message in capsys.readouterr().err
    assert code == (2 if message else 0)


@pytest.mark.parametrize('named', [True, False])
def test_a_complete_curation_of_files_without_examples_is_told_first(tmp_path, named):
    """Whether the command names its file again or not; no search is to blame."""
    config, path = configs.default(), tmp_path / 'pairs.json'
    config.policy.path = config.base.path = 'somewhere'
    ledger.write_json(path, [{'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}])
    config.curate.pairs = str(path)
    round_ = Round(config, tmp_path, 1, Events(None))
    stage = doing.kept(round_, 'curate')
    stage.begin()
    stage.finish(doing.work(round_, 'curate', stage))
    config.curate.pairs = str(path) if named else ''
    with pytest.raises(UserError) as error:
        doing.check([(round_, 'sft')])
    assert (error.value.argument, error.value.value) == ('curate.sft', '')
    assert str(stage.folder) in error.value.remedy
    data.store_examples(stage.folder, 'sft', [{'query': 'q', 'response': 'r'}])
    with pytest.raises(UserError) as error:
        doing.check([(round_, 'sft')])
    assert (error.value.argument, error.value.value) == ('--config.base.path', 'somewhere')


@pytest.mark.parametrize('kind', ['sft', 'pairs'])
def test_files_without_an_example_are_told_first(world, tmp_path, capsys, kind):
    path = tmp_path / 'given.json'
    path.write_text('[]')
    flag = f'--config.curate.{kind}={path}'
    arguments = command(world, tmp_path / 'run', '--stages=curate', flag)
    assert main.main(arguments[3:]) == 2
    assert capsys.readouterr().err == f'error: {flag}: holds no example\n'
    assert not (tmp_path / 'run' / 'round1').exists()


def test_stages_without_those_that_they_need_are_told_first(world, tmp_path, capsys):
    arguments = command(world, tmp_path / 'run', '--stages=search,sft')[3:]
    assert main.main(arguments) == 2
    assert 'holds no finished curate' in capsys.readouterr().err
    assert not list((tmp_path / 'run').glob('round*'))


def test_later_rounds_without_a_base_model_are_told_first(world, tmp_path, capsys):
    arguments = [
        f'--config={REPOSITORY / "experiments" / "round2.py"}',
        f'--workdir={tmp_path / "run"}',
        f'--config.data.problems={world / "problems.json"}',
        f'--config.eval.benchmarks={world / "problems.json"}',
        '--config.data.overlap=0',
        '--config.last_round=4',
    ]
    for name in ('policy', 'ppm'):
        made = shutil.copytree(world / 'policy', tmp_path / 'run' / 'round1' / name)
        ledger.write_json(made / 'done.json', {'id': name})
    assert main.main(arguments) == 2
    assert '--config.base.path=: needs the model that every round trains from' in (
        capsys.readouterr().err
    )
    assert not (tmp_path / 'run' / 'round2').exists()


def unsupported(folder: pathlib.Path) -> str:
    (folder / 'config.json').write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    return str(folder)


def run_of_two(folder: pathlib.Path) -> str:
    ledger.write_json(folder / 'config.json', {})  # a run has one, too
    for number in (1, 2):
        ledger.write_json(folder / f'round{number}' / 'policy' / 'model.json', {'kind': 'policy'})
    return str(folder)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda folder: str(folder / 'missing'), 'missing'),
        (unsupported, 'architecture BertModel is not supported'),
        (lambda folder: '', '--config.policy.path=: needs a model'),
        (lambda folder: 'previous', 'holds no finished policy'),
        (lambda folder: 'tiny', '--config.policy.path=tiny: is made by the bootstrap alone'),
        (run_of_two, 'a run, or a round of one, not a model: use '),
    ],
    ids=['missing', 'architecture', 'empty', 'previous', 'tiny', 'run'],
)
def test_wrong_models_are_one_line(world, tmp_path, capsys, make, message):
    arguments = command(world, tmp_path / 'run', f'--config.policy.path={make(tmp_path)}')[3:]
    assert main.main([*arguments, '--stages=search']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert message in error
