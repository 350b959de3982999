# ruff: noqa: E501
"""Programs that try to get out, each with how a failed attempt shows.

An attack prints `BROKE OUT` exactly when it got what it wanted; whatever else it says, however it
ends, it failed. `{secret}` is a file outside of the sandbox, `{outside}` a folder there that exists
and may be written by the test's user, `{parent}` the main process, `{sibling}` another worker.
"""

from __future__ import annotations

import pathlib
import textwrap

HOME = str(pathlib.Path.home())

_TRY = """
import os, sys, ctypes
def attempt(call, worked=lambda value: True):
    try:
        value = call()
    except BaseException as error:
        print('stopped:', type(error).__name__, str(error)[:80])
        return
    print('BROKE OUT' if worked(value) else 'nothing')
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

ATTACKS: dict[str, str] = {}


def add(name: str, code: str) -> None:
    assert name not in ATTACKS, name
    ATTACKS[name] = _TRY + textwrap.dedent(code)


# Reading what is not theirs ---------------------------------------------------------------------
for _name, _path in {
    'secret': '{secret}',
    'shadow': '/etc/shadow',
    'passwd': '/etc/passwd',
    'own environ': '/proc/self/environ',
    'thread environ': '/proc/thread-self/environ',
    'first process environ': '/proc/1/environ',
    'parent environ': '/proc/{parent}/environ',
    'parent command line': '/proc/{parent}/cmdline',
    'parent memory map': '/proc/{parent}/maps',
    'own memory map': '/proc/self/maps',
    'own memory': '/proc/self/mem',
    'sibling memory': '/proc/{sibling}/mem',
    'kernel log': '/proc/kmsg',
    'mounts': '/proc/self/mounts',
    'hosts': '/etc/hosts',
    'machine id': '/etc/machine-id',
    'root device': '/dev/vda',
    'memory device': '/dev/mem',
    'terminal': '/dev/tty',
    'ssh key': f'{HOME}/.ssh/id_rsa',
    'shell history': f'{HOME}/.bash_history',
    'dotted path': '../../../../../../../../{secret}',
    'path through proc root': '/proc/self/root{secret}',
    'path through proc cwd': '/proc/self/cwd/../../../../../../{secret}',
    'path through parent root': '/proc/{parent}/root{secret}',
    'descriptor 0 through proc': '/proc/self/fd/1',
    'kernel symbols': '/sys/kernel/debug/kprobes/list',
}.items():
    add(f'read {_name}', f'attempt(lambda: open({_path!r}, "rb").read(1))')

add('list home', f'attempt(lambda: os.listdir({HOME!r}))')
add('list root', 'attempt(lambda: os.listdir("/"))')
add('list tmp', 'attempt(lambda: os.listdir("/tmp"))')
add('list proc', 'attempt(lambda: os.listdir("/proc"))')
add('list outside', 'attempt(lambda: os.listdir("{outside}"))')
add('walk up from scratch', 'attempt(lambda: os.listdir(".."))')
add('read with openat', 'attempt(lambda: os.read(os.open("{secret}", os.O_RDONLY), 9))')
add(
    'read with folder descriptor',
    'attempt(lambda: os.open("{secret}"[1:], os.O_RDONLY, dir_fd=os.open("/", os.O_PATH)))',
)
add(
    'read with open_by_handle',
    """
    attempt(lambda: syscall(304, -100, ctypes.create_string_buffer(64), os.O_RDONLY))
    """,
)
add(
    'read by mmap',
    """
    import mmap
    attempt(lambda: mmap.mmap(os.open("{secret}", os.O_RDONLY), 0, prot=mmap.PROT_READ)[:1])
    """,
)
add('read by numpy', 'import numpy\nattempt(lambda: numpy.fromfile("{secret}", dtype="u1"))')
add('read by linecache', 'import linecache\nattempt(lambda: linecache.getlines("{secret}"), bool)')
add(
    'read by C fopen',
    """
    libc.fopen.restype = ctypes.c_void_p
    attempt(lambda: libc.fopen(b"{secret}", b"r"), bool)
    """,
)
add('read by sendfile', 'attempt(lambda: os.sendfile(1, os.open("{secret}", os.O_RDONLY), 0, 9))')
add('environment is empty', 'attempt(lambda: os.environ.get("RSTAR_TEST_SECRET"), bool)')
add(
    'environment in C',
    """
    libc.getenv.restype = ctypes.c_char_p
    attempt(lambda: libc.getenv(b"RSTAR_TEST_SECRET"), bool)
    """,
)
add(
    'environment on the stack',
    """
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')
    def search():
        index = 0
        while environ[index]:
            if b'RSTAR_TEST_SECRET' in environ[index]:
                return True
            index += 1
        return False
    attempt(search, bool)
    """,
)
add('secret in the heap', 'import gc\nattempt(lambda: any("tell-tale" + "-heart" in str(o)[:4096] '
    'for o in gc.get_objects() if isinstance(o, (list, dict)) and len(o) < 50), bool)')  # fmt: skip

# Links and special files ------------------------------------------------------------------------
add('symbolic link to secret', 'attempt(lambda: (os.symlink("{secret}", "l"), open("l").read()))')
add('hard link to secret', 'attempt(lambda: os.link("{secret}", "l"))')
add('link to proc', 'attempt(lambda: (os.symlink("/proc/1/environ", "l"), open("l").read()))')
add('make a folder', 'attempt(lambda: os.mkdir("folder"))')
add('make a pipe file', 'attempt(lambda: os.mkfifo("pipe"))')
add('make a device', 'import stat\nattempt(lambda: os.mknod("d", stat.S_IFBLK | 0o600, 0xFE00))')
add(
    'rename out of scratch',
    'open("f", "w").close()\nattempt(lambda: os.rename("f", "{outside}/f"))',
)
add('rename into scratch', 'attempt(lambda: os.rename("{secret}", "s"))')
add('change root', 'attempt(lambda: os.chroot("."))')
add('leave by chdir', 'os.chdir("/")\nattempt(lambda: os.listdir("."))')
add('mount', 'attempt(lambda: syscall(165, b"none", b".", b"tmpfs", 0, None))')
add('pivot root', 'attempt(lambda: syscall(155, b".", b"."))')
add('new user namespace', 'attempt(lambda: syscall(272, 0x10000000))')
add('join namespace', 'attempt(lambda: syscall(308, 0, 0))')

# Writing outside --------------------------------------------------------------------------------
add('write outside', 'attempt(lambda: open("{outside}/new", "w"))')
add('write over secret', 'attempt(lambda: open("{secret}", "w"))')
add('append to secret', 'attempt(lambda: open("{secret}", "a"))')
add('truncate secret', 'attempt(lambda: os.truncate("{secret}", 0))')
add('delete secret', 'attempt(lambda: os.remove("{secret}"))')
add('delete folder', 'attempt(lambda: os.rmdir("{outside}"))')
add('delete tree', 'import shutil\nattempt(lambda: shutil.rmtree("{outside}"))')
add('change mode', 'attempt(lambda: os.chmod("{secret}", 0o777))')
add('change owner', 'attempt(lambda: os.chown("{secret}", 0, 0))')
add('change times', 'attempt(lambda: os.utime("{secret}", (1, 1)))')
add('set attribute', 'attempt(lambda: os.setxattr("{secret}", "user.x", b"1"))')
add('write tmp', 'attempt(lambda: open("/tmp/rstar-attack", "w"))')
add('write shared memory', 'attempt(lambda: open("/dev/shm/rstar-attack", "w"))')
add('write package', 'import sympy\nattempt(lambda: open(sympy.__file__, "a"))')
add('write interpreter', 'attempt(lambda: open(os.path.realpath(sys.executable), "ab"))')
add(
    'write bytecode',
    'import numpy\nattempt(lambda: open(os.path.dirname(numpy.__file__) + "/x.pyc", "w"))',
)
add('write kernel setting', 'attempt(lambda: open("/proc/sys/kernel/core_pattern", "w"))')
add('oom score', 'attempt(lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))')
add(
    'named shared memory',
    """
    from multiprocessing import shared_memory
    attempt(lambda: shared_memory.SharedMemory("rstar-attack", create=True, size=4096))
    """,
)

# Network ----------------------------------------------------------------------------------------
for _family in ('AF_INET', 'AF_INET6', 'AF_UNIX', 'AF_NETLINK', 'AF_PACKET', 'AF_VSOCK'):
    for _kind in ('SOCK_STREAM', 'SOCK_DGRAM'):
        if _family in ('AF_NETLINK', 'AF_PACKET') and _kind == 'SOCK_STREAM':
            continue
        add(
            f'socket {_family} {_kind}',
            f'import socket\nattempt(lambda: socket.socket(socket.{_family}, socket.{_kind}))',
        )
add(
    'raw socket',
    'import socket\nattempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))',
)
add('socket pair', 'import socket\nattempt(socket.socketpair)')
add('connect', 'import socket\nattempt(lambda: socket.create_connection(("127.0.0.1", {port}), 1))')
add('resolve', 'import socket\nattempt(lambda: socket.getaddrinfo("localhost.example", 80))')
add(
    'web',
    'import urllib.request\nattempt(lambda: urllib.request.urlopen("http://127.0.0.1:{port}"))',
)
add('socket by ctypes', 'attempt(lambda: syscall(41, 2, 1, 0))')
add('socket by 32-bit number', 'attempt(lambda: syscall(0x40000029, 2, 1, 0))')
add('ring of submitted calls', 'attempt(lambda: syscall(425, 8, ctypes.create_string_buffer(120)))')

# Processes --------------------------------------------------------------------------------------
add('fork', 'attempt(os.fork)')
add('fork bomb', 'while True:\n    try: os.fork()\n    except OSError: break\nprint("stopped")')
add('double fork daemon', 'attempt(lambda: (os.fork(), os.setsid(), os.fork()))')
add('vfork', 'attempt(lambda: syscall(58))')
add('clone', 'attempt(lambda: syscall(56, 17, 0, 0, 0, 0))')
add('clone3', 'attempt(lambda: syscall(435, ctypes.create_string_buffer(88), 88))')
add('shell', 'attempt(lambda: os.system("true"), lambda status: status == 0)')
add('subprocess', 'import subprocess\nattempt(lambda: subprocess.run(["/bin/true"]))')
add('spawn', 'attempt(lambda: os.posix_spawn("/bin/true", ["true"], {}))')
add('exec', 'attempt(lambda: os.execv("/bin/echo", ["echo", "BROKE OUT"]))')
add('exec loader', 'attempt(lambda: os.execv("/lib64/ld-linux-x86-64.so.2", ["ld", "/bin/true"]))')
add('exec from memory', 'attempt(lambda: os.memfd_create("x"))')
add(
    'exec python',
    'attempt(lambda: os.execv(sys.executable, ["python", "-c", "print(\'BROKE OUT\')"]))',
)
add(
    'multiprocessing',
    'import multiprocessing as m\nattempt(lambda: m.Process(target=print).start())',
)
add(
    'process pool',
    """
    from concurrent.futures import ProcessPoolExecutor
    attempt(lambda: ProcessPoolExecutor(1).submit(abs, -1).result(2))
    """,
)
add('thread', 'import threading\nattempt(lambda: threading.Thread(target=print).start())')
add('low level thread', 'import _thread\nattempt(lambda: _thread.start_new_thread(print, ()))')
add('pthread in C', """
    thread = ctypes.c_ulong()
    start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: 0)
    attempt(lambda: libc.pthread_create(ctypes.byref(thread), None, start, None), lambda r: r == 0)
    """)  # fmt: skip

# Signals and tracing ----------------------------------------------------------------------------
for _number in ('SIGKILL', 'SIGTERM', 'SIGSTOP', 'SIGINT'):
    add(
        f'{_number} to the main process',
        f'import signal\nattempt(lambda: os.kill({{parent}}, signal.{_number}))',
    )
add('signal to the zygote', 'attempt(lambda: os.kill(os.getppid(), 9))')
add('signal to process 1', 'attempt(lambda: os.kill(1, 15))')
add('signal to a sibling', 'attempt(lambda: os.kill({sibling}, 9))')
add('signal to all', 'attempt(lambda: os.kill(-1, 9))')
add('signal to the group', 'attempt(lambda: os.killpg(0, 9))')
add('thread signal', 'attempt(lambda: syscall(234, {parent}, {parent}, 9))')
add('queued signal', 'attempt(lambda: syscall(129, {parent}, 9, ctypes.create_string_buffer(128)))')
add('process descriptor', 'attempt(lambda: os.pidfd_open({parent}))')
add(
    'signal by file owner',
    'import fcntl\nr, w = os.pipe()\nattempt(lambda: fcntl.fcntl(r, fcntl.F_SETOWN, {parent}))',
)
add('trace the zygote', 'attempt(lambda: syscall(101, 16, os.getppid(), 0, 0))')
add('trace the main process', 'attempt(lambda: syscall(101, 0x4206, {parent}, 0, 0))')
add('ask to be traced', 'attempt(lambda: syscall(101, 0, 0, 0, 0))')
add('read memory of another', 'attempt(lambda: syscall(310, {parent}, None, 0, None, 0, 0))')
add('write memory of another', 'attempt(lambda: syscall(311, {parent}, None, 0, None, 0, 0))')
add('priority of another', 'attempt(lambda: os.setpriority(os.PRIO_PROCESS, {parent}, 19))')
add(
    'limits of another',
    'import resource\nattempt(lambda: resource.prlimit({parent}, resource.RLIMIT_CPU, (1, 1)))',
)
add(
    'own limits up',
    'import resource\nattempt(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))',
)
add('stop itself', 'import signal\nattempt(lambda: os.kill(os.getpid(), signal.SIGSTOP))')

# System calls that no program needs -------------------------------------------------------------
for _name, _call in {
    'become root': '105, 0', 'set groups': '116, 0, None', 'capabilities': '126, None, None',
    'keyring': '250, 0, -3, 0', 'bpf': '321, 0, None, 0', 'perf events': '298, None, 0, -1, -1, 0',
    'user fault': '323, 0', 'load module': '175, None, 0, b""', 'kexec': '246, 0, 0, None, 0',
    'reboot': '169, 0xfee1dead, 672274793, 0x1234567', 'swap': '167, b"x", 0',
    'set time': '164, None, None', 'host name': '170, b"x", 1', 'io port': '173, 0, 1, 1',
    'accounting': '163, b"x"', 'quota': '179, 0, None, 0, None', 'fanotify': '300, 0, 0',
    'shared memory segment': '29, 0, 4096, 0o1777', 'message queue': '68, 0, 0o1777',
    'semaphore': '64, 0, 1, 0o1777', 'prctl': '157, 1, 0, 0, 0', 'personality': '135, 0',
    'new mount interface': '430, b"tmpfs", 0', 'process madvise': '440, 0, None, 0, 0, 0',
    'steal descriptor': '438, 3, 1, 0', 'secret memory': '447, 0', 'lookup cookie': '212, 0, None, 0',
    'log': '103, 3, ctypes.create_string_buffer(64), 64', 'inotify': '294, 0', 'epoll': '291, 0',
}.items():  # fmt: skip
    add(f'system call: {_name}', f'attempt(lambda: syscall({_call}))')

# Attacks on the limits: (code, what the error must start with) --------------------------------
LIMITS: dict[str, tuple[str, tuple[str, ...]]] = {
    'endless loop': ('while True: pass', ('TimeoutError',)),
    'endless sleep': ('import time\ntime.sleep(10**6)', ('TimeoutError',)),
    'huge power': ('print(10**10**10)', ('TimeoutError', 'MemoryError', 'ValueError')),
    'huge factorial': ('import math\nmath.factorial(10**8)', ('TimeoutError', 'MemoryError')),
    'slow regular expression': (
        'import re\nre.match(r"(a+)+$", "a" * 60 + "b")', ('TimeoutError',)),
    'endless sympy': (
        'import sympy as s\nx = s.symbols("x")\n'
        's.integrate(s.exp(s.sin(x**3)) * s.log(x + s.tan(x)) / (1 + x**7), x)\nwhile 1: pass',
        ('TimeoutError',)),
    'big prime factors': (
        'import sympy\nsympy.factorint((2**521 - 1) * (2**607 - 1))', ('TimeoutError',)),
    'loop that catches everything': (
        'while True:\n    try:\n        while True: pass\n    except BaseException: pass',
        ('TimeoutError',)),
    'ignores signals': (
        'import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n'
        '    except (OSError, ValueError): pass\nwhile True: pass', ('TimeoutError',)),
    'alarm of its own': ('import signal\nsignal.alarm(1)\nwhile True: pass',
                         ('RuntimeError', 'TimeoutError')),
    'memory in a list': ('x = []\nwhile True: x.append(bytearray(10**6))', ('MemoryError',)),
    'memory at once': ('x = bytearray(10**11)', ('MemoryError',)),
    'memory by numpy': ('import numpy\nx = numpy.ones(10**10)',
                        ('MemoryError', '_ArrayMemoryError', 'numpy')),
    'memory by mmap': (
        'import mmap\nk = []\nwhile True:\n    m = mmap.mmap(-1, 2**26)\n    m[::4096] = b"x" * 2**14\n'
        '    k.append(m)', ('OSError', 'MemoryError')),
    'memory by strings': ('s = "x"\nwhile True: s += s', ('MemoryError', 'OverflowError')),
    'disk: one file': ('f = open("f", "wb")\nwhile True: f.write(b"x" * 10**6)\n', ('OSError',)),
    'disk: many files': (
        'n = 0\nwhile True:\n    open(str(n), "wb").write(b"x" * 10**6)\n    n += 1', ('OSError',)),
    'disk: empty files': ('n = 0\nwhile True:\n    open(str(n), "w").close()\n    n += 1',
                          ('OSError',)),
    'disk: sparse file': ('open("f", "wb").truncate(10**13)', ('OSError',)),
    'descriptors': ('k = []\nwhile True: k.append(open("/dev/null"))', ('OSError',)),
    'pipes': ('import os\nk = []\nwhile True: k.append(os.pipe())', ('OSError',)),
    'huge output': ('while True: print("x" * 10**5)', ('OutputError',)),
    'endless small output': ('while True: print("no end")', ('OutputError',)),
    'huge output in one': ('print("x" * 10**8)', ('OutputError',)),
    'output by descriptor': ('import os\nwhile True: os.write(1, b"x" * 10**5)', ('OutputError',)),
    'huge error': ('raise ValueError("x" * 10**8)', ('ValueError: xxx',)),
    'error that hangs': (
        'class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E',
        ('TimeoutError',)),
    'error that fails': (
        'class E(Exception):\n    def __str__(self): raise self\nraise E', ('E: (its message',)),
    'recursion': ('def f(n): return f(n + 1)\nf(0)', ('RecursionError',)),
    'recursion in C': (
        'import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()',
        ('RuntimeError', 'RecursionError', 'MemoryError', 'TimeoutError')),
    'nested source': ('(' * 10**5 + ')' * 10**5, ('SyntaxError', 'MemoryError', 'RecursionError')),
    'segmentation fault': ('import ctypes\nctypes.string_at(0)', ('RuntimeError',)),
    'abort': ('import os\nos.abort()', ('RuntimeError',)),
    'exit code 0': ('import os\nos._exit(0)', ('SystemExit',)),
    'exit code 0 in C': ('import ctypes\nctypes.CDLL(None)._exit(0)', ('SystemExit',)),
    'SystemExit 0': ('raise SystemExit(0)', ('SystemExit',)),
    'system call exit': ('import ctypes\nctypes.CDLL(None).syscall(231, 0)', ('SystemExit',)),
    'closes all descriptors': ('import os\nos.closerange(0, 1000)', ('OSError', 'RuntimeError')),
    'closes stdout': ('import sys\nsys.stdout.close()', ('ValueError', 'OSError')),
    'null byte': ('x = 1\0', ('SyntaxError', 'ValueError')),
}  # fmt: skip
