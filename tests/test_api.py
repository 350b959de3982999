"""What other people's programs call: names, arguments and kinds of results that stay."""

import inspect

import pytest

from rstar_jax import data, execution, grading, models, search
from rstar_jax.settings.errors import UserError

CALLS = [
    (models.load, ('model',), {'dtype': 'float32'}),
    (models.save, ('policy', 'directory'), {}),
    (models.load_ppm, ('directory',), {}),
    (models.save_ppm, ('ppm', 'directory'), {}),
    (models.Policy.logits, ('policy', 'tokens', 'lengths'), {}),
    (models.PPM.scores, ('ppm', 'tokens', 'lengths'), {}),
    (execution.run_many, ('programs',), {'limits': None}),
    (execution.Limits, (), {'seconds': 10, 'memory_mb': 1024}),
    (grading.equivalent, ('answer', 'truth'), {}),
    (grading.equivalent_many, ('pairs',), {}),
    (search.run, ('problems', 'policy'), {'ppm': None, 'config': None}),
    (search.run, ('problems',), {'expander': None, 'config': None}),
    (search.scripted, ('texts', 'score'), {}),
    (search.Record.to_interchange, ('record',), {}),
    (data.curate, ('trees',), {'final_step_pairs': 'steps'}),
]


@pytest.mark.parametrize(('call', 'arguments', 'named'), CALLS)
def test_it_takes_what_it_took(call, arguments, named):
    inspect.signature(call).bind(*arguments, **named)


def test_a_search_of_texts_gives_trees_that_are_curated():
    def texts(question, prefix, n):
        return [f'<answer>{20 * "abc"[i]} \\boxed{{{i}}}.<end_of_answer>' for i in range(n)]

    config = search.Config(
        rollouts=2,
        candidates=3,
        max_depth=4,
        exploration=2.0,
        error_threshold=2,
        use_ground_truth=True,
        prompt='sft',
        step_tokens=256,
        temperature=1.0,
        answers_kept='all',
        workers=1,
    )
    problems = [{'index': 0, 'question': 'Half of 2?', 'answer': '1'}]
    expander = search.scripted(texts, lambda question, prefix: 0.5)
    (record,) = search.run(problems, expander=expander, config=config)
    assert repr(record) == 'Record(index=0, tree=0, nodes=4, solved=True)'
    sft, pairs = data.curate([record.to_interchange()], final_step_pairs='steps')
    assert [set(example) for example in sft] == [{'query', 'response'}]
    assert {'prompt', 'pos', 'neg', 'pos_count', 'neg_count'} <= set(pairs[0])


@pytest.mark.parametrize('kind', [models.Policy, models.PPM])
def test_a_model_is_shown_without_its_weights(kind):
    assert 'arrays' not in repr(kind('shape', 'tokenizer', 'arrays'))


def test_a_problem_without_an_index_is_told():
    with pytest.raises(UserError) as error:
        list(
            search.run(
                [{'question': 'Why?'}], expander=search.scripted(str), config=search.Config()
            )
        )
    assert error.value.argument == 'problems' and 'Why?' in error.value.value


def test_a_problem_without_an_answer_is_told_where_one_is_needed():
    problems = [{'index': 0, 'question': 'Why?'}]
    answer = '<answer>\\boxed{1}<end_of_answer>'
    given = dict(expander=search.scripted(lambda question, prefix, n: [answer] * n))
    with pytest.raises(UserError) as error:
        list(search.run(problems, config=search.Config(workers=1), **given))
    assert error.value.argument == 'problems'
    config = search.Config(use_ground_truth=False, workers=1)
    (record,) = search.run(problems, config=config, **given)
    assert record.best_answer() == ('1', 0.0)
