"""Problems in the layouts in which others publish them, selected, and counted where dropped."""

import collections
import json

import pyarrow
import pyarrow.parquet
import pytest

from rstar_jax import data
from rstar_jax import settings as configs
from rstar_jax.data import layouts, problem_sets, problems
from rstar_jax.data.problem import Problem
from rstar_jax.job.progress import Events
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import Round
from rstar_jax.stages import problems as own_problems

# One row each, fields as published; the problems are made up.
NUMINA = {
    'source': 'amc_aime',
    'problem': 'What is $1+1$?\n$\\textbf{(A)}\\ 1$ $\\textbf{(B)}\\ 2$',
    'solution': 'It is $2$, so the answer is $\\boxed{\\textbf{(B)}}$.',
    'messages': [{'content': 'What?', 'role': 'user'}, {'content': 'It', 'role': 'assistant'}],
}
NUMINA_15 = {
    'problem': 'Prove that $1=1$.',
    'solution': 'By reflexivity.',
    'answer': 'proof',
    'problem_type': 'Algebra',
    'question_type': 'proof',
    'source': 'olympiads',
    'synthetic': False,
}
METAMATH = {
    'type': 'MATH_AnsAug',
    'query': 'Evaluate $(5a^2 - 13a + 4)(2a - 3)$ for $a = 1\\frac12$.',
    'original_question': 'Evaluate $(5a^2 - 13a + 4)(2a - 3)$ for $a = 1\\frac12$.',
    'response': 'The second factor is $0$, so the product is $0$. The answer is: 0',
}
MATH = {
    'problem': 'What is half of $3$?',
    'level': 'Level 5',
    'type': 'Algebra',
    'solution': 'Half of $3$ is $\\boxed{\\frac{3}{2}}.$',
}
MATH500 = {
    'problem': 'What is half of $3$?',
    'solution': 'Half of $3$ is $\\boxed{\\frac{3}{2}}.$',
    'answer': '\\frac{3}{2}',
    'subject': 'Algebra',
    'level': 2,
    'unique_id': 'test/algebra/1.json',
}
OLYMPIAD = {
    'id': 1606,
    'subfield': 'Algebra',
    'question': 'Which $x$ and $y$?',
    'solution': ['Both.'],
    'final_answer': ['1,2'],
    'answer_type': 'Tuple',
}
AMC = {'id': 0, 'answer': 142.0, 'url': 'https://example.org/', 'question': 'How many?'}
GSM8K = {'question': 'How many?', 'answer': 'Two <<1+1=2>>2 and one.\n#### 3'}


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        (NUMINA, {'answer': '\\textbf{(B)}', 'source': 'amc_aime'}),
        (METAMATH, {'answer': '0', 'type': 'MATH_AnsAug'}),
        (MATH, {'answer': '\\frac{3}{2}', 'level': 'Level 5', 'type': 'Algebra'}),
        (MATH500, {'answer': '\\frac{3}{2}', 'level': 2, 'type': 'Algebra'}),
        (OLYMPIAD, {'answer': '1,2', 'type': 'Algebra'}),
        (AMC, {'answer': '142', 'id': 0, 'url': 'https://example.org/'}),
        (GSM8K, {'answer': '3'}),
    ],
    ids=['numina', 'metamath', 'math', 'math500', 'olympiad', 'amc', 'gsm8k'],
)
def test_a_row_of_each_layout(row, expected):
    problem = layouts.problem_of(row, 'here', 7)
    question = row.get('question') or row.get('problem') or row['query']
    assert problem.to_dict() == {'index': 7, 'question': question, **expected}


def test_a_proof_is_no_problem():
    assert layouts.problem_of(NUMINA_15, 'here', 0) is None
    assert layouts.problem_of({**NUMINA, 'solution': 'Obvious.'}, 'here', 0) is None


@pytest.mark.parametrize(
    ('answer', 'kind'),
    [
        ('18', 'integer'),
        ('$1{,}000$', 'integer'),
        ('5 \\text{ cm}', 'integer'),
        ('-2.5', 'number'),
        ('\\frac{3}{2}', 'number'),
        ('\\textbf{(B)}', 'choice'),
        ('C', 'choice'),
        ('\\text{Evelyn}', 'text'),
        ('no solution', 'expression'),  # the empty set
        ('not enough', 'text'),
        ('p - q', 'expression'),
        ('\\left( 3, \\frac{\\pi}{2} \\right)', 'expression'),
        ('x', 'expression'),
        ('2\\sqrt{3}', 'expression'),
    ],
)
def test_kinds_of_answers(answer, kind):
    assert problems.answer_kind(answer) == kind


@pytest.fixture
def numina(tmp_path):
    """A parquet file as the hub's, with a question that comes twice."""
    solution = 'It is $\\boxed{3}$.'
    rows = [
        NUMINA,
        {**NUMINA, 'problem': 'Why?', 'solution': 'Because.'},
        {**NUMINA, 'source': 'synthetic_math', 'problem': 'How many?', 'solution': solution},
        {**NUMINA, 'source': 'olympiads', 'problem': 'How  many?', 'solution': solution},
        {**NUMINA, 'source': 'olympiads', 'problem': 'And now?', 'solution': solution},
    ]
    path = tmp_path / 'AI-MO' / 'NuminaMath-CoT' / 'data' / 'train-00000-of-00001.parquet'
    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def indices(found):
    return [problem.index for problem in found]


def test_parquet_with_counts_of_what_was_dropped(numina):
    counts = collections.Counter()
    found = data.load_problems(numina, selection=data.Selection(), counts=counts)
    assert indices(found) == [0, 2, 4]
    assert data.told(counts) == '3 of 5 problems used; dropped: 1 no answer, 1 duplicate'
    assert indices(data.load_problems(numina)) == [0, 2, 3, 4]  # benchmarks keep all


def test_selections(numina, tmp_path):
    def chosen(source=numina, **rules):
        counts = collections.Counter()
        made = data.Selection(**rules)
        return indices(data.load_problems(source, selection=made, counts=counts)), counts

    assert chosen(sources='amc_aime, olympiads')[0] == [0, 3, 4]
    assert chosen(sources='*math')[0] == [2]
    assert chosen(answers='number')[0] == [2, 4]
    assert chosen(answers='choice')[1] == {'rows': 5, 'used': 1, 'no answer': 1, 'answer kind': 3}
    levels = tmp_path / 'math.jsonl'
    rows = [{**MATH, 'level': f'Level {n}', 'problem': f'q{n}?'} for n in (1, 3, 5, '?')]
    levels.write_text('\n'.join(map(json.dumps, rows)))
    assert chosen(levels, levels='3-5')[0] == [1, 2]
    assert chosen(levels, levels='3')[1] == {'rows': 4, 'used': 1, 'level': 3}
    with pytest.raises(UserError) as error:
        chosen(sources='imo')
    assert error.value.argument == str(numina) and '4 source' in error.value.remedy


@pytest.mark.parametrize(
    ('argument', 'value'),
    [
        ('answers', 'digits'),
        *(('levels', wrong) for wrong in ('hard', '-3', '5-3', '1.2.3', '...', '1-')),
    ],
)
def test_selections_that_are_none(argument, value):
    with pytest.raises(UserError) as error:
        data.Selection(**{argument: value})
    assert (error.value.argument, error.value.value) == (argument, value)


def test_plain_rows_are_selected_by_labels_of_any_name(tmp_path):
    path = tmp_path / 'college.jsonl'
    row = {'data_source': 'college_math.Calculus', 'difficulty': 4, 'question': 'a?', 'answer': '1'}
    path.write_text(json.dumps(row))
    selection = data.Selection(sources='college_math*', levels='3-5')
    (problem,) = data.load_problems(path, selection=selection)
    assert problem.to_dict() == {
        **row,
        'index': 0,
        'source': 'college_math.Calculus',
        'level': 4,
    }
    path.write_text(json.dumps({**row, 'level': ''}))
    assert data.load_problems(path, selection=selection) == [problem]


def test_the_limit_counts_what_is_used(numina):
    counts = collections.Counter()
    only = data.Selection(sources='olympiads')
    assert indices(data.load_problems(numina, 1, selection=only, counts=counts)) == [3]
    assert counts['rows'] == 4


def test_a_file_that_is_no_parquet(tmp_path):
    path = tmp_path / 'p.parquet'
    for text in (None, 'no'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError) as error:
            data.load_problems(path)
        assert error.value.argument == str(path)


def test_a_parquet_file_that_is_damaged(numina):
    whole = numina.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], 'little')
    for zeros in (slice(4, footer), slice(footer, -8)):
        damaged = bytearray(whole)
        damaged[zeros] = bytes(len(whole[zeros]))
        numina.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            data.load_problems(numina)
        assert error.value.argument == str(numina)


def test_names_of_the_hub_read_a_local_copy(numina, tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    found = data.load_problems('hf:AI-MO/NuminaMath-CoT', folder=tmp_path)
    assert found == data.load_problems(numina)
    for missing in ('hf:AI-MO/None', 'hf:AI-MO/NuminaMath-CoT@test'):
        with pytest.raises(UserError) as error:
            data.load_problems(missing, folder=tmp_path)
        assert error.value.argument == missing


def test_pictures_of_a_set_are_not_looked_at(tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    picture, text = datasets.Image(), datasets.Value('string')
    kinds = {'question': text, 'final_answer': text, 'image_1': picture, 'images': [picture]}
    drawn = {'bytes': b'no picture', 'path': None}
    row = {'question': 'a?', 'final_answer': '1', 'image_1': drawn, 'images': [drawn]}
    (tmp_path / 'drawn').mkdir()
    made = datasets.Dataset.from_list([row], features=datasets.Features(kinds))
    made.to_parquet(tmp_path / 'drawn' / 'train.parquet')
    assert data.load_problems('hf:drawn', folder=tmp_path) == [Problem(0, 'a?', '1')]


def test_names_of_the_hub_need_a_package(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError) as error:
        data.load_problems('hf:a/b')
    assert error.value.argument == 'hf:a/b' and error.value.remedy == 'pip install datasets'


def test_every_published_set_says_where_it_is():
    assert len(problem_sets.BENCHMARKS) == 9
    for name, row in problem_sets.SETS.items():
        assert row.urls and all(url.startswith('https://') for url in row.urls), name
        assert row.hub.count('/') == 1


def test_a_round_takes_the_selection_from_its_config(numina, tmp_path):
    config = configs.default()
    config.data.problems = str(numina)
    config.data.sources = 'olympiads'
    config.data.answers = 'integer'
    round_ = Round(config, tmp_path, 1, Events(None))
    assert indices(own_problems.problems(round_)) == [3, 4]
