"""Landlock by ctypes: folders that may be read, one scratch folder, nothing else.

Numbers from linux/landlock.h; the system calls are the same on every architecture. The packages
that wrap Landlock are young or development releases, and all that is needed is here.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_FILE_RIGHTS = (1 << 0) | WRITE_FILE | READ_FILE | TRUNCATE | (1 << 15)
READ = READ_FILE | READ_DIR
SCRATCH = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE  # no folders, links, sockets, pipes
TRUNCATES = 3  # the first version that says which files may be truncated
# Rights that each version of the interface knows: the bits below.
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_ALL, _SCOPE_ALL = 0b11, 0b11
_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Version of the kernel's Landlock interface; 0 where there is none."""
    if not sys.platform.startswith('linux'):
        return 0
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))


class Ruleset:
    """Everything that Landlock can deny is denied, but for the paths given.

    Args:
      rules: path -> rights; paths that do not exist are left out.

    Raises:
      OSError: the kernel refuses.
    """

    def __init__(self, rules: dict[str, int]) -> None:
        self.version = version()
        if not self.version:
            raise OSError('no Landlock in this kernel')
        handled = (1 << _FS_BITS.get(self.version, 16)) - 1
        attributes = struct.pack('=QQQ', handled, _NET_ALL, _SCOPE_ALL)
        size = 8 if self.version < 4 else 16 if self.version < 6 else 24
        self.fd = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
        for path, rights in rules.items():
            try:
                target = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            rights &= handled if os.path.isdir(path) else handled & _FILE_RIGHTS
            rule = struct.pack('=Qi', rights, target)
            try:
                _checked(_libc.syscall(_ADD_RULE, self.fd, _PATH_BENEATH, rule, 0))
            finally:
                os.close(target)

    def enforce(self) -> None:
        """From here on, for this thread and its children; needs no_new_privs."""
        _checked(_libc.syscall(_RESTRICT_SELF, self.fd, 0))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
