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
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from rstar_jax.execution import scratch
from rstar_jax.execution.limits import Limits
from rstar_jax.execution.process import Hello, Process, WorkerDied
from rstar_jax.job import cgroups
from rstar_jax.settings.errors import UserError

_LOG = logging.getLogger(__name__)
STARTS = 3  # tries to start one worker
MEMO = 50_000
ISOLATION = ('auto', 'strict', 'weak', 'none')
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


def check(isolation: str) -> None:
    """Raises UserError where this machine lacks what an isolation asks for; takes a moment."""
    one = Workers(
        '',
        count=1,
        jobs_per_child=1,
        isolation=isolation,
        limits=Limits(),
        finish=lambda report: (report, False),
        announce=lambda line: None,
    )
    one.await_start()
    one.close()


class _Job:
    __slots__ = ('body', 'futures', 'key')

    def __init__(self, key: bytes, body: bytes) -> None:
        self.key, self.body, self.futures = key, body, []


class Workers:
    """Worker processes that answer jobs of one kind; the machinery under Pool and Grader.

    Args:
      handler: module with `warm()` and `handle(job) -> dict`, imported in the workers; '' to learn
        of the isolation alone.
      count: worker processes at most; None for one a core.
      jobs_per_child: jobs that one forked child may serve; 1 for untrusted programs.
      isolation: as of `pool.Pool`.
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
            raise UserError('isolation', isolation, f'expected one of {", ".join(ISOLATION)}')
        if count is not None and (not isinstance(count, int) or count < 1):
            raise UserError('workers', count, 'needs an integer of at least 1')
        self._spawn = (handler, jobs_per_child, isolation, limits)
        self._seconds = limits.seconds
        self._finish, self._announce = finish, announce
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._memo: collections.OrderedDict[bytes, Any] = collections.OrderedDict()
        self._pending: dict[bytes, _Job] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._live: weakref.WeakSet[Process] = weakref.WeakSet()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._hello: Hello | None = None
        self.computed = self.remembered = 0
        scratch.remove_stale()
        self._base = scratch.make_base()
        self._count = count or cores()
        self._threads: list[threading.Thread] = []
        self._serving = 0
        self._hire()
        _OPEN.add(self)

    def await_start(self) -> Hello:
        """Wait until the first worker is warm; raises what kept it from starting."""
        self._started.wait()
        if self._failure is not None:
            self.close()
            raise self._failure
        return self._hello

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
        worker: Process | None = None
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

    def _start(self) -> Process:
        for attempt in range(STARTS):
            worker = None
            try:
                worker = Process(*self._spawn, self._base)
                with self._lock:
                    self._live.add(worker)
                if self._closed:
                    worker.hang_up()
                hello = worker.await_start()
                break
            except WorkerDied:
                if worker is not None:
                    worker.stop(0)
                if self._closed or attempt == STARTS - 1:
                    raise
                time.sleep(0.2)
        if hello.refused:
            worker.stop()
            raise UserError('isolation', self._spawn[2], *hello.refused)
        with self._lock:
            first = self._hello is None
            self._hello = hello
            self._started.set()
        if first and self._announce is not None:
            self._announce(hello.line())
        elif first and hello.missing:
            _LOG.warning(hello.line())
        return worker

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


@atexit.register
def _close_all() -> None:
    for workers in list(_OPEN):
        workers.close()
