"""Cheap forks of a warm interpreter: no handlers, few pages to copy.

What a fork costs here is page faults: a page that the child writes to (reference counts, mostly)
is copied. os.fork runs the interpreter's handlers for threads, which touch 200 pages that a
process of one thread never needed; and small pages take longer to copy the tables of than large.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_HUGE = 2 << 20


def raw_fork() -> Callable[[], int]:
    """The C library's fork without the interpreter's handlers; for processes of one thread only.

    The interpreter's lock stays held (PyDLL), thread identifiers stay valid in the child, and the
    random module keeps its state (os.fork would seed it anew).
    """
    fork = ctypes.PyDLL(None, use_errno=True).fork

    def call() -> int:
        pid = fork()
        if pid < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return pid

    return call


def settle() -> None:
    """Before the first fork: nothing to collect, and the heap in large pages (Linux 6.1 on)."""
    gc.collect()
    gc.freeze()
    if not sys.platform.startswith('linux'):
        return
    libc = ctypes.CDLL(None)
    with open('/proc/self/maps', encoding='ascii', errors='replace') as file:
        lines = file.read().splitlines()
    for line in lines:
        addresses, permissions, _, _, _, *name = line.split(None, 5)
        if not permissions.startswith('rw') or name not in ([], ['[heap]']):
            continue
        low, high = (int(part, 16) for part in addresses.split('-'))
        low, high = -(-low // _HUGE) * _HUGE, high // _HUGE * _HUGE
        for start in range(low, high, _HUGE):
            place, size = ctypes.c_void_p(start), ctypes.c_size_t(_HUGE)
            libc.madvise(place, size, _MADV_HUGEPAGE)
            libc.madvise(place, size, _MADV_COLLAPSE)
