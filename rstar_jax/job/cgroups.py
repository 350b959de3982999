"""The control groups that bound this process: a container's, a job's (Linux)."""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Iterator

CGROUPS, OWN = pathlib.Path('/sys/fs/cgroup'), pathlib.Path('/proc/self/cgroup')


def folders(controller: str) -> Iterator[tuple[int, pathlib.Path]]:
    """(version of the interface, folder) of the groups that may bound what a controller deals out.

    In a container its own group may lie at the root of what is seen of them.
    """
    lines = OWN.read_text(encoding='utf-8').splitlines() if OWN.exists() else []
    for _, controllers, path in (line.split(':', 2) for line in lines):
        if controllers and controller not in controllers.split(','):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        group = root / path.strip('/')
        for folder in {root, group, *(p for p in group.parents if root in p.parents)}:
            yield 1 if controllers else 2, folder


def processors() -> float:
    """Processors whose time the groups allow, such as 2.5; infinity where none bounds it."""
    least = math.inf
    for version, folder in folders('cpu'):
        # No such group, or one without a limit ('max', -1).
        with contextlib.suppress(OSError, ValueError):
            if version == 2:
                quota, period = (folder / 'cpu.max').read_text().split()
            else:
                names = ('cpu.cfs_quota_us', 'cpu.cfs_period_us')
                quota, period = ((folder / name).read_text() for name in names)
            if int(quota) > 0:
                least = min(least, int(quota) / int(period))
    return least
