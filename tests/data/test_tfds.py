"""The tensorflow-datasets builders: from local files and by download, without TensorFlow."""

import dataclasses
import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import urllib.request

import pytest

from rstar_jax import data, evals
from rstar_jax.data import problem_sets
from rstar_jax.settings.errors import UserError
from tests.data import test_layouts as layouts

# sha256 of the records (index, question, answer) of the files, as JSON lines.
RECORDS = {
    'gsm8k': (1319, 'de798769c28547237a749453288a40347f1f7623cfc56ca5e45213b2295b481f'),
    'math500': (500, '418378b108b1d96bc4476d8c511e0043b3fe3c12770d11b2a8cecf811fe2e0a8'),
    'aime2024': (30, '0cd4e8a252e0aee69bdac0cee8f4911cf3839e316d68259ae128d4f7d85dc4bb'),
    'amc23': (40, '28314b3d859a3dc06665c514afc30640bb6b597c41ad1c0e45f15177d7ed0081'),
    'gsm8k_train': (7473, 'bfa092428cb6a439868f68ad0daa3d8b85747cc149a9e16c866871482450b6c7'),
}


def name_of(name):
    return f'tfds:rstar_problems/{name}'


def checksum(problems):
    lines = [json.dumps([p.index, p.question, p.answer]) for p in problems]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


@pytest.mark.parametrize('name', RECORDS)
def test_records_of_real_files(shared, tmp_path, name):
    path = problem_sets.file_in(shared / 'data', problem_sets.SETS[name].stems)
    (tmp_path / path.name).symlink_to(path)
    found = data.load_problems(name_of(name), folder=tmp_path)
    assert (len(found), checksum(found)) == RECORDS[name]
    assert checksum(data.load_problems(path)) == RECORDS[name][1]


SMALL = {
    'aime2025': [{'problem': 'a?', 'answer': '070', 'id': '0'}],
    'collegemath': [
        {'data_source': 'c.a', 'question_number': '1', 'question': 'b?', 'answer': '$2$'}
    ],
    'gaokao2023en': [{'question': 'c?', 'answer': '$\\\\frac{1}{2}$'}],
    'olympiadbench': [layouts.OLYMPIAD],
    'omnimath': [
        {'problem': 'd?', 'answer': 'e', 'solution': '', 'difficulty': 5.5, 'source': 'imo'}
    ],
    'metamath': [layouts.METAMATH],
    'numinamath_cot': [layouts.NUMINA, layouts.NUMINA_15],
    'math_train': [layouts.MATH],
}


def test_every_set_is_tried_here():
    assert {*RECORDS, *SMALL} == set(problem_sets.SETS)


@pytest.mark.parametrize('name', SMALL)
def test_records_of_published_layouts(tmp_path, name):
    path = tmp_path / f'{problem_sets.SETS[name].stems[0]}.jsonl'
    path.write_text('\n'.join(map(json.dumps, SMALL[name])))
    found = data.load_problems(name_of(name), folder=tmp_path)
    expected = data.load_problems(path)
    assert len(found) == len(expected) == 1
    for problem, other in zip(found, expected):
        for name in ('index', 'question', 'answer'):
            assert getattr(problem, name) == getattr(other, name)


def test_it_is_prepared_once_and_again_when_the_file_is_new(tmp_path):
    path = tmp_path / 'amc23.json'
    path.write_text(json.dumps([layouts.AMC]))
    load = functools.partial(data.load_problems, name_of('amc23'), folder=tmp_path)
    assert [p.answer for p in load()] == ['142']
    (prepared,) = (tmp_path / problem_sets.PREPARED / 'rstar_problems' / 'amc23').glob(
        '*/*.array_record*'
    )
    written = prepared.stat().st_mtime_ns
    load()
    assert prepared.stat().st_mtime_ns == written
    path.write_text(json.dumps([{**layouts.AMC, 'answer': 7.0}]))
    assert [p.answer for p in load()] == ['7']


def test_a_set_that_is_not_there_is_downloaded(tmp_path, monkeypatch):
    served = tmp_path / 'served'
    served.mkdir()
    for number, layout in enumerate([layouts.MATH500, {**layouts.MATH500, 'problem': 'And?'}]):
        (served / f'part{number}.jsonl').write_text(json.dumps(layout))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f'http://127.0.0.1:{server.server_port}/part{number}.jsonl' for number in (0, 1)]
        row = problem_sets.ProblemSet('a/b', tuple(urls), 2, ('none',))
        monkeypatch.setitem(problem_sets.SETS, 'math500', row)
        found = data.load_problems(name_of('math500'), folder=tmp_path)
        assert [(p.index, p.question) for p in found] == [
            (0, 'What is half of $3$?'),
            (1, 'And?'),
        ]
        monkeypatch.setitem(
            problem_sets.SETS, 'math500', problem_sets.ProblemSet('a/b', tuple(urls), 3, ('none',))
        )
        with pytest.raises(UserError) as error:
            data.load_problems(name_of('math500'), folder=tmp_path / 'other')
        assert error.value.argument == name_of('math500') and urls[0] in error.value.expected
        server.shutdown()


def test_without_a_network_what_is_missing_is_told_at_once(tmp_path, monkeypatch):
    row = dataclasses.replace(
        problem_sets.SETS['amc23'], urls=('https://no-such-host.invalid/a.jsonl',)
    )
    monkeypatch.setitem(problem_sets.SETS, 'amc23', row)
    monkeypatch.setattr(urllib.request, 'getproxies', dict)
    with pytest.raises(UserError) as error:
        data.load_problems(name_of('amc23'), folder=tmp_path)
    assert 'amc23.json' in error.value.expected and 'no-such-host.invalid' in error.value.remedy


def test_benchmarks_by_name(tmp_path):
    (tmp_path / 'amc23.json').write_text(json.dumps([layouts.AMC]))
    found = evals.benchmarks.load(name_of('amc23'), tmp_path)
    assert [p.answer for p in found['amc23']] == ['142']


def test_a_name_that_is_none(tmp_path):
    for named in (name_of('gsm9k'), 'tfds:none_such'):
        with pytest.raises(UserError) as error:
            data.load_problems(named, folder=tmp_path)
        assert error.value.argument == named


def test_tensorflow_is_never_imported(tmp_path):
    (tmp_path / 'amc23.json').write_text(json.dumps([layouts.AMC]))
    program = (
        'import sys\nfrom rstar_jax import data\n'
        f'print(len(data.load_problems({name_of("amc23")!r}, folder={str(tmp_path)!r})))\n'
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])\n"
    )
    made = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert made.stdout.splitlines()[-2:] == ['1', '[]'], made.stderr
