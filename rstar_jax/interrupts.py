"""How a command ends before its time: by Ctrl-C, and without Python's own end."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
import types

# Seconds in which a second interrupt is taken for the first: a terminal's and a parent's both come.
SAME_PRESS = 1.0
LONGEST_END = 60.0  # seconds from an interrupt to the end of the process, whatever hangs


class Interrupts:
    """How Ctrl-C is handled in the block: the first ends the run in order.

    A later one ends the process at once, and so does the end of LONGEST_END.
    """

    def __init__(self):
        self._since, self._before, self._timer = math.inf, None, None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *error) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """Raises KeyboardInterrupt, but not where Python would ignore it: then a moment later."""
        if time.monotonic() - self._since > SAME_PRESS:
            leave(130)
        if self._since < math.inf:
            return
        while frame is not None:
            if frame.f_code.co_name in ('_xla_gc_callback', '__del__'):
                threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
                return
            frame = frame.f_back
        self._since = time.monotonic()
        self._timer = threading.Timer(LONGEST_END, leave, (130,))
        self._timer.daemon = True
        self._timer.start()
        raise KeyboardInterrupt


def leave(code: int) -> None:
    """Ends the process here and now.

    A device may still be computing, and Python's own end takes XLA away from under it: after a
    stop in the middle it crashed one time in five.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
