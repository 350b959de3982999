"""One question: what is told of it, and the tree that stays in the workdir."""

import re

import pytest

from rstar_jax import configs, solve
from rstar_jax.data import TreeStore
from tests.conftest import REPOSITORY
from tests.evals.trees import tree


@pytest.fixture
def ask(monkeypatch):
    """Asks a question whose trees have these answers: lists of (answer, score, correct)."""

    def ask(question, answers, workdir=''):
        def searched(problems, policy, ppm, **settings):
            yield from (tree(problems[0], i, found) for i, found in reversed([*enumerate(answers)]))

        monkeypatch.setattr(solve.search, 'run', searched)
        for model in ('searching_policy', 'searching_ppm'):
            monkeypatch.setattr(solve.sources, model, lambda round_: None)
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


def test_the_trees_stay_in_the_workdir(ask, tmp_path):
    for number, (question, answers) in enumerate(
        [('What is one?', [[('1', 0.5, False)], [('2', 0.1, False)]]), ('What is none?', [[]])]
    ):
        text = ask(question, answers, tmp_path)
        page = tmp_path / 'report' / 'index.html'
        assert text.endswith(f'\n\nTree: {page}#tree=solve-{number}-0')
        assert question in page.read_text()
    assert 'What is one?' in page.read_text()
    with TreeStore(tmp_path / 'solve', writer=None) as store:
        assert sorted(store.keys()) == [(0, 0), (0, 1), (1, 0)]
        assert store[1, 0].problem['question'] == 'What is none?'
    names = {path.stem for path in (tmp_path / 'report' / 'trees').glob('*.js')}
    assert names == {'solve-0-0', 'solve-0-1', 'solve-1-0'}
    assert not re.search(r'class="badge (right|wrong)"', page.read_text())  # nobody knows


def test_an_answer_is_told_though_no_page_can_be_written(ask, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError('no room')

    monkeypatch.setattr(solve.report, 'write', broken)
    text = ask('What is one?', [[('1', 0.5, False)]], tmp_path)
    assert 'Answer: 1 ' in text and text.endswith(f'Tree: {tmp_path / "solve"}')
