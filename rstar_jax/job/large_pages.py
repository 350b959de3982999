"""Large pages for what XLA computes in on CPUs.

Its scratch memory comes and goes with each step, page by page; with large ones there are fewer page
faults. Whether to ask for them the C library decides as a process starts.
"""

import os
import sys

TUNABLES = 'GLIBC_TUNABLES'  # a variable that glibc reads


def take_large() -> None:
    """Begins this process's program anew with large pages, unless the variable is set (Linux)."""
    if sys.platform == 'linux' and sys.executable and TUNABLES not in os.environ:
        os.environ[TUNABLES] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, sys.orig_argv)
