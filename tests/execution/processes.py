"""What the tests of this folder ask about processes, and the folders that they work in."""

import glob
import os
import subprocess
import tempfile


def family(pid):
    """All descendants of a process, by pid."""
    found, todo = [], [pid]
    while todo:
        out = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(todo.pop())], capture_output=True)
        mine = [int(line) for line in out.stdout.split()]
        mine = [one for one in mine if alive(one)]
        found += mine
        todo += mine
    return found


def alive(pid):
    """Whether a process runs: a zombie does not."""
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def folders():
    """The scratch folders of this process's pools, each with one for each worker."""
    return set(glob.glob(f'{tempfile.gettempdir()}/rstar-scratch-*-{os.getpid()}-*'))
