"""Benchmarks by name and by path."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rstar_jax.data.problem import Problem
from rstar_jax.evals import benchmarks
from rstar_jax.settings.errors import UserError

PROBLEMS = [Problem(i, f'{i} + {i}?', str(2 * i)) for i in range(5)]
ROWS = [problem.to_dict() for problem in PROBLEMS]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'math500.json').write_text(json.dumps(ROWS))
    (tmp_path / 'gsm8k_test.jsonl').write_text('\n'.join(map(json.dumps, ROWS[:3])))
    (tmp_path / 'mine.json').write_text(json.dumps(ROWS[:2]))
    return tmp_path


def test_by_name_in_the_order_given(folder):
    found = benchmarks.load('gsm8k, math500', folder)
    assert list(found) == ['gsm8k', 'math500']
    assert found == {'gsm8k': PROBLEMS[:3], 'math500': PROBLEMS}


def test_other_files_of_the_folder_and_paths(folder):
    assert benchmarks.load('mine', folder) == {'mine': PROBLEMS[:2]}
    assert benchmarks.load([str(folder / 'mine.json')]) == {'mine': PROBLEMS[:2]}


def test_parquet_files(folder, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:2]), folder / 'rows.parquet')
    assert benchmarks.load('rows', folder) == {'rows': PROBLEMS[:2]}
    monkeypatch.chdir(folder)
    assert benchmarks.load('rows.parquet') == {'rows': PROBLEMS[:2]}


@pytest.mark.parametrize(
    ('named', 'name'),
    [
        ('hf:openai/gsm8k:main@test', 'gsm8k'),
        ('hf:HuggingFaceH4/MATH-500', 'MATH-500'),
        ('hf:EleutherAI/hendrycks_math:algebra', 'algebra'),
        ('tfds:rstar_problems/gsm8k', 'gsm8k'),
        ('tfds:gsm8k@test', 'gsm8k'),
    ],
)
def test_data_sets_are_called_by_what_tells_them_apart(monkeypatch, named, name):
    monkeypatch.setattr(benchmarks, 'load_problems', lambda *_, **__: PROBLEMS)
    assert benchmarks.load(named) == {name: PROBLEMS}


def test_of_the_hub_the_test_split_is_read_unless_another_is_named(monkeypatch):
    asked = []

    def load(name, *_, **__):
        asked.append(name)
        return []

    monkeypatch.setattr(benchmarks, 'load_problems', load)
    benchmarks.load('hf:openai/gsm8k:main,hf:di-zhang-fdu/AIME_1983_2024@train,tfds:math')
    named = 'hf:di-zhang-fdu/AIME_1983_2024@train'
    assert asked == ['hf:openai/gsm8k:main@test', named, 'tfds:math']


def test_limit_and_built_in(folder):
    assert benchmarks.load(['math500'], folder, limit=2) == {'math500': PROBLEMS[:2]}
    builtin = {'sums': PROBLEMS}
    assert benchmarks.load('sums', folder, limit=1, builtin=builtin) == {'sums': PROBLEMS[:1]}
    assert benchmarks.load('sums', folder, limit=0, builtin=builtin) == {'sums': PROBLEMS}


def test_no_benchmarks(folder):
    assert benchmarks.load('', folder) == {}


@pytest.mark.parametrize(
    ('asked', 'hint'),
    [
        ('maths500', 'mine'),  # of what there is
        ('aime2024', 'tfds:rstar_problems/aime2024'),
        ('nowhere/x.json', ''),
        ('math500,math500', ''),
    ],
)
def test_mistakes_name_what_was_asked(folder, asked, hint):
    with pytest.raises(UserError) as error:
        benchmarks.load(asked, folder, builtin={'sums': PROBLEMS})
    assert (error.value.argument, error.value.value) == ('benchmarks', asked)
    assert hint in error.value.remedy and '\n' not in str(error.value)
