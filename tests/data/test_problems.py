import dataclasses
import datetime
import decimal
import json

import pytest

from rstar_jax import data, search
from rstar_jax.data import layouts
from rstar_jax.data.problem import Problem
from rstar_jax.settings.errors import UserError
from tests.data import samples


def write(path, text):
    path.write_text(text, encoding='utf-8')
    return path


def test_json_list_keeps_index_and_other_fields(tmp_path):
    problems = [
        {'index': 7, 'question': 'a?', 'answer': '1', 'source': 'math', 'level': 2},
        {'answer': ['2', 'two'], 'index': 3, 'question': 'b?'},
    ]
    path = write(tmp_path / 'p.json', json.dumps(problems, indent=4))
    found = data.load_problems(path)
    assert [json.dumps(p.to_dict()) for p in found] == list(map(json.dumps, problems))
    assert data.load_problems(path, limit=1) == found[:1]


def test_fields_that_no_tree_can_be_stored_with_are_left_out():
    kept = {'a': 2**63 - 1, 'b': [1.5, None, {'c': True}], 'job': 3}
    date = datetime.date(2024, 1, 1)
    others = {'date': date, 'price': decimal.Decimal('1.5'), 'deep': [{'when': date}]}
    others |= {'map': [('x', 1)], 'bytes': b'x', 'huge': 2**63, 'rate': float('nan')}
    asked = {'question': 'a?', 'answer': '1'}
    problem = layouts.problem_of({**asked, **kept, **others}, 'here', 0)
    assert problem.to_dict() == {'index': 0, **asked, **kept}
    record = dataclasses.replace(samples.grown(0), problem=problem)
    assert search.Record.from_bytes(record.to_bytes()).problem == problem
    row = {'problem': 'b?', 'answer': '2', 'level': 10**30, 'type': 'Algebra'}
    assert layouts.problem_of(row, 'here', 0).row.keys() == {'index', 'question', 'answer', 'type'}


def test_jsonl_and_gsm8k_answers(tmp_path):
    lines = [
        '\ufeff' + json.dumps({'question': 'a?', 'answer': 'so 3 <<1+2=3>>\n#### 3'}),
        '',
        json.dumps({'question': 'b?', 'answer': 2.5}),
        json.dumps({'question': 'c?', 'answer': '#### 1,000 '}),
    ]
    lines.append(json.dumps({'question': 'd?', 'answer': 10**400}))  # no float is as large
    problems = data.load_problems(write(tmp_path / 'p.jsonl', '\n'.join(lines)))
    assert problems.pop() == Problem(3, 'd?', f'1{400 * "0"}')
    assert problems == [
        Problem(0, 'a?', '3'),
        Problem(1, 'b?', '2.5'),
        Problem(2, 'c?', '1,000'),
    ]


def test_numbers_in_a_list_and_half_a_character(tmp_path):
    rows = '{"question": "a \\ud83d?", "answer": [1, 2.0, "3"]}\n{"question": "b?", "answer": [0]}'
    problems = data.load_problems(write(tmp_path / 'p.jsonl', rows))
    assert [(p.question, p.answer) for p in problems] == [
        ('a ??', ['1', '2', '3']),
        ('b?', '0'),
    ]


def test_limit_stops_reading(tmp_path):
    path = write(tmp_path / 'p.jsonl', '{"question": "a?", "answer": "1"}\nnot json\n')
    assert len(data.load_problems(path, limit=1)) == 1


def test_export_reads_back(tmp_path):
    problems = [Problem(i, f'q{i} ≤?', str(i)) for i in range(3)]
    for name in ('p.json', 'p.jsonl'):
        assert data.write_json_items(map(Problem.to_dict, problems), tmp_path / name) == 3
        assert data.load_problems(tmp_path / name) == problems
    assert (tmp_path / 'p.json').read_text().startswith('[')


GOOD = '{"question": "a?", "answer": "1"}\n'


@pytest.mark.parametrize(
    'text, place',
    [
        ('', ''),
        (' \n\n', ''),
        ('[]', ''),
        (GOOD + '\n{"question": oops}\n', ', line 3'),
        ('[\n{"question": "a?", "answer": "1"},\n{"question" 1}]', ', line 3'),
        ('[\n{"question": "a?", "answer": "1"},\n', ', line 3'),
        (GOOD + '[1, 2]\n', ', line 2'),
        (GOOD + '{"question": "b?"}\n', ', line 2'),
        (GOOD + '{"question": "b?", "answer": " "}\n', ', line 2'),
        (GOOD + '{"question": "b?", "answer": "6 / 2 = 3 ####"}', ', line 2'),
        (GOOD + '{"question": "b?", "answer": null}\n', ', line 2'),
        (GOOD + '{"question": "b?", "answer": NaN}\n', ', line 2'),
        (GOOD + '{"question": "b?", "answer": true}\n', ', line 2'),
        (GOOD + '{"answer": "2"}\n', ', line 2'),
        ('[{"task": "a?", "answer": "1"}]', ', item 1'),
        (GOOD + '{"index": "x1", "question": "b?", "answer": "2"}', ', line 2'),
        (GOOD + '{"index": 0, "question": "b?", "answer": "2"}\n', ', line 2'),
        (GOOD + f'{{"question": "b?", "answer": {"9" * 5000}}}\n', ', line 2'),
        (GOOD + '[' * 100_000 + '\n', ', line 2'),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(tmp_path, text, place):
    path = write(tmp_path / 'p.jsonl', text)
    with pytest.raises(UserError) as caught:
        data.load_problems(path)
    assert caught.value.argument == f'{path}{place}' and caught.value.expected
    assert '\n' not in str(caught.value)


def test_missing_file_folder_and_binary(tmp_path):
    (tmp_path / 'b.json').write_bytes(b'\x80\x81\xff')
    for name in ('none.json', '.', 'b.json'):
        with pytest.raises(UserError) as error:
            data.load_problems(tmp_path / name)
        assert error.value.argument == str(tmp_path / name)
    with pytest.raises(UserError) as error:
        data.load_problems(tmp_path / 'b.json', limit=0)
    assert (error.value.argument, error.value.value) == ('limit', 0)
