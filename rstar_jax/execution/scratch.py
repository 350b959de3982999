"""Scratch folders: one of each worker, in one of the main process that others may sweep."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile

_ENTRIES = 1000
_PREFIX = 'rstar-scratch-'


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


def make_base() -> str:
    """A folder for those of this process's workers."""
    return tempfile.mkdtemp(prefix=f'{prefix()}{os.getpid()}-')


def prefix() -> str:
    """Of the folders of this host and container: others may share the folder, not process ids."""
    place = socket.gethostname()
    with contextlib.suppress(OSError):
        place += f'/{os.stat("/proc/self/ns/pid").st_ino}'
    return f'{_PREFIX}{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}-'


def remove_stale() -> None:
    """Scratch folders of main processes here that died with their workers at once."""
    folder, mine = tempfile.gettempdir(), prefix()
    for name in os.listdir(folder):
        if name.startswith(mine):
            owner = name.removeprefix(mine).split('-')[0]
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
