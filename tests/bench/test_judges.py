"""The bench of judges: each problem is ranked once, by models that learnt from others."""

import json

import pytest

from rstar_jax import data, models, search
from rstar_jax.bench import judges
from rstar_jax.models import tiny
from rstar_jax.settings.errors import UserError
from tests.data import samples

PROBLEMS = 12


def texts(question, prefix, n):
    """What begins with apples ends right, what begins with Tom ends wrong."""
    if not prefix:
        return [
            '<code>\n# apples\nx = 1 + 2\n<end_of_step>',
            '<code>\n# Tom, Tom, Tom, Tom, Tom, Tom\nx = 4\n<end_of_step>',
        ]
    if '<end_of_code>' not in prefix:
        return ['\nprint(x)\n<end_of_code>', '\nx = x + 0 * 123\nprint(x)\n<end_of_code>']
    box = '3' if 'apples' in prefix else '4'
    return [f'\n<answer>\\boxed{{{box}}}<end_of_answer>'] * n


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp('judges')
    policy = tiny.policy(['apples = 1 + 2\nTom = 4 \\boxed{3} print(1) q0'], num_layers=1)
    models.save(policy, folder / 'model')
    problems = [{'index': i, 'question': f'q{i}', 'answer': '3'} for i in range(PROBLEMS)]
    config = search.Config(rollouts=8, candidates=2, max_depth=3, answers_kept='all')
    records = list(search.run(problems, expander=search.scripted(texts), config=config))
    with data.TreeStore(folder / 'search') as store:
        for record in records[: PROBLEMS // 2]:
            store.append(record)
    data.export_trees(records[PROBLEMS // 2 :], folder / 'more.jsonl')
    return {
        'model': str(folder / 'model'),
        'trees': f'{folder / "search"},{folder / "more.jsonl"}',
        'epochs': '6,8',
        'losses': 'pairwise,orm',
        'length': 256,
        'learning_rate': 1e-2,
        'lora': 0,
        'dtype': 'float32',
    }


@pytest.fixture(scope='module')
def judged(arguments, tmp_path_factory):
    """(folder, figures)."""
    folder = tmp_path_factory.mktemp('judged')
    return folder, judges.run(**arguments, workdir=str(folder))


def test_what_tells_right_from_wrong_is_learnt(judged):
    _, found = judged
    assert found['problems_pairs'] == found['problems_answers'] == PROBLEMS
    for loss in ('pairwise', 'orm'):
        assert found[f'{loss}_answers'] > 0.9
        assert found[f'{loss}_answers_low'] <= found[f'{loss}_answers']
        assert 0 < found[f'{loss}_share'] < 1


def test_each_problem_is_ranked_by_models_that_have_not_seen_it(judged):
    folder, _ = judged
    ranked = []
    for fold in ('fold0', 'fold1'):
        mine, others = (
            {
                example['query']
                for example in data.load_examples(folder / fold / part, 'trajectories')
            }
            for part in ('held_out', 'learnt')
        )
        assert not mine & others
        assert len(mine | others) == PROBLEMS
        ranked += mine
    assert sorted(ranked) == sorted(f'q{i}' for i in range(PROBLEMS))


def test_shares_are_of_all_pairs(judged):
    folder, found = judged
    counts = {'pairs': [0, 0], 'answers': [0, 0]}
    for fold in ('fold0', 'fold1'):
        ranked = json.loads((folder / fold / 'orm/ranked.json').read_text())
        for kind, count in counts.items():
            for right, every in ranked[kind].values():
                assert 0 <= right <= every
                count[0] += right
                count[1] += every
        assert not (folder / fold / 'orm/params').exists()
    stored = [data.load_examples(folder / f'fold{k}/held_out', 'pairs') for k in range(2)]
    assert counts['pairs'][1] == found['pairs'] == sum(map(len, stored))
    for kind, (right, every) in counts.items():
        assert found[f'orm_{kind}'] == right / every


def test_what_was_done_is_read_and_of_other_settings_not_taken(arguments, judged, capsys):
    folder, found = judged
    assert judges.run(**arguments, workdir=str(folder)) == found
    assert 'training' not in capsys.readouterr().out
    with pytest.raises(UserError, match=r'fold0/pairwise: holds what another command made'):
        judges.run(**arguments | {'epochs': '1'}, workdir=str(folder))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'trees': ''}, 'needs --model=MODEL and --trees'),
        ({'losses': 'pairwise,dpo'}, r"--losses=pairwise,dpo: 'dpo' is none of pairwise"),
        ({'epochs': '1,2,3'}, '--epochs=1,2,3: expected a number from 1, or one for each loss'),
        ({'epochs': '0'}, '--epochs=0: expected'),
        ({'folds': 13}, '--folds=13: expected 2 to the number of problems, 12 in --trees'),
        ({'folds': 1}, '--folds=1: expected 2'),
        ({'trees': 'nowhere'}, '--trees=nowhere: no trees there'),
        ({'final_step_pairs': 'both'}, 'final_step_pairs=both: needs one of steps'),
        ({'trees': 'nowhere', 'head': 'fit'}, '--head=fit: needs one of random, fitted'),
        ({'trees': 'nowhere', 'batch_size': 0}, '--batch_size=0: needs at least 1'),
    ],
)
def test_wrong_settings_are_told(arguments, changes, message):
    with pytest.raises(UserError, match=message):
        judges.run(**arguments | changes)


def test_where_no_tree_gives_pairs_it_is_told_what_does(arguments, tmp_path):
    """Samples, each a tree of one solution."""
    trees = [
        samples.tree([('<answer>', q, kind)], index, f'q{index}')
        for index in range(2)
        for q, kind in ((1, 'right'), (-1, 'wrong'))
    ]
    data.export_trees(trees, tmp_path / 'trees.jsonl')
    changes = {'trees': str(tmp_path / 'trees.jsonl'), 'epochs': '1'}
    with pytest.raises(UserError, match=r'learn from: --final_step_pairs=problem \(now traj'):
        judges.run(**arguments | changes)
