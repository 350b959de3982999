"""One question: what is told of it, and the tree that stays in the workdir."""

import re

import pytest

from rstar_jax import models
from rstar_jax import settings as configs
from rstar_jax.data import TreeStore
from rstar_jax.models import tiny
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import asked, checkpoints, searches
from rstar_jax.use import solve
from tests.conftest import REPOSITORY
from tests.evals.trees import tree


@pytest.fixture
def ask(monkeypatch):
    """Asks a question whose trees have these answers: lists of (answer, score, correct)."""

    def ask(question, answers, workdir=''):
        def searched(problems, policy, ppm, **settings):
            yield from (tree(problems[0], i, found) for i, found in reversed([*enumerate(answers)]))

        monkeypatch.setattr(solve.search, 'run', searched)
        monkeypatch.setattr(checkpoints, 'check_searching', lambda round_, ahead: None)
        monkeypatch.setattr(checkpoints, 'searching_model', lambda round_, kind: None)
        config = configs.load(str(REPOSITORY / 'experiments' / 'solve.py'))
        config.question = question
        return solve.solve(config, str(workdir))

    return ask


def test_the_best_scored_answer_is_told(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = ask('What is 1 + 1?', [[('3', 0.1, False)], [('2', 0.9, False), ('2', 0.2, False)]])
    assert text.startswith('Question: What is 1 + 1?')
    assert text.endswith('Answer: 2   (PPM score 0.900; 2 of 3 trajectories agree)')
    assert not list(tmp_path.iterdir())  # nobody asked for it
    assert ask('What?', [[], []]).startswith('No answer found in 2 trees')


def test_a_question_that_is_too_long_is_no_question_without_an_answer(tmp_path):
    policy = tiny.policy(['What is 1 + 1?'], num_layers=1)
    models.save(policy, tmp_path / 'policy')
    config = configs.load(str(REPOSITORY / 'experiments' / 'solve.py'))
    config.policy.path = str(tmp_path / 'policy')
    config.search.path_tokens, config.search.step_tokens = 100, 8
    config.question = 'What is 1 + 1? ' * 50
    with pytest.raises(UserError) as caught:
        solve.solve(config)
    assert caught.value.argument == 'question'


def test_a_workdir_that_cannot_be_written_is_told_before_the_search(ask, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='workdir'):
        ask('What is one?', None, tmp_path / 'file' / 'run')


def test_the_trees_stay_in_the_workdir(ask, tmp_path):
    second = [[('2', 0.1, False)], [('1', 0.5, False)]]  # the second tree has the best answer
    for number, (question, answers, shown) in enumerate(
        [('What is one?', second, 1), ('What is none?', [[]], 0)]
    ):
        text = ask(question, answers, tmp_path)
        page = tmp_path / 'report' / 'index.html'
        assert text.endswith(f'\n\nTree: {page}#tree=solve-{number}-{shown}')
        assert question in page.read_text()
    assert 'What is one?' in page.read_text()
    with TreeStore(tmp_path / 'solve', writer=None) as store:
        assert sorted(store.keys()) == [(0, 0), (0, 1), (1, 0)]
        assert store[1, 0].problem.question == 'What is none?'
    names = {path.stem for path in (tmp_path / 'report' / 'trees').glob('*.js')}
    assert names == {'solve-0-0', 'solve-0-1', 'solve-1-0'}
    assert not re.search(r'class="badge (right|wrong)"', page.read_text())  # nobody knows


def test_an_answer_is_told_though_no_page_can_be_written(ask, tmp_path):
    (tmp_path / 'report').write_text('in its place')
    text = ask('What is one?', [[('1', 0.5, False)]], tmp_path)
    assert 'Answer: 1 ' in text and text.endswith(f'Tree: {tmp_path / "solve"}')


def test_an_answer_is_told_though_its_tree_cannot_be_kept(ask, tmp_path):
    (tmp_path / 'solve').write_text('in its place')
    text = ask('What is one?', [[('1', 0.5, False)]], tmp_path)
    assert 'Answer: 1 ' in text and '\n\nTree: not kept (' in text


def test_the_models_of_the_newest_round_answer(tmp_path):
    config = configs.load(str(REPOSITORY / 'experiments' / 'solve.py'))
    config.policy.path = config.ppm.path = 'previous'
    for number in (0, 1, 2, 10):
        (tmp_path / f'round{number}' / 'policy').mkdir(parents=True)
    for number in (0, 1, 2):  # the last one is not trained yet
        (tmp_path / f'round{number}' / 'policy' / 'model.json').write_text('{}')
    round_ = asked(config, str(tmp_path))
    assert checkpoints.searching_path(round_, 'policy') == tmp_path / 'round2' / 'policy'
    assert checkpoints.searching_path(round_, 'ppm') == tmp_path / 'round2' / 'ppm'
    config.first_round = config.last_round = 2
    round_ = asked(config, str(tmp_path))
    assert checkpoints.searching_path(round_, 'policy') == tmp_path / 'round1' / 'policy'
    config.policy.path = 'mine'
    assert checkpoints.searching_path(asked(config, str(tmp_path)), 'policy') == 'mine'


def test_a_model_that_is_none_is_told_by_its_setting(tmp_path):
    config = configs.load(str(REPOSITORY / 'experiments' / 'solve.py'))
    config.policy.path, config.question = str(tmp_path / 'gone'), 'What is one?'
    with pytest.raises(UserError) as caught:
        solve.solve(config)
    assert 'policy.path' in caught.value.argument


@pytest.mark.parametrize(
    ('path', 'asked', 'meant'),
    [
        ('http://localhost:8000/v1', 'auto', 'strict'),
        ('http://localhost:8000/v1', 'weak', 'weak'),
        ('mine', 'auto', 'auto'),
        ('mine', 'strict', 'strict'),
    ],
)
def test_what_a_server_elsewhere_writes_runs_in_the_whole_sandbox(path, asked, meant):
    config = configs.load(str(REPOSITORY / 'experiments' / 'solve.py'))
    config.policy.path, config.execution.isolation = path, asked
    assert searches.search_config(config).isolation == meant
