"""What keeps a child inside: layers, each tried once in a probe and used where the kernel has it.

    janitor   namespaces: network, processes (with them everything a child starts dies), IPC
    zygote    what its children inherit and it can live with: size of files, no capabilities, no
              new privileges
    child     limits of time, memory, processes and descriptors, Landlock (interpreter and
              libraries readable, one scratch folder writable), seccomp (computing only)

A child has no descriptor but /dev/null and its report pipe, and an empty environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import struct
import sys
import sysconfig
import time
from collections.abc import Callable

from rstar_jax.execution import landlock, seccomp

LINUX = sys.platform.startswith('linux')
_NEWUSER, _NEWPID, _NEWNET, _NEWIPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CAPABILITY_VERSION = 0x20080522
_NOBODY = 65534
_ALL_OF_IT = 'read and write'
_SWEEP_SECONDS = 5.0
_HIGH = 100  # descriptors from here on are free for a moment
_libc = ctypes.CDLL(None, use_errno=True)
_SYSTEM_FOLDERS = (
    '/usr/lib', '/usr/lib64', '/lib', '/lib64', '/usr/local/lib', '/usr/share/zoneinfo',
    '/etc/ld.so.cache', '/etc/localtime', '/dev/zero', '/dev/urandom', '/dev/random',
)  # fmt: skip


def enter_namespaces() -> list[str]:
    """Put this process's future children into namespaces of their own; the names of those made.

    An ordinary user gets them inside a new user namespace, where the system allows one.
    """
    if not LINUX:
        return []
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEWNET | _NEWPID | _NEWIPC):
        if _libc.unshare(_NEWUSER | _NEWNET | _NEWPID | _NEWIPC):
            return []
        for name, text in (
            ('setgroups', 'deny'),
            ('uid_map', f'{user} {user} 1'),
            ('gid_map', f'{group} {group} 1'),
        ):
            try:
                with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
                    file.write(text)
            except OSError:
                pass  # files then show the overflow user; nothing depends on it
    return ['network namespace', 'process namespace', 'IPC namespace']


class Cage:
    """The restrictions that a zygote's children live under, tried out and partly put on here.

    Attributes:
      layers: what is in force, by name.
      missing: what full isolation would also need.
      exposed: what programs could do with the user's home: '', 'read', 'read and write'.
      refused: (what is wrong, the remedy) where nothing may run as `isolation` asks for more.
    """

    def __init__(
        self, scratch: str, namespaces: list[str], isolation: str, limits: dict, home: str
    ) -> None:
        self.layers = ['limits', 'empty environment', 'scratch folder', *namespaces]
        self.missing: list[str] = []
        self._own_processes = 'process namespace' in namespaces
        self._steps: list[Callable[[], None]] = []
        self._filter: Callable[[], None] | None = None
        if LINUX and not self._own_processes:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if isolation != 'none':
            self._find_layers(scratch, namespaces)
        self.exposed = '' if 'Landlock' in self.layers else _access(self._steps, home)
        self.refused = self._refusal(isolation, home)
        for kind, value in _inherited_limits(limits):
            resource.setrlimit(kind, (value, value))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self._limits = _limits_of_a_child(limits)

    def _find_layers(self, scratch: str, namespaces: list[str]) -> None:
        if not _address_space():
            self.missing.append('memory limit')
        self._add('no capabilities', _drop_capabilities)
        self._add('no new privileges', _no_new_privileges)
        inherited = list(self._steps)
        self._add('Landlock', _landlock(scratch))
        if 'Landlock' in self.missing and LINUX and os.getuid() == 0 and _open_to_all(sys.prefix):
            os.chown(scratch, _NOBODY, _NOBODY)
            self._steps.insert(0, _become_nobody)
            self.layers.append('user nobody')
            inherited = []  # the zygote needs its capabilities to become, and to kill, that user
        self._add('seccomp', _seccomp())
        if 'seccomp' in self.layers:
            self._filter = self._steps.pop()
        elif 'network namespace' not in namespaces:
            self.missing.append('network namespace')
        for step in inherited:
            step()
            self._steps.remove(step)

    def _refusal(self, isolation: str, home: str) -> tuple[str, str] | None:
        lacks = f'this machine lacks {", ".join(self.missing)}'
        if isolation == 'strict' and self.missing:
            return lacks, 'weak runs programs with the layers that it has'
        if isolation == 'auto' and self.exposed == _ALL_OF_IT and os.getuid():
            return (
                f'{lacks}, so programs could {self.exposed} {home}',
                'weak runs them all the same',
            )
        return None

    def _add(self, name: str, step: Callable[[], None] | None) -> None:
        if step is not None and _works([*self._steps, step]):
            self._steps.append(step)
            self.layers.append(name)
        else:
            self.missing.append(name)

    def close_in(self, keep: list[int], whole_life: bool) -> None:
        """In a child, for its whole life, before any job is read.

        Args:
          keep: descriptors that stay open, beside 0 to 2; they become 3, 4, ...
          whole_life: the CPU limit counts for the whole life (a child of one job).
        """
        high = [os.dup2(fd, _HIGH + index) for index, fd in enumerate(keep)]
        for kind, value in self._limits:
            if whole_life or kind != resource.RLIMIT_CPU:
                resource.setrlimit(kind, (value, value))
        for step in self._steps:
            step()
        for index, fd in enumerate(high):  # only now: a step's own descriptor may be 3 or 4
            os.dup2(fd, 3 + index)
        os.closerange(3 + len(keep), 1 << 16)
        if LINUX:
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if self._filter is not None:
            self._filter()

    def sweep(self, group: int) -> None:
        """In the zygote: kill whatever a child left behind, and reap it."""
        if self._filter is not None and not self._own_processes:
            return  # the filter let it start nothing
        deadline = time.monotonic() + _SWEEP_SECONDS
        while time.monotonic() < deadline:
            if self._own_processes:
                _quietly(os.kill, -1, signal.SIGKILL)  # all of the namespace but its first process
            else:
                _quietly(os.killpg, group, signal.SIGKILL)
                for pid in _children():
                    _quietly(os.kill, pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.001)


def _children() -> list[int]:
    """Children of this process, those included that it inherited (Linux)."""
    try:
        with open(f'/proc/self/task/{os.getpid()}/children', encoding='ascii') as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _quietly(call: Callable, *arguments) -> None:
    with contextlib.suppress(OSError):
        call(*arguments)


def _works(steps: list[Callable[[], None]], then: Callable[[], bool] = lambda: True) -> bool:
    """Try the steps in a child of their own, and there ask `then`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for step in steps:
                step()
            code = not then()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _access(steps: list[Callable[[], None]], folder: str) -> str:
    """What a child that has taken the steps may do in a folder."""
    if not _works(steps, lambda: os.access(folder, os.R_OK | os.X_OK)):
        return ''
    return _ALL_OF_IT if _works(steps, lambda: os.access(folder, os.W_OK)) else 'read'


def _drop_capabilities() -> None:
    header = struct.pack('=Ii', _CAPABILITY_VERSION, 0)
    if _libc.capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), 'capset')


def _no_new_privileges() -> None:
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), 'no_new_privs')


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _open_to_all(path: str) -> bool:
    """Whether any user may walk to a folder."""
    path = os.path.realpath(path)
    while True:
        if not os.stat(path).st_mode & 0o001:
            return False
        if path == os.path.dirname(path):
            return True
        path = os.path.dirname(path)


def _landlock(scratch: str) -> Callable[[], None] | None:
    try:
        return landlock.Ruleset(
            dict.fromkeys(readable_paths(), landlock.READ)
            | {os.devnull: landlock.READ | landlock.WRITE_FILE, scratch: landlock.SCRATCH}
        ).enforce
    except OSError:
        return None


def _seccomp() -> Callable[[], None] | None:
    if not seccomp.supported():
        return None
    return seccomp.Filter(truncating=landlock.version() >= landlock.TRUNCATES).enforce


def readable_paths() -> list[str]:
    """What a program may read: the interpreter's library, its packages, the system's libraries."""
    paths = set(_SYSTEM_FOLDERS)
    kinds = ('stdlib', 'platstdlib', 'purelib', 'platlib')
    paths |= {sysconfig.get_path(kind) for kind in kinds}
    paths |= {entry for entry in sys.path if entry.endswith(('site-packages', 'dist-packages'))}
    if sys.base_prefix not in ('/', '/usr', '/usr/local'):
        paths.add(os.path.join(sys.base_prefix, 'lib'))
    return sorted(path for path in paths if os.path.exists(path))


def _inherited_limits(limits: dict) -> list[tuple[int, int]]:
    """(kind, value) of the limits that a zygote can live with itself."""
    found = [
        _allowed(resource.RLIMIT_FSIZE, int(limits['scratch_mb'] * 2**20)),
        _allowed(resource.RLIMIT_CORE, 0),
    ]
    if hasattr(resource, 'RLIMIT_MSGQUEUE'):
        found.append(_allowed(resource.RLIMIT_MSGQUEUE, 0))
    return found


def _limits_of_a_child(limits: dict) -> list[tuple[int, int]]:
    """(kind, value) of the limits on what a child alone may not use."""
    found = [
        _allowed(resource.RLIMIT_CPU, math.ceil(limits['seconds']) + 1),
        _allowed(resource.RLIMIT_NOFILE, int(limits['open_files'])),
        _allowed(resource.RLIMIT_NPROC, 0),
    ]
    base = _address_space()
    if base:
        limit = base + int(limits['memory_mb'] * 2**20)
        found.append(_allowed(resource.RLIMIT_AS, limit))
    return found


def _allowed(kind: int, value: int) -> tuple[int, int]:
    hard = resource.getrlimit(kind)[1]
    return kind, value if hard == resource.RLIM_INFINITY else min(value, hard)


def _address_space() -> int:
    """Bytes of address space of this process (Linux; 0 where unknown)."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0
