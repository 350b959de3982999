"""The bench of strategies: what it counts, and that the tokens are those that were asked for."""

import json

import pytest

from rstar_jax import models, search
from rstar_jax.bench import strategies
from rstar_jax.models import tiny
from rstar_jax.settings.errors import UserError
from tests.search import favoured, test_engine


def texts(question, prefix, n):
    """Right at once, right after a step, and wrong; the same in every tree."""
    if prefix:
        return ['<answer>\\boxed{3}<end_of_answer>'] * n
    return [
        'x = 3\n<end_of_step>',
        'y = 12345678901234567890\n<end_of_step>',
        '<answer>\\boxed{3}<end_of_answer>',
        '<answer>\\boxed{4}, which is not right<end_of_answer>',
    ]


def test_right_trajectories_are_counted_once():
    config = search.Config(rollouts=4, candidates=4, max_depth=2, answers_kept='all')
    problems = [{'index': i, 'question': f'q{i}', 'answer': str(3 + i)} for i in range(2)]
    records = list(search.run(problems, expander=search.scripted(texts), config=config, trees=2))
    for record in records:
        record.counters['sampled_tokens'] = 250.0
    found = strategies._found(records)
    assert found['tokens'] == 1000
    assert found['trees'] == 4
    assert found['solved'] == 2
    # 3 right ones in the trees of the first problem (at once, and below either step), 1 in the
    # second's, whose others are wrong.
    assert found['correct'] == 40
    assert found['pairs'] > 0


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp('strategies')
    policy = tiny.policy(['print(1)\n x = 1 + 2 \\boxed{3} apples Tom'], num_layers=1)
    models.save(favoured.favour(policy), folder / 'model')
    (folder / 'problems.json').write_text(json.dumps(test_engine.PROBLEMS))
    return {'model': str(folder / 'model'), 'problems': str(folder / 'problems.json')}


def test_as_many_tokens_as_asked_for(arguments):
    arguments = arguments | {'variants': 'sampled', 'count': 3, 'prompt': 'sft', 'step_tokens': 12}
    short = strategies.run(**arguments, tokens=1)
    assert short['trees_sampled'] == 3
    each = short['tokens_sampled'] / 3
    more = strategies.run(**arguments, tokens=int(4 * each))
    assert more['trees_sampled'] == 12
    assert 0.5 < more['tokens_sampled'] / (12 * each) < 2


def test_wrong_variants_are_one_line(arguments):
    with pytest.raises(UserError, match='needs --model and --problems'):
        strategies.run()
    with pytest.raises(UserError, match="'mtcs' is none of mcts, all_answers"):
        strategies.run(**arguments, variants='mtcs')
    with pytest.raises(UserError, match='beam goes by scores, and needs --ppm'):
        strategies.run(**arguments, variants='beam')
