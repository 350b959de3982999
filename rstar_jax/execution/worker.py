"""A worker: a warm interpreter that forks one child for each program (or for a run of gradings).

Started by `pool.Pool` as a fresh interpreter. It is three processes deep:

    janitor   enters new namespaces, forks the zygote, waits; removes the scratch folder at the end
    zygote    imports and warms up once; then for every job: gives it to the child that stands
              ready, waits for the report with a deadline, kills the child, forks the next one
    child     locks itself in, reads one job, runs it, reports, ends

Jobs and reports cross the zygote's socket as the frames of `wire`. The socket's end of stream, or
the death of the main process, ends everything.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time

from rstar_jax.execution import isolation, wire

REPORT_BYTES = 1 << 20
SCRATCH_TICK = 0.05  # seconds between two looks at the size of a running program's scratch folder
SCRATCH_ENTRIES = 1000
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
        if zygote:
            os.kill(zygote, signal.SIGKILL)
            os.waitpid(zygote, 0)
        empty(settings['scratch'], remove=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    if os.getppid() != parent:
        stop()
    layers = isolation.enter_namespaces() if settings['isolation'] != 'none' else []
    janitor = os.getpid()
    zygote = os.fork()
    if zygote == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _end_with_parent(signal.SIGKILL, 0 if 'pid namespace' in layers else janitor)
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
    """The warm process: forks children and supervises them, one at a time."""

    def __init__(self, channel: int, settings: dict, layers: list[str]) -> None:
        self.channel = channel
        self.scratch = settings['scratch']
        self.isolation = settings['isolation']
        self.handler = importlib.import_module(settings['handler'])
        self.jobs_per_child = settings['jobs_per_child']
        self.child: Child | None = None
        self.jobs_of_child = 0
        os.environ.clear()
        os.environ.update(settings['environment'])
        os.chdir(self.scratch)
        self.handler.warm()
        _lonely_stdio()
        self.cage = isolation.Cage(self.scratch, layers, self.isolation)
        gc.collect()
        gc.freeze()
        gc.disable()

    def run(self) -> None:
        """Serve until the main process closes the socket."""
        wire.write_all(
            self.channel, wire.frame({'layers': self.cage.layers, 'missing': self.cage.missing})
        )
        refused = self.isolation == 'strict' and self.cage.missing
        while not refused:
            if self.child is None:
                self.child, self.jobs_of_child = Child(self), 0
            body = wire.read_frame(self.channel)
            if body is None:
                break
            report = self.serve(body)
            wire.write_all(self.channel, report)
        if self.child is not None:
            self.child.end()

    def serve(self, body: bytes) -> bytes:
        """Have the child do one job; the frame of its report."""
        job = json.loads(body)
        started = time.monotonic()
        report = self.child.do(job, started + job['limits']['seconds'])
        seconds = time.monotonic() - started
        self.jobs_of_child += 1
        if 'killed' in report or self.jobs_of_child >= self.jobs_per_child:
            status = self.child.end()
            self.child = None
            empty(self.scratch)
            if report.get('killed') == 'ended':
                report = {'killed': 'ended', 'status': status}
        report['seconds'] = seconds
        return wire.frame(report)


class Child:
    """A forked child that stands ready, seen from the zygote."""

    def __init__(self, zygote: Zygote) -> None:
        job_read, self.job_write = os.pipe()
        self.report_read, report_write = os.pipe()
        self.channel, self.scratch, self.cage = zygote.channel, zygote.scratch, zygote.cage
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _child(zygote, job_read, report_write)
            finally:
                os._exit(70)
        os.close(job_read)
        os.close(report_write)

    def do(self, job: dict, deadline: float) -> dict:
        """Send a job, wait for its report until `deadline` (time.monotonic())."""
        token = secrets.token_hex(16)
        try:
            wire.write_all(self.job_write, wire.frame([token, job]))
        except BrokenPipeError:
            return {'killed': 'ended'}
        data = bytearray()
        poll = select.poll()
        poll.register(self.report_read, select.POLLIN)
        poll.register(self.channel, 0)
        bound = job['limits']['scratch_mb'] * 2**20
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                return {'killed': 'seconds'}
            for fd, event in poll.poll(1000 * min(wait, SCRATCH_TICK) + 1):
                if fd == self.channel and event & (select.POLLHUP | select.POLLERR):
                    return {'killed': 'closed'}
                if fd != self.report_read:
                    continue
                part = os.read(fd, 1 << 16)
                data += part
                if not part or len(data) > REPORT_BYTES:
                    return {'killed': 'ended'}
                report = _whole(data, token)
                if report is not None:
                    return report
            if too_big(self.scratch, bound):
                return {'killed': 'scratch'}

    def end(self) -> int:
        """Kill the child and whatever it left; its wait status."""
        status = 0
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            time.sleep(0)
            os.kill(self.pid, signal.SIGKILL)
            done, status = os.waitpid(self.pid, 0)
        os.close(self.job_write)
        os.close(self.report_read)
        self.cage.sweep()
        return status


def _whole(data: bytearray, token: str) -> dict | None:
    """The report when it is complete; {'killed': 'ended'} when it is not what a child writes."""
    size = wire.HEADER.size
    if len(data) < size:
        return None
    length = wire.HEADER.unpack(data[:size])[0]
    if length > REPORT_BYTES:
        return {'killed': 'ended'}
    if len(data) < size + length:
        return None
    try:
        given, report = json.loads(bytes(data[size : size + length]))
        if given == token and isinstance(report, dict) and 'killed' not in report:
            return report
    except (ValueError, TypeError):
        pass
    return {'killed': 'ended'}


def _child(zygote: Zygote, jobs: int, reports: int) -> None:
    """The child's whole life; never returns to the zygote's code."""
    _end_with_parent(signal.SIGKILL, 0)
    os.setpgid(0, 0)
    # 3 and 4 are free or not needed any more: only the two pipes go on.
    jobs, reports = os.dup2(jobs, 60), os.dup2(reports, 61)
    os.dup2(jobs, 3)
    os.dup2(reports, 4)
    zygote.cage.close_in()
    os.closerange(5, 1 << 16)
    single = zygote.jobs_per_child == 1
    limited = False
    while True:
        body = wire.read_frame(3)
        if body is None:
            os._exit(0)
        token, job = json.loads(body)
        del body
        if single:
            os.dup2(0, 3)
        if not limited:
            limited = True
            zygote.cage.limit(job['limits'], whole_life=single)
        try:
            report = zygote.handler.handle(job)
        except MemoryError:
            report = {'ok': False, 'output': '', 'error': 'MemoryError'}
        wire.write_all(4, wire.frame([token, report]))
        if single:
            os._exit(0)


def _lonely_stdio() -> None:
    """Descriptors 0 and 1 are /dev/null from here on (2 until then shows errors of the start)."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def too_big(folder: str, bound: int) -> bool:
    """Whether the files in a scratch folder are too many or hold more than `bound` bytes."""
    total = entries = 0
    folders = [folder]
    try:
        while folders:
            with os.scandir(folders.pop()) as scan:
                for entry in scan:
                    entries += 1
                    total += entry.stat(follow_symlinks=False).st_size
                    if total > bound or entries > SCRATCH_ENTRIES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    except OSError:
        return entries > SCRATCH_ENTRIES
    return False


def empty(folder: str, remove: bool = False) -> None:
    """Delete what is in a folder (and the folder), however deep and whatever its permissions."""
    try:
        if not remove:
            with os.scandir(folder) as scan:
                names = [entry.path for entry in scan]
        else:
            names = [folder]
        for name in names:
            if os.path.isdir(name) and not os.path.islink(name):
                try:
                    shutil.rmtree(name)
                except (OSError, RecursionError):
                    tools = {'PATH': '/usr/bin:/bin'}
                    subprocess.run(['chmod', '-R', 'u+rwx', name], check=False, env=tools)
                    subprocess.run(['rm', '-rf', name], check=False, env=tools)
            else:
                os.unlink(name)
    except FileNotFoundError:
        pass


if __name__ == '__main__':
    main()
