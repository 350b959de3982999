"""How a command ends before its time: by Ctrl-C, by SIGTERM, and without Python's own end.

SIGTERM is how clusters announce that they take a machine away. Either raises `Stopped` wherever the
run is; in a block of `held` it is noted instead, and the block asks for it where it can stop.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator

# Seconds in which a second interrupt is taken for the first: a terminal's and a parent's both come.
SAME_PRESS = 1.0
LONGEST_END = 25.0  # seconds from an interrupt to the end of the process, whatever hangs
NOTICE = 2.0  # seconds after which Ctrl-C in a block of `held` gets an answer
WAITING = 'stopping as soon as what was done is saved; Ctrl-C again ends at once'


class Stopped(KeyboardInterrupt):
    """The run was asked to end. Its text is the run's last line.

    Attributes:
      number: of the signal.
      code: the exit code, 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int, where: str = ''):
        how = 'preempted' if number == signal.SIGTERM else 'stopped'
        super().__init__(f'{how}{where}; run the same command again to go on')
        self.number, self.code = number, 128 + number


class Interrupts:
    """How Ctrl-C and SIGTERM are handled in the block: the first ends the run in order.

    A later Ctrl-C ends the process at once, and so does the end of LONGEST_END; where a block of
    `held` has to come to its end first, that time begins with its end. A later SIGTERM does
    nothing: clusters repeat it.

    A last push to a store that takes longer is cut off, as when the machine is lost: the store
    holds what can be gone on from all the same (`places`).

    Python handles a signal when its main thread runs Python again. Where that is in a long call, as
    of a compiler, and not in a block of `held`, a thread ends the process after the same time.
    """

    def __init__(self):
        self.held, self.noted = False, 0
        self._since, self._before, self._timer = math.inf, {}, None
        self._signals: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> None:
        global _current
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
            self._signals = socket.socketpair()
            self._signals[1].setblocking(False)
            signal.set_wakeup_fd(self._signals[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._signals[0],), daemon=True).start()
            _current = self

    def __exit__(self, *error) -> None:
        global _current
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self._signals is not None:
            signal.set_wakeup_fd(-1)
            self._signals[1].close()  # ends the thread that watches
        if self._timer is not None:
            self._timer.cancel()
        _current = None

    def _watch(self, signals: socket.socket) -> None:
        """Ends the process for a signal that the main thread has not handled in LONGEST_END."""
        with signals:
            while numbers := signals.recv(1):
                if numbers[0] in self._before:
                    time.sleep(LONGEST_END)
                    if self._since == math.inf and not self.held and _current is self:
                        leave(128 + numbers[0])

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """Raises Stopped, but not where Python would ignore it: then a moment later."""
        if self._since < math.inf:
            if number == signal.SIGINT and time.monotonic() - self._since > SAME_PRESS:
                leave(128 + number)
            return
        while frame is not None and not self.held:
            if frame.f_code.co_name in ('_xla_gc_callback', '__del__'):
                threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
                return
            frame = frame.f_back
        if self.held:
            self.take(number)
            if number == signal.SIGINT:
                self._later(NOTICE, lambda: print(f'\n{WAITING}', file=sys.stderr, flush=True))
        else:
            self._since = time.monotonic()
            self.leave_later(number)
            raise Stopped(number)

    def take(self, number: int) -> None:
        """Notes a signal in a block of `held`."""
        self.noted, self._since = number, min(self._since, time.monotonic())

    def leave_later(self, number: int) -> None:
        """Ends the process in LONGEST_END, if it has not ended by then."""
        self._later(LONGEST_END, lambda: leave(128 + number))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, action)
        self._timer.daemon = True
        self._timer.start()


_current: Interrupts | None = None


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block that is not interrupted, but asks by `asked` where it can stop; stops at its end."""
    interrupts = _current or Interrupts()
    interrupts.held = True
    try:
        yield
    finally:
        interrupts.held = False
        if interrupts.noted:
            interrupts.leave_later(interrupts.noted)
    if interrupts.noted:
        raise Stopped(interrupts.noted)


def ask(number: int) -> None:
    """Asks as a signal would that another process got; this one's own then comes too late."""
    if _current is not None and _current.noted == 0:
        _current.take(number)


def asked() -> int:
    """The signal for which the block of `held` should stop, 0 where there is none."""
    return _current.noted if _current else 0


def leave(code: int) -> None:
    """Ends the process here and now.

    A device may still be computing, and Python's own end takes XLA away from under it: after a
    stop in the middle it crashed one time in five.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
