"""Files that are whole or absent: written beside, flushed to the disk, renamed.

A process killed at any moment, or a machine that loses power, leaves the old file or the new one,
never half of either. What says that a whole folder is complete is removed before the folder changes
(`sync` makes that last), and written after `sync_all`. Locks keep two processes from writing into
one folder.
"""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import weakref
from collections.abc import Iterator
from typing import IO, Any

# With the ending '.part' no pattern for finished files (`*.array_record`) matches these names.
TEMPORARY = '.writing-'
STALE_SECONDS = 60.0  # in which a shared disk has told all machines that a file is there, or gone


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do that, as SMB with folders
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: pathlib.Path) -> None:
    """Flushes the files in a folder, and their names, to the disk."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, tag: str = '') -> Iterator[pathlib.Path]:
    """Gives a temporary path that becomes `path`, durably, when the block ends without an error.

    `tag` goes into the temporary name, so that leftovers of a killed process can be told apart. In
    containers processes of several hosts have one number, hence random characters.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f'{TEMPORARY}{tag}{secrets.token_hex(8)}-{path.name}.part'
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


_by_name: weakref.WeakKeyDictionary[IO[str], Any] = weakref.WeakKeyDictionary()


def lock(file: IO[str]) -> bool:
    """Takes the lock of an open file for this process; False if another one has it.

    On a file system without locks, such as NFS without its daemon, a file beside it, named as by
    `owner`, tells who has it: it stays when that machine is lost, and is deleted by hand then.
    """
    import fcntl

    import filelock

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        named = filelock.SoftFileLock(owner(file.name), timeout=0)
        try:
            named.acquire()
        except filelock.Timeout:
            return False
        _by_name[file] = named
    return True


def owner(path: str | os.PathLike) -> pathlib.Path:
    """The file that stands for the lock of `path` on a file system without locks."""
    return pathlib.Path(f'{os.fspath(path)}.owner')


def unlock(file: IO[str]) -> None:
    """Lets go of the lock, and closes the file."""
    import fcntl

    if file in _by_name:
        _by_name.pop(file).release()
    # A process that is being started just now has the file open, too.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(
    path: str | os.PathLike, value: Any, indent: int | None = None, *, ensure_ascii: bool = True
) -> None:
    """Writes one JSON value and a line's end; indent, ensure_ascii: as of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=ensure_ascii) + '\n')
