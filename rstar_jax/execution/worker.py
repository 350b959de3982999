"""A worker: a warm interpreter that forks one child for each program (or for a run of gradings).

Started by `pool.Pool` as a fresh interpreter. It is three processes deep:

    janitor   enters new namespaces, forks the zygote, waits; removes the scratch folder at the end
    zygote    imports and warms up once; then for every program forks a child, waits for its
              report with a deadline, kills it and empties the scratch folder
    child     locks itself in, runs the program, reports, ends

Jobs and reports cross the zygote's socket as the frames of `wire`. The socket's end of stream, or
the death of the main process, ends everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time

from rstar_jax.execution import child, forking, isolation, scratch, wire

PR_SET_PDEATHSIG = 1
ADDR_NO_RANDOMIZE = 0x0040000


def main() -> None:
    """Entry point; the settings come as one frame of JSON on the socket, argv[1] is its number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _same_addresses()
    channel, parent = int(sys.argv[1]), int(sys.argv[2])
    _end_with_parent(signal.SIGTERM, parent)
    settings = json.loads(wire.read_frame(channel) or b'{}')
    if not settings:
        return
    zygote = 0

    def stop(*_):
        with contextlib.suppress(OSError):  # it may have ended, and been waited for, just now
            if zygote:
                os.kill(zygote, signal.SIGKILL)
                os.waitpid(zygote, 0)
        scratch.remove(settings['scratch'])
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    if os.getppid() != parent:
        stop()
    layers = isolation.enter_namespaces() if settings['isolation'] != 'none' else []
    _end_with_parent(signal.SIGTERM, parent)  # again: changed credentials undo it
    janitor = os.getpid()
    zygote = os.fork()
    if zygote == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _end_with_parent(signal.SIGKILL, 0 if 'process namespace' in layers else janitor)
            Zygote(channel, settings, layers).run()
            code = 0
        except BrokenPipeError:
            code = 0  # the main process is gone
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            os._exit(code)
    os.close(channel)
    os.waitpid(zygote, 0)
    zygote = 0
    stop()


def _same_addresses() -> None:
    """No address randomisation: hashes of some objects, and with them set orders, are addresses."""
    if not sys.platform.startswith('linux') or os.environ.get('RSTAR_WORKER_AGAIN'):
        return
    libc = ctypes.CDLL(None)
    if libc.personality(ctypes.c_ulong(libc.personality(0xFFFFFFFF) | ADDR_NO_RANDOMIZE)) != -1:
        os.environ['RSTAR_WORKER_AGAIN'] = '1'
        os.execv(sys.executable, sys.orig_argv)


def _end_with_parent(sign: int, parent: int) -> None:
    """This process gets `sign` when its parent dies (Linux), also where it just died."""
    if sys.platform.startswith('linux'):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(sign), 0, 0, 0)
        if parent and os.getppid() != parent:
            os._exit(0)


class Zygote:
    """The warm process: forks children and supervises them, one at a time.

    Attributes:
      channel: socket to the main process.
      handler: module with `warm()`, `handle(job)` for the children and `present(report)` here; ''
        where only the isolation is asked for.
    """

    def __init__(self, channel: int, settings: dict, layers: list[str]) -> None:
        self.channel = channel
        self.scratch = settings['scratch']
        self.limits = settings['limits']
        self.jobs_per_child = settings['jobs_per_child']
        self.handler = settings['handler'] and importlib.import_module(settings['handler'])
        self.fork = forking.raw_fork()
        self._child: child.Many | None = None
        self._jobs = 0
        sys.argv[1:] = []  # nothing for programs that read their arguments
        os.environ.clear()
        os.environ.update(settings['environment'])
        os.chdir(self.scratch)
        _first_to_go()
        if self.handler:
            self.handler.warm()
        _lonely_stdio()
        self.cage = isolation.Cage(
            self.scratch, layers, settings['isolation'], self.limits, settings['home']
        )
        forking.settle()

    def run(self) -> None:
        """Serve until the main process closes the socket."""
        names = 'layers', 'missing', 'exposed', 'refused'
        hello = {name: getattr(self.cage, name) for name in names}
        wire.write_all(self.channel, wire.frame(hello))
        while self._fit() and (body := wire.read_frame(self.channel)) is not None:
            started = time.monotonic()
            report = self.serve(json.loads(body), started + self.limits['seconds'])
            report['seconds'] = time.monotonic() - started
            wire.write_all(self.channel, wire.frame(report))
        if self._child is not None:
            self._child.end()

    def _fit(self) -> bool:
        """Whether it can serve; where its scratch folder was taken away, another worker must."""
        return not self.cage.refused and os.access(self.scratch, os.R_OK | os.W_OK | os.X_OK)

    def serve(self, job: dict, deadline: float) -> dict:
        """Have a child do one job; its report."""
        if self.jobs_per_child == 1:
            one = child.Once(self, job)
            try:
                report = one.report(deadline)
            except child.Broken as broken:
                report = {'killed': broken.args[0]}
            status = one.end()
            scratch.empty(self.scratch)
        else:
            report, status = self._in_a_row(job, deadline)
        if 'killed' in report:
            return {'killed': report['killed'], 'status': status}
        return self.handler.present(report)

    def _in_a_row(self, job: dict, deadline: float) -> tuple[dict, int]:
        """A trusted job's report and its child's wait status; a new child where the last one ended.

        Jobs before it may have filled the child's memory: then it is done once more.
        """
        report, status, first = {'killed': 'ended'}, 0, False
        while report.get('killed') == 'ended' and not first:
            first = self._child is None
            if first:
                self._child, self._jobs = child.Many(self), 0
            self._jobs += 1
            status = 0
            try:
                report = self._child.report(job, deadline)
            except child.Broken as broken:
                report = {'killed': broken.args[0]}
            if 'killed' in report or self._jobs >= self.jobs_per_child:
                status = self._child.end()
                self._child = None
                scratch.empty(self.scratch)
        return report, status


def _first_to_go() -> None:
    """Where memory runs out, a program ends, not the main process (Linux)."""
    with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w') as file:
        file.write('1000')


def _lonely_stdio() -> None:
    """Descriptors 0 and 1 are /dev/null from here on (2 until then shows errors of the start)."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


if __name__ == '__main__':
    main()
