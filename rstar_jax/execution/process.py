"""One worker process, as the main process has it: its start, the socket to it, its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile

from rstar_jax.execution import wire
from rstar_jax.execution.limits import Limits

BOOT = 'import sys; sys.path[:] = {path!r}; from rstar_jax.execution import worker; worker.main()'
_LOADING = {'LD_LIBRARY_PATH', 'PYTHONHOME'}  # what an interpreter may not start without
START_SECONDS = 120.0  # for a worker's imports and warm-up, on a busy machine too
GRACE_SECONDS = 30.0  # beyond a job's own limit, before its worker counts as hung
CLOSE_SECONDS = 5.0
ENVIRONMENT = {
    'PATH': os.defpath,
    'HOME': '.',
    'TMPDIR': '.',
    'MPLCONFIGDIR': '.',
    'MPLBACKEND': 'Agg',
    'LANG': 'C.UTF-8',
    'PYTHONHASHSEED': '0',
    'PYTHONDONTWRITEBYTECODE': '1',
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_NUM_THREADS': '1',
    'MKL_NUM_THREADS': '1',
    'SYMPY_CACHE_SIZE': 'None',  # a bounded cache writes to memory at every look-up
}


@dataclasses.dataclass(frozen=True)
class Hello:
    """What a worker that has started tells of the isolation in force; see `isolation.Cage`."""

    layers: list[str]
    missing: list[str]
    exposed: str
    refused: tuple[str, str] | None

    def line(self) -> str:
        """All in a line."""
        line = f'execution: {", ".join(self.layers)}'
        if self.missing:
            line += f'; not available here: {", ".join(self.missing)}'
        if self.exposed:
            line += f'; programs could {self.exposed} {home()}'
        return line


class WorkerDied(Exception):
    """A worker ended or hung in the middle of a job."""


class Process:
    """One worker process and the socket to it; used by one thread only.

    Raises:
      WorkerDied: it cannot be started, or ended at once; nothing of it is left.
    """

    def __init__(
        self, handler: str, jobs_per_child: int, isolation: str, limits: Limits, base: str
    ) -> None:
        os.makedirs(base, exist_ok=True)
        self.scratch = tempfile.mkdtemp(dir=base)
        ours, theirs = socket.socketpair()
        self.socket, self.process = ours, None
        path = [entry for entry in sys.path if entry] + [os.getcwd()] * ('' in sys.path)
        boot = BOOT.format(path=[_root(), *path])
        settings = {
            'handler': handler,
            'jobs_per_child': jobs_per_child,
            'isolation': isolation,
            'limits': vars(limits),
            'scratch': self.scratch,
            'environment': ENVIRONMENT,
            'home': home(),
        }
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, '-c', boot, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    env=ENVIRONMENT | {name: os.environ[name] for name in _LOADING & {*os.environ}},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self.socket.sendall(wire.frame(settings))
        except OSError as error:
            self.stop(0)
            raise WorkerDied(f'no worker starts: {error}') from error

    def await_start(self) -> Hello:
        """Wait until the worker is warm."""
        return Hello(**json.loads(self._receive(START_SECONDS)))

    def ask(self, body: bytes, seconds: float) -> dict:
        """One job to the worker, and its report."""
        try:
            self.socket.sendall(wire.HEADER.pack(len(body)) + body)
        except OSError:
            raise WorkerDied('it closed its socket') from None
        return json.loads(self._receive(seconds + GRACE_SECONDS))

    def _receive(self, seconds: float) -> bytes:
        self.socket.settimeout(seconds)
        try:
            header = self._exact(wire.HEADER.size)
            return self._exact(wire.HEADER.unpack(header)[0])
        except OSError as error:
            raise WorkerDied(f'no answer: {error}') from None

    def _exact(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise WorkerDied('it ended')
            data += part
        return bytes(data)

    def hang_up(self) -> None:
        """Wake the thread that waits for this worker, from another thread; the worker ends."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def stop(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the worker, by force after `seconds`, and remove its scratch folder."""
        self.socket.close()
        if self.process is not None:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def home() -> str:
    """The user's folder, which no program has to do with."""
    return os.path.realpath(os.path.expanduser('~'))
