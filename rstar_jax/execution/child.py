"""A worker's children: forked for one program, or for a row of trusted jobs; seen from both sides.

    Once   is forked with its program in memory; its one pipe carries what it prints and, at the
           end, a token that only this program's runner was given, and how it ended
    Many   reads jobs from one pipe and answers on another, in frames of JSON

A child that breaks a limit, dies, or sends anything else is killed, and the report says so in
'killed': seconds, scratch, printed, ended, forged or closed; 'status' is its wait status.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rstar_jax.execution import scratch, wire
from rstar_jax.execution.isolation import Cage

_TICK = 0.05  # seconds between two looks at the size of the scratch folder
_STOPPED = 2.0  # seconds without a look at the clock
# A job ends after so many times its limit, or seconds beyond it, whatever it has used; the main
# process waits longer.
_WALL, _BUSY = 5, 20.0
_FRAME_BYTES = 1 << 20
_ENDING_BYTES = 8192


class Broken(Exception):
    """A child must be killed; args[0] is the reason."""


class Parent(Protocol):
    """What a child needs of the process that forks it; see `worker.Zygote`."""

    fork: Callable[[], int]
    cage: Cage
    channel: int
    scratch: str
    limits: dict[str, Any]
    jobs_per_child: int
    handler: Any


class _Child:
    """A forked child and the pipe that it reports on."""

    def __init__(self, parent: Parent, live: Callable[[], None], extra: list[int]) -> None:
        self.parent = parent
        self.output, reports = os.pipe()
        self.pid = parent.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                os.dup2(reports, 1)
                parent.cage.close_in(extra, whole_life=parent.jobs_per_child == 1)
                live()
            finally:
                os._exit(70)
        os.close(reports)
        self._start()

    def arriving(self, deadline: float) -> Iterator[bytes]:
        """What the child sends, as it comes; Broken at a limit; ends with its end of stream."""
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        poll.register(self.parent.channel, 0)
        last = measured = time.monotonic()
        while True:
            now = time.monotonic()
            if now - last > _STOPPED:  # this process was stopped, and with it the child
                deadline += now - last
            if now >= deadline:
                deadline = max(deadline, now + self.owed())
            last, wait = now, deadline - now
            if wait <= 0:
                raise Broken('seconds')
            events = poll.poll(1000 * min(wait, _TICK) + 1)
            for fd, _ in events:
                if fd != self.output:
                    raise Broken('closed')
                part = os.read(fd, 1 << 16)
                if not part:
                    return
                yield part
            if time.monotonic() - measured >= _TICK:
                self.measure()
                measured = time.monotonic()

    def _start(self) -> None:
        """A job begins."""
        self._began, self._before = time.monotonic(), self._clock()

    def _used(self) -> float:
        """Seconds that processors have worked for the job."""
        return self._clock() - self._before

    def _clock(self) -> float:
        """Seconds that processors have worked for the child; elsewhere than on Linux, the clock."""
        if not sys.platform.startswith('linux'):
            return time.monotonic()
        return time.clock_gettime((~self.pid << 3) | 2)  # clock_getcpuclockid

    def owed(self) -> float:
        """Seconds that the child may go on at the deadline: its limit is time of a processor."""
        seconds = self.parent.limits['seconds']
        last = self._began + min(_WALL * seconds, seconds + _BUSY)
        return max(0.0, min(seconds - self._used(), last - time.monotonic()))

    def measure(self) -> None:
        """Broken where the child's files are too big."""
        if scratch.too_big(self.parent.scratch, self.parent.limits['scratch_mb'] * 2**20):
            raise Broken('scratch')

    def end(self) -> int:
        """Kill the child and whatever it left; its wait status."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        os.close(self.output)
        self.parent.cage.sweep(self.pid)
        return status


def _waited() -> float:
    """Seconds that this process's child, ready to work, has waited for a processor (Linux)."""
    try:  # by its number there: its pid may be of another namespace
        with open('/proc/thread-self/children', encoding='ascii') as file:
            number = file.read().split()[-1]
        with open(f'/proc/{number}/schedstat', encoding='ascii') as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Once(_Child):
    """A child for one program."""

    def __init__(self, parent: Parent, job: dict) -> None:
        self.token = secrets.token_bytes(16)

        def live() -> None:
            ending = parent.handler.handle(job)
            wire.write_all(1, self.token + wire.HEADER.pack(len(ending)) + ending)
            os._exit(0)

        super().__init__(parent, live, [])

    def owed(self) -> float:
        """As of any job; but a program that sleeps has its limit by the clock."""
        awake = self._used() + _waited()
        asleep = _WALL * awake < time.monotonic() - self._began
        return 0.0 if asleep else super().owed()

    def report(self, deadline: float) -> dict:
        """{'output', 'ending'}: what it printed, and what handler.handle returned."""
        data, limit = bytearray(), self.parent.limits['printed_chars']
        seen = 0
        for part in self.arriving(deadline):
            data += part
            at = data.find(self.token, max(0, seen - len(self.token)))
            start = at + len(self.token) + wire.HEADER.size
            if at >= 0 and start <= len(data):
                size = wire.HEADER.unpack(data[start - wire.HEADER.size : start])[0]
                if at > limit or size > _ENDING_BYTES:
                    raise Broken('printed')
                if len(data) >= start + size:
                    self.measure()
                    return {
                        'output': data[:at].decode('utf-8', 'replace'),
                        'ending': data[start : start + size].decode('utf-8', 'replace'),
                    }
            elif at < 0:
                seen = len(data)
            if len(data) > limit + _ENDING_BYTES:
                raise Broken('printed')
        raise Broken('ended')


class Many(_Child):
    """A child for many jobs of our own code."""

    def __init__(self, parent: Parent) -> None:
        jobs, self.jobs = os.pipe()

        def live() -> None:
            while (body := wire.read_frame(3)) is not None:
                token, job = json.loads(body)
                wire.write_all(1, wire.frame([token, parent.handler.handle(job)]))
            os._exit(0)

        super().__init__(parent, live, [jobs])
        os.close(jobs)

    def report(self, job: dict, deadline: float) -> dict:
        """Do one job."""
        self._start()
        token = secrets.token_hex(8)
        try:
            wire.write_all(self.jobs, wire.frame([token, job]))
        except BrokenPipeError:
            raise Broken('ended') from None
        data = bytearray()
        for part in self.arriving(deadline):
            data += part
            if len(data) > _FRAME_BYTES:
                raise Broken('printed')
            size = wire.HEADER.size
            if len(data) >= size and len(data) - size >= wire.HEADER.unpack(data[:size])[0]:
                given, report = json.loads(bytes(data[size:]))
                if given != token:
                    raise Broken('forged')
                return report
        raise Broken('ended')

    def end(self) -> int:
        os.close(self.jobs)
        return super().end()
