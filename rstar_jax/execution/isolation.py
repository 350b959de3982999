"""What keeps a child inside: the layers, each used where the kernel has it."""

from __future__ import annotations

import math
import os
import resource
import signal

LAYERS: tuple[str, ...] = ('limits', 'empty environment', 'scratch folder')


def enter_namespaces() -> list[str]:
    """Put this process's future children into namespaces of their own; the names of those made."""
    return []


class Cage:
    """The restrictions that every child of a zygote puts on itself."""

    def __init__(self, scratch: str, namespaces: list[str], isolation: str) -> None:
        self.missing: list[str] = []
        self.layers = [*LAYERS, *namespaces]
        self.base_bytes = _address_space()

    def close_in(self) -> None:
        """What holds for a child's whole life; before any job is read."""

    def limit(self, limits: dict, whole_life: bool) -> None:
        """Resource limits of one job (of every job, where the child serves several)."""
        seconds = math.ceil(limits['seconds']) + 1
        if whole_life:
            _limit(resource.RLIMIT_CPU, seconds)
        if self.base_bytes:
            _limit(resource.RLIMIT_AS, self.base_bytes + int(limits['memory_mb'] * 2**20))
        _limit(resource.RLIMIT_FSIZE, int(limits['scratch_mb'] * 2**20))
        _limit(resource.RLIMIT_NOFILE, int(limits['open_files']))
        _limit(resource.RLIMIT_CORE, 0)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def sweep(self) -> None:
        """Kill whatever a child left behind."""


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """Bytes of address space of this process (Linux; 0 where unknown)."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0
