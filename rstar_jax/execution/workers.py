"""The main process's side: a queue of jobs, at most one thread and one worker for each core.

    submit -> memo? -> queue -> thread -> socket -> worker -> child
    Future <- memo <--------- thread <- socket <- worker <- report

The threads only wait on sockets, so the device loop keeps the interpreter's lock. There are as many
as there ever were jobs at once: a worker takes 100 MB, and seconds to start.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import hashlib
import json
import logging
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from rstar_jax.execution import wire
from rstar_jax.execution.limits import Limits
from rstar_jax.job import cgroups
from rstar_jax.settings.errors import UserError

_LOG = logging.getLogger(__name__)
_BOOT = 'import sys; sys.path[:] = {path!r}; from rstar_jax.execution import worker; worker.main()'
_LOADING = {'LD_LIBRARY_PATH', 'PYTHONHOME'}  # what an interpreter may not start without
START_SECONDS = 120.0  # for a worker's imports and warm-up, on a busy machine too
GRACE_SECONDS = 30.0  # beyond a job's own limit, before its worker counts as hung
CLOSE_SECONDS = 5.0
STARTS = 3  # tries to start one worker
MEMO = 50_000
ISOLATION = ('auto', 'strict', 'none')
_PREFIX = 'rstar-scratch-'
_OPEN: weakref.WeakSet = weakref.WeakSet()  # of Workers
_sharing = 1


def cores() -> int:
    """Cores this process may use, its part of those that processes of its job share.

    A container's quota counts: it may be a few of the cores that are seen there.
    """
    if hasattr(os, 'sched_getaffinity'):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, int(min(count, cgroups.processors()) // _sharing))


def share(processes: int) -> None:
    """Has this process take its part of cores that so many processes of its job have."""
    global _sharing
    _sharing = processes


class WorkerDied(Exception):
    """A worker ended or hung in the middle of a job."""


class _Worker:
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
        boot = _BOOT.format(path=[_root(), *path])
        environment = {
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
        settings = {
            'handler': handler,
            'jobs_per_child': jobs_per_child,
            'isolation': isolation,
            'limits': vars(limits),
            'scratch': self.scratch,
            'environment': environment,
        }
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, '-c', boot, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    env=environment | {name: os.environ[name] for name in _LOADING & {*os.environ}},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self.socket.sendall(wire.frame(settings))
        except OSError as error:
            self.stop(0)
            raise WorkerDied(f'no worker starts: {error}') from error
        self.layers, self.missing = None, []

    def await_start(self) -> None:
        """Wait until the worker is warm; fills in the layers in force."""
        hello = json.loads(self._receive(START_SECONDS))
        self.layers, self.missing = hello['layers'], hello['missing']

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


class _Job:
    __slots__ = ('body', 'futures', 'key')

    def __init__(self, key: bytes, body: bytes) -> None:
        self.key, self.body, self.futures = key, body, []


class Workers:
    """Worker processes that answer jobs of one kind; the machinery under Pool and Grader.

    Args:
      handler: module with `warm()` and `handle(job) -> dict`, imported in the workers.
      count: worker processes at most; None for one a core.
      jobs_per_child: jobs that one forked child may serve; 1 for untrusted programs.
      isolation: 'auto' (what the kernel allows), 'strict' (all or UserError), 'none' (limits only).
      limits: of every job.
      finish: turns a report (dict) into (value of the future, whether it may be remembered).
      announce: called once, in another thread, with a line that tells the layers in force; None
        logs a warning where some are missing.
    """

    def __init__(
        self,
        handler: str,
        *,
        count: int | None,
        jobs_per_child: int,
        isolation: str,
        limits: Limits,
        finish: Callable[[dict], tuple[Any, bool]],
        announce: Callable[[str], None] | None = None,
    ) -> None:
        if isolation not in ISOLATION:
            raise UserError(f'isolation={isolation!r}: expected one of {", ".join(ISOLATION)}')
        if count is not None and (not isinstance(count, int) or count < 1):
            raise UserError(f'workers={count!r}: needs an integer of at least 1')
        self._spawn = (handler, jobs_per_child, isolation, limits)
        self._seconds = limits.seconds
        self._finish, self._announce = finish, announce
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._memo: collections.OrderedDict[bytes, Any] = collections.OrderedDict()
        self._pending: dict[bytes, _Job] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._live: weakref.WeakSet[_Worker] = weakref.WeakSet()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self.layers: list[str] = []
        self.missing: list[str] = []
        self.computed = self.remembered = 0
        _remove_stale()
        self._base = tempfile.mkdtemp(prefix=f'{_prefix()}{os.getpid()}-')
        self._count = count or cores()
        self._threads: list[threading.Thread] = []
        self._serving = 0
        self._hire()
        _OPEN.add(self)

    def await_start(self) -> None:
        """Wait until the first worker is warm; raises what kept it from starting."""
        self._started.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def submit(self, job: dict) -> Future:
        """Queue a job (JSON-able); never blocks."""
        body = json.dumps(job).encode('ascii')
        key = hashlib.blake2b(body, digest_size=16).digest()
        future: Future = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError('the pool is closed')
            if self._failure is not None:
                raise self._failure
            if key in self._memo:
                self._memo.move_to_end(key)
                self.remembered += 1
                future.set_result(self._memo[key])
                return future
            job_ = self._pending.get(key)
            if job_ is None:
                job_ = self._pending[key] = _Job(key, body)
                self._queue.put(job_)
                if len(self._threads) < min(len(self._pending), self._count):
                    self._hire()
            else:
                self.remembered += 1
            job_.futures.append(future)
        return future

    def _hire(self) -> None:
        """One more thread with a worker."""
        name = f'rstar-worker-{len(self._threads)}'
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            if not self._threads:
                raise
            self._count = len(self._threads)
            return
        self._threads.append(thread)
        self._serving += 1

    def _serve(self) -> None:
        """A thread's life: starts its worker (whose death signal is tied to it), serves."""
        worker: _Worker | None = None
        job: _Job | None = None
        try:
            worker = self._start()
            while (job := self._queue.get()) is not None:
                if self._dropped(job):
                    continue
                report = {'killed': 'worker'}
                for _ in range(2):
                    worker = worker or self._start()
                    try:
                        report = worker.ask(job.body, self._seconds)
                        break
                    except WorkerDied as error:
                        worker.stop(0)
                        worker = None
                        if self._closed:
                            report = {'killed': 'closed'}
                            break
                        _LOG.warning('an execution worker was lost (%s); starting another', error)
                self._deliver(job, report)
        except Exception as error:
            self._fail(error, job)
        finally:
            if worker is not None:
                worker.stop()

    def _start(self) -> _Worker:
        for attempt in range(STARTS):
            worker = None
            try:
                worker = _Worker(*self._spawn, self._base)
                with self._lock:
                    self._live.add(worker)
                if self._closed:
                    worker.hang_up()
                worker.await_start()
                break
            except WorkerDied:
                if worker is not None:
                    worker.stop(0)
                if self._closed or attempt == STARTS - 1:
                    raise
                time.sleep(0.2)
        if worker.missing and self._spawn[2] == 'strict':
            worker.stop()
            raise UserError(
                '--config.execution.isolation=strict: this machine lacks '
                f'{", ".join(worker.missing)}; auto runs with the layers that it has'
            )
        with self._lock:
            first = not self._started.is_set()
            self.layers, self.missing = worker.layers, worker.missing
            self._started.set()
        if first:
            self._tell()
        return worker

    def _tell(self) -> None:
        """Tell the layers in force."""
        line = f'execution: {", ".join(self.layers)}'
        if self.missing:
            line += f'; not available here: {", ".join(self.missing)}'
        if self._announce is not None:
            self._announce(line)
        elif self.missing:
            _LOG.warning(line)

    def _fail(self, error: Exception, job: _Job | None) -> None:
        """A worker cannot be started: others do its job.

        Where there are none, everything queued, and everything to come, raises the error.
        """
        with self._lock:
            self._serving -= 1
            if self._serving and isinstance(error, WorkerDied) and not self._closed:
                _LOG.warning('an execution worker does not start (%s); others go on', error)
                if job is not None:
                    self._queue.put(job)
                return
            if self._failure is None:
                self._failure = error
            jobs, self._pending = list(self._pending.values()), {}
        for job in jobs:
            for future in job.futures:
                if not (self._closed and future.cancel()):
                    with contextlib.suppress(InvalidStateError):  # done, or cancelled just now
                        future.set_exception(error)
        self._started.set()

    def _dropped(self, job: _Job) -> bool:
        """Whether every future of the job was cancelled (then it is forgotten)."""
        with self._lock:
            job.futures = [
                one for one in job.futures if one.running() or one.set_running_or_notify_cancel()
            ]
            if not job.futures:
                self._pending.pop(job.key, None)
            return not job.futures

    def _deliver(self, job: _Job, report: dict) -> None:
        value, lasting = self._finish(report)
        with self._lock:
            self.computed += 1
            self._pending.pop(job.key, None)
            futures = job.futures
            if lasting:
                self._memo[job.key] = value
                if len(self._memo) > MEMO:
                    self._memo.popitem(last=False)
        for future in futures:
            with contextlib.suppress(InvalidStateError):  # cancelled just now
                future.set_result(value)

    def close(self) -> None:
        """End all workers; what is not done yet is cancelled or answered as closed."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        while True:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if not all(future.cancel() for future in job.futures):  # a failed worker began it
                self._deliver(job, {'killed': 'closed'})
        for _ in self._threads:
            self._queue.put(None)
        with self._lock:
            live = list(self._live)
        for worker in live:
            worker.hang_up()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._base, ignore_errors=True)
        _OPEN.discard(self)


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _prefix() -> str:
    """Of the folders of this host and container: others may share the folder, not process ids."""
    place = socket.gethostname()
    with contextlib.suppress(OSError):
        place += f'/{os.stat("/proc/self/ns/pid").st_ino}'
    return f'{_PREFIX}{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}-'


def _remove_stale() -> None:
    """Scratch folders of main processes here that died with their workers at once."""
    folder, prefix = tempfile.gettempdir(), _prefix()
    for name in os.listdir(folder):
        if name.startswith(prefix):
            owner = name.removeprefix(prefix).split('-')[0]
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@atexit.register
def _close_all() -> None:
    for workers in list(_OPEN):
        workers.close()
