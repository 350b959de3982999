"""A seccomp filter by ctypes: the system calls that computing needs, and no others.

What is not on the list fails with EPERM: sockets, processes and threads, signals to anyone, exec,
ptrace, mounts, namespaces, keys, io_uring, bpf, shared memory. x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# name: (x86-64, arm64), from the kernel's headers; -1: not there.
CALLS: dict[str, tuple[int, int]] = {
    # open files
    'read': (0, 63), 'write': (1, 64), 'readv': (19, 65), 'writev': (20, 66),
    'pread64': (17, 67), 'pwrite64': (18, 68), 'lseek': (8, 62), 'close': (3, 57),
    'close_range': (436, 436), 'dup': (32, 23), 'dup2': (33, -1), 'dup3': (292, 24),
    'fstat': (5, 80), 'ftruncate': (77, 46), 'fsync': (74, 82), 'fdatasync': (75, 83),
    'fadvise64': (221, 223), 'pipe': (22, -1), 'pipe2': (293, 59),
    'poll': (7, -1), 'ppoll': (271, 73), 'select': (23, -1), 'pselect6': (270, 72),
    # paths
    'newfstatat': (262, 79), 'stat': (4, -1), 'lstat': (6, -1), 'statx': (332, 291),
    'access': (21, -1), 'faccessat': (269, 48), 'faccessat2': (439, 439), 'open': (2, -1),
    'openat': (257, 56), 'getdents64': (217, 61), 'getcwd': (79, 17), 'chdir': (80, 49),
    'readlink': (89, -1), 'readlinkat': (267, 78), 'unlink': (87, -1), 'unlinkat': (263, 35),
    'rename': (82, -1), 'renameat': (264, 38), 'renameat2': (316, 276), 'umask': (95, 166),
    # memory
    'mmap': (9, 222), 'munmap': (11, 215), 'mprotect': (10, 226), 'mremap': (25, 216),
    'madvise': (28, 233), 'brk': (12, 214), 'mincore': (27, 232), 'msync': (26, 227),
    # own signals and time
    'rt_sigaction': (13, 134), 'rt_sigprocmask': (14, 135), 'rt_sigreturn': (15, 139),
    'rt_sigpending': (127, 136), 'rt_sigsuspend': (130, 133), 'sigaltstack': (131, 132),
    'alarm': (37, -1), 'setitimer': (38, 103), 'getitimer': (36, 102), 'pause': (34, -1),
    'nanosleep': (35, 101), 'clock_nanosleep': (230, 115), 'clock_gettime': (228, 113),
    'clock_getres': (229, 114), 'gettimeofday': (96, 169), 'time': (201, -1),
    'restart_syscall': (219, 128),
    # about oneself
    'getpid': (39, 172), 'getppid': (110, 173), 'gettid': (186, 178), 'getuid': (102, 174),
    'geteuid': (107, 175), 'getgid': (104, 176), 'getegid': (108, 177), 'getgroups': (115, 158),
    'getresuid': (118, 148), 'getresgid': (120, 150), 'getpgrp': (111, -1), 'getpgid': (121, 155),
    'getsid': (124, 156), 'uname': (63, 160), 'sysinfo': (99, 179), 'getrusage': (98, 165),
    'times': (100, 153), 'getrlimit': (97, 163), 'getcpu': (309, 168), 'sched_yield': (24, 124),
    'sched_getaffinity': (204, 123), 'getpriority': (140, 141), 'futex': (202, 98),
    'set_robust_list': (273, 99), 'rseq': (334, 293), 'set_tid_address': (218, 96),
    'arch_prctl': (158, -1), 'getrandom': (318, 278), 'membarrier': (324, 283),
    'exit': (60, 93), 'exit_group': (231, 94),
}  # fmt: skip
# Calls allowed only with these values of one argument: name -> numbers, argument, values.
BY_ARGUMENT = (
    ((16, 29), 1, (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)),  # ioctl: isatty, size, flags
    ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # fcntl: duplicates and flags; no owners, no leases
    ((302, 261), 2, (0,)),  # prlimit64: reading only
)
_TRUNCATE = (76, 45)
# open and openat, where in their arguments the flags are.
_OPENS = (((2, -1), 1), ((257, 56), 2))
_ACCESS_OR_TRUNCATE, _O_TRUNC = 0x203, 0x200
_CLONE3 = 435
_ARCHITECTURES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}
_SECCOMP = (317, 277)
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_SPEC_ALLOW = 1 << 2  # no slower branch prediction: the child holds no secrets
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_char_p)]


def supported() -> bool:
    """Whether there is a table for this machine."""
    return sys.platform.startswith('linux') and platform.machine() in _ARCHITECTURES


class Filter:
    """The assembled filter; `enforce` puts it on this thread for good (needs no_new_privs).

    Args:
      truncating: whether files may be emptied that are not open for writing; only where something
        else says which.
    """

    def __init__(self, truncating: bool) -> None:
        self._column, architecture = _ARCHITECTURES[platform.machine()]
        self._bytes = assemble(self._column, architecture, truncating)
        self._program = _Program(len(self._bytes) // 8, self._bytes)

    def enforce(self) -> None:
        """Raises OSError where the kernel refuses."""
        call, program = _SECCOMP[self._column], ctypes.byref(self._program)
        if _libc.syscall(call, 1, _SPEC_ALLOW, program) and _libc.prctl(22, 2, program, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def assemble(column: int, architecture: int, truncating: bool) -> bytes:
    """Classic BPF: architecture, then each call of the lists, EPERM at the end.

    Args:
      column: of the number tables.
      architecture: AUDIT_ARCH_* constant; another one (32-bit calls) ends the process.
      truncating: as of Filter.
    """
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if column == 0:  # the x32 numbers
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, KILL)]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for numbers, argument, values in BY_ARGUMENT:
        low = _ARGUMENTS + 8 * argument
        # Both halves of the argument: the upper one must be 0 (the kernel ignores it in commands,
        # but a pointer is 64 bits wide).
        body = [(_LOAD, 0, 0, low + 4), (_EQUAL, 0, len(values) + 1, 0), (_LOAD, 0, 0, low)]
        for index, value in enumerate(values):
            body.append((_EQUAL, len(values) - index, 0, value))
        body += [(_RETURN, 0, 0, ERRNO | errno.EPERM), (_RETURN, 0, 0, ALLOW)]
        code += [(_EQUAL, 0, len(body), numbers[column]), *body]
    if truncating:
        code += [(_EQUAL, 0, 1, _TRUNCATE[column]), (_RETURN, 0, 0, ALLOW)]
    else:  # nor by opening with O_TRUNC, but for what Landlock takes for writing: modes 1 and 2
        for numbers, argument in _OPENS:
            body = [
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_AND, 0, 0, _ACCESS_OR_TRUNCATE),
                (_EQUAL, 1, 0, _O_TRUNC),
                (_EQUAL, 0, 1, _ACCESS_OR_TRUNCATE),
                (_RETURN, 0, 0, ERRNO | errno.EPERM),
                (_RETURN, 0, 0, ALLOW),
            ]
            if numbers[column] >= 0:
                code += [(_EQUAL, 0, len(body), numbers[column]), *body]
    allowed = sorted(pair[column] for pair in CALLS.values() if pair[column] >= 0)
    for number in allowed:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, ALLOW)]
    code.append((_RETURN, 0, 0, ERRNO | errno.EPERM))
    return b''.join(struct.pack('=HBBI', *line) for line in code)
