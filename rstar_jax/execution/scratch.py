"""The scratch folder of a worker: its size, emptying it, removing it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

_ENTRIES = 1000


def too_big(folder: str, bound: float) -> bool:
    """Whether the files in a folder are too many or hold more than `bound` bytes."""
    total = entries = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as scan:
                for entry in scan:
                    entries += 1
                    total += entry.stat(follow_symlinks=False).st_size
                    if total > bound or entries > _ENTRIES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue
    return False


def empty(folder: str) -> None:
    """Delete what is in a folder, however deep and whatever its permissions."""
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)


def remove(folder: str) -> None:
    """Delete a folder with what is in it."""
    empty(folder)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _remove(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):  # no permission, or deeper than Python recurses
        tools = {'PATH': '/usr/bin:/bin'}
        for command in (['chmod', '-R', 'u+rwx', folder], ['rm', '-rf', folder]):
            subprocess.run(command, check=False, env=tools, stderr=subprocess.DEVNULL)
