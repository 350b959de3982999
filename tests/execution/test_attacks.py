# ruff: noqa: E501
"""Attacks on the sandbox, each run for real; afterwards the pool answers and nothing is left."""

import contextlib
import os
import socket
import sys
import time

import pytest

from rstar_jax import execution
from tests.execution import attacks
from tests.execution.processes import alive, family, folders

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the layers are those of Linux')
LIMITS = execution.Limits(seconds=1, memory_mb=256)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """A secret, a folder, a listening port and a pool with two workers."""
    outside = tmp_path_factory.mktemp('outside')
    outside.chmod(0o777)
    secret = outside / 'secret'
    secret.write_text('tell-tale-heart')
    secret.chmod(0o666)
    os.environ['RSTAR_TEST_SECRET'] = 'tell-tale-heart'
    server = socket.create_server(('127.0.0.1', 0))
    before = family(os.getpid()), descriptors(), folders()
    with execution.Pool(workers=2, limits=LIMITS) as pool:
        if pool.missing:
            pytest.skip(f'this kernel lacks {", ".join(pool.missing)}')
        both = [pool.submit(f'import time\ntime.sleep(0.5)  # {n}') for n in range(2)]
        assert all(future.result().ok for future in both)
        workers, seen = set(), None
        while len(workers) < 4 or workers != seen:  # while they start, others come and go
            time.sleep(0.2)
            seen, workers = workers, set(family(os.getpid())) - set(before[0])
        fill = {
            'secret': str(secret),
            'outside': str(outside),
            'parent': str(os.getpid()),
            'sibling': str(max(workers)),
            'port': str(server.getsockname()[1]),
        }
        yield pool, fill, outside, workers, before
    server.close()
    del os.environ['RSTAR_TEST_SECRET']


@pytest.fixture(scope='module')
def patient(scene):
    """A pool whose time limit is not what stops a program, on a busy machine neither."""
    limits = execution.Limits(seconds=60, memory_mb=256)
    with execution.Pool(workers=1, limits=limits) as pool:
        yield pool


def descriptors():
    """What this process has open, as (number, what it leads to)."""
    found = set()
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):  # the one that lists
            found.add((name, os.readlink(f'/proc/self/fd/{name}')))
    return found


def filled(code, fill):
    for key, value in fill.items():
        code = code.replace('{' + key + '}', value)
    return code


def intact(outside):
    return [path.name for path in outside.iterdir()] == ['secret'] and (
        (outside / 'secret').read_text() == 'tell-tale-heart'
    )


def test_there_are_enough_attacks():
    assert len(attacks.ATTACKS) + len(attacks.LIMITS) >= 120


@pytest.mark.parametrize('name', attacks.ATTACKS)
def test_attack_fails(scene, name):
    pool, fill, outside, workers, _ = scene
    result = pool.submit(filled(attacks.ATTACKS[name], fill)).result(60)
    assert 'BROKE OUT' not in result.output
    assert 'tell-tale' not in result.output + result.error
    # It was stopped where it tried: not by a mistake of its own.
    assert 'stopped' in result.output or 'nothing' in result.output or not result.ok
    assert result.error.split(':')[0] not in ('NameError', 'SyntaxError', 'AttributeError')
    assert intact(outside)
    assert all(alive(pid) for pid in workers)


@pytest.mark.parametrize('name', attacks.LIMITS)
def test_limit_holds(scene, patient, name):
    pool, _, _outside, workers, _ = scene
    code, errors = attacks.LIMITS[name]
    result = (pool if 'TimeoutError' in errors else patient).submit(code).result(120)
    assert not result.ok
    assert result.error.startswith(errors), result.error
    assert '\n' not in result.error
    assert len(result.error) < 600
    assert all(alive(pid) for pid in workers)


def test_output_cannot_be_forged_through_descriptors(scene):
    pool = scene[0]
    forged = 'import os\nfor fd in range(64):\n    try: os.write(fd, b"0" * 16 + b"\\0forged")\n' \
        '    except OSError: pass\nraise ValueError("the truth")'  # fmt: skip
    result = pool.submit(forged).result(60)
    assert not result.ok
    assert result.error == 'ValueError: the truth'


def test_a_program_cannot_answer_for_the_next(scene):
    pool = scene[0]
    leaving = 'import os, sys\nsys.stdout.write("late")\nos.write(1, b"late")\nos._exit(0)'
    futures = [pool.submit(leaving + ' ' * n) for n in range(4)]
    answers = [pool.submit(f'print({n})  # next') for n in range(8)]
    assert not any(future.result(60).ok for future in futures)
    assert [answer.result(60).output for answer in answers] == [str(n) for n in range(8)]


@pytest.mark.parametrize(
    'poison',
    [
        'import builtins\nbuiltins.print = lambda *a: None\nbuiltins.len = None',
        'import sys\nsys.modules["math"] = None\nsys.path.clear()',
        'import sympy\nsympy.sqrt = lambda x: 42\nsympy.core.cache.clear_cache()',
        'import numpy\nnumpy.random.seed(7)\nnumpy.pi = 3',
        'import json, os\njson.dumps = json.loads = os.write = None',
        'import sys\nsys.stdout = sys.stderr = None',
        'import gc\nfor o in gc.get_objects():\n    if type(o) is dict and "handle" in o: o.clear()',
        'import sys\nsys.setrecursionlimit(40)',
        'import io\nio.TextIOWrapper = None\nimport sys\nsys.settrace(lambda *a: 1 / 0)',
        'import warnings\nwarnings.simplefilter("error")',
        'open("math.py", "w").write("pi = 3")\nopen("sympy.py", "w").write("raise SystemExit")',
        'import os\nos.environ["PATH"] = "poison"\nos.chdir("/")\nos.umask(0o777)',
        'import ctypes\nctypes.memset(id(1) + 24, 2, 4)',
    ],
)
def test_poison_stays_in_its_own_program(scene, poison):
    pool = scene[0]
    check = (
        'import os, math, sympy, numpy\n'
        'print(len("abc"), math.pi, sympy.sqrt(4), numpy.pi, numpy.random.rand(), os.getcwd() != "/",'
        ' os.listdir("."), os.environ["PATH"] != "poison", 1 + 1)'
    )
    mark = f'  # after {hash(poison)}'
    expected = pool.submit(check + mark).result(60)
    assert expected.ok
    for number in range(2):
        pool.submit(poison + f'\n# {number}').result(60)
        assert pool.submit(check + mark + f' {number}').result(60).output == expected.output


def test_nothing_is_left(scene, patient):
    """Last: after all of the attacks, the pool answers; closed, it leaves no trace."""
    patient.close()
    pool, _, outside, workers, before = scene
    assert pool.submit('print("still here")').result(60).output == 'still here'
    assert set(family(os.getpid())) - set(before[0]) == workers  # no child of a worker is left
    assert intact(outside)
    (scratch,) = folders() - before[2]
    assert [os.listdir(os.path.join(scratch, name)) for name in os.listdir(scratch)] == [[], []]
    pool.close()
    assert not [pid for pid in workers if alive(pid)]
    assert not os.path.exists(scratch)
    assert descriptors() <= before[1]  # others of this process may have gone meanwhile
    assert not os.path.exists('/tmp/rstar-attack')
    assert not os.path.exists('/dev/shm/rstar-attack')
