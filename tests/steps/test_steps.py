"""The step language: reading steps, and finding stop marks in tokens."""

import numpy as np
import pytest

from rstar_jax import steps
from rstar_jax.models import tiny
from rstar_jax.settings.errors import UserError
from rstar_jax.steps import marks


@pytest.mark.parametrize(
    ('text', 'box'),
    [
        (r'so \boxed{16}.', '16'),
        (r'\boxed{1} and then \boxed{\frac{1}{2}}', r'\frac{1}{2}'),
        (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
        (r'\boxed{ x }', 'x'),
        (r'\boxed 7$', '7'),
        (r'it is \boxed 7<end_of_answer>', '7'),
        (r'\fbox{3}', '3'),
        (r'\boxed{3', None),
        ('16', None),
        (r'first \boxed{4}, cut \boxed{5', '4'),
    ],
)
def test_boxed(text, box):
    assert steps.boxed(text) == box


def test_code_of_keeps_only_the_program():
    step = '<code>\n# Step 1: add\nx = 1 < 2\nprint(x)\n<end_of_code>\n<output>True<end_of_output>'
    assert steps.code_of(step) == '# Step 1: add\nx = 1 < 2\nprint(x)'
    assert steps.code_of('```python\ny = 2\n```\n<end_of_step>') == 'y = 2'


def test_with_output():
    assert steps.with_output('a<end_of_code>', '3') == 'a<end_of_code>\n<output>3<end_of_output>'
    assert steps.with_output('a<end_of_code>\n', '3') == 'a<end_of_code>\n<output>3<end_of_output>'
    assert steps.with_output('a', 'E', '.') == 'a<end_of_code>\n<output>E<end_of_output>.'
    assert steps.with_output('a', 'E') == 'a<end_of_code>\n<output>E<end_of_output>'


@pytest.mark.parametrize(
    ('text', 'good'),
    [
        ('<code>\nx = 1\n<end_of_step>\nprint(x)\n<end_of_code>\n{out}\n<answer>1{end}', True),
        (
            '<code>\nprint(1)<end_of_code>\n{out} <code>\ny\n<end_of_code>{out}\n<answer>1{end}',
            True,
        ),
        ('<code>\nprint(1)\n<end_of_code>\n{out} 1{end}', False),
        ('<code>\nprint(1)\n<end_of_code>\n{out}es\n<answer>1{end}', False),
        ('<code>\nprint(1)\n<end_of_code>\n{out} <end_of_code>\n{out}<answer>1{end}', False),
        ('<code>\nprint(1)\n<end_of_code>\n{out}\n<answer>1', False),
        ('print(1)\n<end_of_code>\n{out}\n<answer>1{end}', False),
        ('<answer>1{end}', False),
    ],
)
def test_well_formed(text, good):
    out = '<output>1<end_of_output>'
    assert steps.well_formed(text.format(out=out, end='<end_of_answer>')) == good


def test_prompts():
    assert steps.prompt('1+1?') == (
        "<|user|>:\n1+1?\n<|assistant|>: Let's think step by step and solve the problem with code."
    )
    few_shot = steps.prompt('1+1?', 'few_shot')
    assert few_shot.endswith('Question: 1+1?\nSolution:\n')
    assert few_shot.count('<end_of_answer>') == 3
    orders = [steps.prompt('1+1?', 'few_shot', order) for order in range(steps.ORDERS + 1)]
    assert orders[0] == orders[-1] == few_shot and len(set(orders)) == steps.ORDERS > 1
    assert len({tuple(sorted(text.split('\n\n'))) for text in orders}) == 1
    with pytest.raises(UserError, match="prompt='zero_shot'"):
        steps.prompt('1+1?', 'zero_shot')


def test_where_a_step_and_a_text_end():
    few_shot, trained = steps.stops('few_shot'), steps.stops('sft')
    assert few_shot == trained | {'<end_of_output>': marks.STEP}
    assert trained == {
        '<end_of_step>': marks.STEP, '<end_of_code>': marks.CODE, '<end_of_answer>': marks.ANSWER,
    }  # fmt: skip
    tokenizer = tiny.tokenizer(['1 + 1'])
    own = tokenizer.eos_token_id
    assert steps.eos_ids(tokenizer) == [own]
    tokenizer.add_special_tokens({'additional_special_tokens': ['<|im_end|>', '<|user|>']})
    ends = [own, tokenizer.convert_tokens_to_ids('<|im_end|>')]
    assert steps.eos_ids(tokenizer) == sorted(ends)


def _find(text: str, kinds: dict[str, int]) -> int:
    """The obvious way: the kind of the mark that is complete first."""
    ends = [(text.index(m) + len(m), k) for m, k in kinds.items() if m in text]
    return min(ends)[1] if ends else marks.NONE


def test_mark_table_agrees_with_searching_the_text():
    kinds = {
        steps.STEP_END: marks.STEP,
        steps.CODE_END: marks.CODE,
        steps.ANSWER_END: marks.ANSWER,
        '<end_of_output>': marks.CODE,
    }
    pieces = [
        '<',
        'end',
        '_of',
        '_',
        'of_',
        'step',
        'code',
        'answer',
        '>',
        '>\n\n',
        '<end_of_',
        'x',
    ]
    pieces += ['<end_of_step>', '<end_of_code> and <end_of_step>', '<<', 'output', '']
    texts = [p.encode() for p in pieces]
    table = marks.mark_table(texts, kinds, eos_ids=[len(pieces) - 1])
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(5000):
        state, text = 0, ''
        for token in rng.integers(0, len(pieces) - 1, size=rng.integers(1, 12)):
            state = table.next[state, token]
            text += pieces[token]
            assert table.kind[state] == _find(text, kinds), text
            if table.kind[state] != marks.NONE:
                break
        found.add(int(table.kind[state]))
    assert found == {marks.NONE, marks.STEP, marks.CODE, marks.ANSWER}
    assert table.kind[table.next[0, len(pieces) - 1]] == marks.EOS
