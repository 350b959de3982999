"""Programs compiled by one process and found by the next."""

import pathlib
import subprocess
import sys

import jax
import pytest

from rstar_jax import parallel
from rstar_jax.parallel import compiled
from rstar_jax.settings.errors import UserError
from tests.parallel import processes

PROGRAM = """
import sys
import jax
from rstar_jax import parallel
from rstar_jax.parallel import compiled

compiled.LEAST_SECONDS = 0.0
parallel.keep_compiled(sys.argv[1])
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
print(jax.jit(lambda x: x * 2 + 1)(20.5))
print(sum(name.endswith('/cache_hits') for name in found) > 0)
"""


def run(where: str, **environment: str) -> list[str]:
    made = subprocess.run(
        [sys.executable, '-c', PROGRAM, where],
        capture_output=True,
        text=True,
        check=True,
        env={'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu', **environment},
        cwd=pathlib.Path(compiled.__file__).parents[2],
    )
    assert not made.stderr, made.stderr
    return made.stdout.split()


def test_a_second_run_finds_what_the_first_compiled(tmp_path):
    assert run(str(tmp_path / 'made')) == ['42.0', 'False']
    assert run(str(tmp_path / 'made')) == ['42.0', 'True']
    assert run('off') == ['42.0', 'False']


JOB = """
import sys
import jax
import numpy as np
from rstar_jax import parallel
from rstar_jax.job import hosts
from rstar_jax.parallel import compiled

compiled.LEAST_SECONDS = 0.0
hosts.initialise()
parallel.keep_compiled(sys.argv[1])
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))

def hits(function, value):
    before = len(found)
    function(value)
    return sum(name.endswith('/cache_hits') for name in found[before:])

own = jax.NamedSharding(parallel.local_mesh(), jax.P('data'))
mine = jax.device_put(np.ones(4), own)
mesh = jax.NamedSharding(parallel.global_mesh(), jax.P('fsdp'))
ours = jax.make_array_from_callback((8,), mesh, lambda index: np.ones(8)[index])
print('hits', hits(jax.jit(lambda x: x * 2 + x.sum()), mine),
      hits(jax.jit(lambda x: x * 3 + x.sum()), ours))
hosts.barrier('end')
"""


def test_each_process_finds_what_it_has_compiled(tmp_path):
    """For its own devices, and for those of all."""
    for expected in ('hits 0 0', 'hits 1 1'):
        for output in processes.run([sys.executable, '-c', JOB, str(tmp_path)], 2, 2):
            assert expected in output.splitlines(), output
    assert list((tmp_path / 'process1').glob('*-cache'))


def test_without_a_way_into_jax_the_first_process_alone_writes(monkeypatch):
    from jax._src import compiler

    monkeypatch.delattr(compiler, '_cache_write')
    assert not compiled._writes_too()


def test_a_write_that_fails_is_no_reason_to_end():
    def theirs(cache_key, compile_time_secs, module_name, backend, executable):
        called.append(cache_key)

    def put(*args):
        called.append(args)
        raise OSError('full')

    called = []
    compiled._write(put, theirs, 'a', 2.5, 'm', 'b', executable='e')
    assert called == ['a', ('a', 'm', 'e', 'b', 2)]
    compiled._write(put, theirs, 'a', 0.0, 'm', 'b', 'e')  # too fast
    compiled._write(put, lambda key: called.append(key), 'of another signature')
    assert called[2:] == ['a', 'of another signature']


def test_auto_is_in_the_users_cache_folder_unless_jax_has_one(tmp_path):
    run('auto', XDG_CACHE_HOME=str(tmp_path / 'user'))
    (folder,) = (tmp_path / 'user' / 'rstar_jax' / 'compiled').iterdir()
    assert list(folder.iterdir())
    given = {'XDG_CACHE_HOME': str(tmp_path / 'other'), 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
    run('auto', **given)
    assert not (tmp_path / 'other').exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').write_text('')
    assert run('auto', XDG_CACHE_HOME=str(tmp_path / 'file')) == ['42.0', 'False']
    for where in (str(tmp_path / 'file' / 'below'), ''):
        with pytest.raises(UserError) as error:
            parallel.keep_compiled(where)
        assert (error.value.argument, error.value.value) == ('compiled', where)


def test_a_user_without_a_home_is_no_reason_to_end(monkeypatch):
    def unknown(path):
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(pathlib.Path, 'expanduser', unknown)
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    before = jax.config.jax_compilation_cache_dir
    parallel.keep_compiled('auto')
    assert jax.config.jax_compilation_cache_dir == before
    with pytest.raises(UserError) as error:
        parallel.keep_compiled('~who/x')
    assert error.value.value == '~who/x'


def test_seconds_of_compiling_are_counted():
    before = parallel.compile_seconds()
    function = jax.jit(lambda x: x * 3 + 7)
    function(1.5)
    after = parallel.compile_seconds()
    assert 0 < after - before < 60
    function(2.5)
    assert parallel.compile_seconds() == after
