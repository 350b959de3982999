# ruff: noqa: E501
"""Layers where the kernel gives fewer of them: ordinary users, containers, no Landlock."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from rstar_jax import execution
from rstar_jax.execution import landlock, process, program
from rstar_jax.settings.errors import UserError
from tests.execution.processes import family

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the layers are those of Linux')
ROOT = os.getuid() == 0 if hasattr(os, 'getuid') else False

# Run in a process of its own, after what takes layers away from it.
SCENE = """
import json, os, sys, ctypes, struct
from rstar_jax import execution
from rstar_jax.settings.errors import UserError
{prepare}
program = '''
import os
out = []
for name, attempt in (
    ('read', lambda: open("{secret}").read()),
    ('write', lambda: open("{outside}/new", "w")),
    ('connect', lambda: __import__("socket").create_connection(("127.0.0.1", {port}), 1)),
    ('signal', lambda: os.kill({parent}, 0)),
):
    try:
        attempt()
        out.append(name)
    except BaseException:
        pass
open("note", "w").write("x")
print(out, open("note").read())
'''
limits = execution.Limits(seconds=20)
told = []
with execution.Pool(workers=1, limits=limits, isolation='weak', announce=told.append) as pool:
    broke = pool.submit(program.replace('{{parent}}', str(os.getpid()))).result()
    answer = pool.submit('import sympy\\nprint(sympy.sqrt(8))').result()
    layers, missing = pool.layers, pool.missing
try:
    execution.check('strict')
    strict = 'runs'
except UserError as error:
    strict = [error.argument, error.value, error.expected]
try:
    execution.check('auto')
    auto = 'runs'
except UserError as error:
    auto = [error.argument, error.value, error.expected]
print(json.dumps(dict(user=os.getuid(), layers=layers, missing=missing, broke=broke.output,
                      error=broke.error, answer=answer.output, strict=strict, auto=auto, told=told)))
"""
# A seccomp filter on the main process itself: these calls fail with EPERM, as in a container.
DENY = """
def deny(*numbers):
    libc = ctypes.CDLL(None, use_errno=True)
    code = [(0x20, 0, 0, 0)]
    for number in numbers:
        code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    data = b''.join(struct.pack('=HBBI', *line) for line in code)
    class Program(ctypes.Structure):
        _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_char_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(len(code), data)), 0, 0) == 0
"""
X86 = pytest.mark.skipif(os.uname().machine != 'x86_64', reason='numbers of x86-64')


@pytest.fixture
def scene(tmp_path):
    outside = tmp_path / 'outside'
    outside.mkdir()
    outside.chmod(0o777)
    secret = outside / 'secret'
    secret.write_text('tell-tale-heart')
    import socket

    with socket.create_server(('127.0.0.1', 0)) as server:
        yield {
            'secret': str(secret), 'outside': str(outside),
            'port': str(server.getsockname()[1]), 'parent': '{parent}',
        }  # fmt: skip


def play(scene, prepare='', wrap=()):
    code = SCENE.format(prepare=textwrap.dedent(prepare), **{**scene, 'parent': '{{parent}}'})
    code = code.replace('{{parent}}', '{parent}')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [*wrap, sys.executable, '-c', code],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['answer'] == '2*sqrt(2)', found
    return found


def test_strict_runs_here_or_says_what_lacks():
    try:
        with execution.Pool(workers=1, isolation='strict') as pool:
            assert pool.submit('print(1)').result(60).output == '1'
            assert not pool.missing
            assert {'seccomp', 'Landlock', 'no new privileges'} <= set(pool.layers)
    except UserError as error:
        assert (error.argument, error.value) == ('isolation', 'strict')
        assert 'lacks' in error.expected


@X86
def test_container_without_namespaces(scene):
    """unshare fails as under a container's default filter; the filter of the child replaces them."""
    found = play(scene, DENY + 'deny(272)')
    assert not [layer for layer in found['layers'] if 'namespace' in layer]
    assert {'seccomp', 'Landlock'} <= set(found['layers'])
    assert found['broke'] == '[] x'
    assert found['strict'] == 'runs'


@X86
def test_without_landlock_strict_refuses_and_auto_says_so(scene):
    found = play(scene, DENY + 'deny(444, 445, 446)')
    assert 'Landlock' in found['missing']
    assert found['strict'][:2] == ['isolation', 'strict'] and 'Landlock' in found['strict'][2]
    assert found['auto'] == 'runs'  # as root, whose programs are nobody's
    assert len(found['told']) == 1
    assert 'not available here: Landlock' in found['told'][0]
    assert 'connect' not in found['broke']
    assert 'signal' not in found['broke']


@X86
def test_without_seccomp_the_namespaces_hold(scene):
    found = play(scene, DENY + 'deny(317, 157, 444)')  # 157 is prctl: no new privileges neither
    assert {'seccomp', 'Landlock', 'no new privileges'} <= set(found['missing'])
    if 'network namespace' in found['layers']:
        assert 'connect' not in found['broke']
        assert 'signal' not in found['broke']
    assert found['strict'] != 'runs'


@pytest.mark.parametrize('version', [1, 2])
def test_a_landlock_that_knows_no_truncation(monkeypatch, tmp_path, version):
    if landlock.version() < version:
        pytest.skip('Landlock is older still, or missing')
    start, end = process.BOOT.split('from ')
    older = f'from rstar_jax.execution import landlock; landlock.version = lambda: {version}; '
    monkeypatch.setattr(process, 'BOOT', f'{start}{older}from {end}')
    library = tmp_path / 'site-packages'
    library.mkdir()
    monkeypatch.syspath_prepend(library)
    kept = library / 'kept.py'
    kept.write_text('tell-tale-heart')
    program = f'''
import os
def emptied(attempt):
    try: attempt()
    except PermissionError: return False
    return True
open("note", "w").write("longer")
with open("note", "w") as note:
    note.write("note")
    note.truncate(2)
print([emptied(lambda: os.open("{kept}", access | os.O_TRUNC)) for access in range(4)],
      emptied(lambda: os.truncate("{kept}", 0)), open("note").read(), open("{kept}").read())
'''
    limits = execution.Limits(seconds=20)
    with execution.Pool(workers=1, limits=limits) as pool:
        result = pool.submit(program).result(60)
        if {'Landlock', 'seccomp'} & set(pool.missing):
            pytest.skip('the layers are missing here')
    assert result.output == f'{[False] * 4} False no tell-tale-heart', result.error


def as_nobody():
    """A command that runs as an ordinary user who can read this interpreter, wherever it lives."""
    folders = {'/' + os.path.realpath(path).split('/')[1] for path in (sys.prefix, sys.base_prefix)}
    hidden = [folder for folder in sorted(folders) if not os.stat(folder).st_mode & 0o001]
    script = 'set -e; '
    for number, folder in enumerate(hidden):  # show them, in a mount namespace of our own
        script += (
            f'mkdir -p /tmp/rstar-view-{number}; mount --bind {folder} /tmp/rstar-view-{number}; '
        )
        script += f'mount -t tmpfs -o mode=755 none {folder}; '
        script += (
            f'for name in /tmp/rstar-view-{number}/.[a-z]* /tmp/rstar-view-{number}/*; do '
            f'if [ -d "$name" ]; then to={folder}/$(basename "$name"); mkdir -p "$to"; '
            f'mount --bind "$name" "$to"; fi; done; umount -l /tmp/rstar-view-{number}; '
            f'rmdir /tmp/rstar-view-{number} || true; '
        )
    script += 'exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
    return ['unshare', '-m', '--propagation', 'private', 'sh', '-c', script, 'sh']


@pytest.fixture
def ordinary(tmp_path):
    """The command of `as_nobody`, where it can run this interpreter."""
    wrap = as_nobody()
    if not ROOT:
        pytest.skip('becoming another user takes root')
    try:
        probe = subprocess.run(
            [*wrap, sys.executable, '-c', 'import sympy, os; print(os.getuid())'],
            capture_output=True, text=True, env={**os.environ, 'TMPDIR': '/tmp'},
        )  # fmt: skip
    except FileNotFoundError as error:
        pytest.skip(f'no {error.filename}')
    if probe.stdout.strip() != '65534':
        pytest.skip(f'cannot run this interpreter as another user: {probe.stderr[-200:]}')
    for folder in [tmp_path, *tmp_path.parents]:
        if str(folder).startswith('/tmp/') and folder.owner() == 'root':
            folder.chmod(0o755)
    return wrap


@pytest.mark.parametrize('prepare', ['', pytest.param(DENY + 'deny(272)', marks=X86)])
def test_ordinary_user(scene, prepare, ordinary):
    found = play(scene, prepare, ordinary)
    assert found['user'] == 65534
    assert {'seccomp', 'Landlock'} <= set(found['layers'])
    assert found['broke'] == '[] x'
    assert found['strict'] == found['auto'] == 'runs'
    if not prepare and os.path.exists('/proc/sys/user/max_user_namespaces'):
        with open('/proc/sys/user/max_user_namespaces', encoding='ascii') as file:
            if int(file.read()):
                assert 'network namespace' in found['layers'] or found['missing'] == []


@X86
@pytest.mark.parametrize('mode', [0o777, 0o755, 0o700])
def test_an_ordinary_users_home_without_landlock(scene, ordinary, tmp_path, mode):
    """What could be done there is told; where that is all, only `weak` runs anything."""
    home = tmp_path / 'home'
    home.mkdir()
    home.chmod(mode)  # of another user: what that one may do is what the mode gives to all
    tell = f"os.environ['HOME'] = '{home}'\n"
    found = play(scene, tell + DENY + 'deny(444, 445, 446)', ordinary)
    line = found['told'][0]
    assert ('read and write' in line, 'could read' in line) == (mode == 0o777, mode != 0o700)
    assert (str(home) in line) == (mode != 0o700)
    if mode == 0o777:
        assert found['auto'][:2] == ['isolation', 'auto'] and str(home) in found['auto'][2]
    else:
        assert found['auto'] == 'runs'


def test_another_system_has_fewer_layers(monkeypatch):
    """Workers that take themselves for macOS, once their libraries are loaded: no Linux calls."""
    start, end = process.BOOT.split('from ')
    load = f'import {", ".join(program.WARM_IMPORTS)}; sys.platform = "darwin"; '
    monkeypatch.setattr(process, 'BOOT', f'{start}{load}from {end}')
    limits = execution.Limits(seconds=2)
    with execution.Pool(workers=1, limits=limits, isolation='weak') as pool:
        assert pool.submit('import sympy\nprint(sympy.sqrt(8))').result(60).output == '2*sqrt(2)'
        assert pool.submit('while True: pass').result(60).error.startswith('TimeoutError')
        assert {'Landlock', 'seccomp', 'network namespace'} <= set(pool.missing)


def test_no_isolation_keeps_the_limits():
    limits = execution.Limits(seconds=1)
    with execution.Pool(workers=1, limits=limits, isolation='none') as pool:
        assert 'seccomp' not in pool.layers
        forks = 'import os, time\nfor _ in range(3):\n    if not os.fork(): time.sleep(60)\nprint("done")'
        assert pool.submit(forks).result(60).output == 'done'
        assert pool.submit('while True: pass').result(60).error.startswith('TimeoutError')
        base = family(os.getpid())
        assert pool.submit(forks + '\n# again').result(60).output == 'done'
        assert family(os.getpid()) == base
