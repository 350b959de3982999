"""A process that is told to end does so in time, even out of a long call."""

import signal
import subprocess
import sys
import time

from tests.parallel import processes

# Key derivation computes in C for minutes, and lets other threads run meanwhile.
PROGRAM = """
import hashlib
from rstar_jax import interrupts, main

interrupts.LONGEST_END = 1.0

def run():
    print('begins', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)
    return 0

main.leave(main.guarded(run))
"""


def test_sigterm_ends_a_process_in_a_call_that_does_not_return():
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM],
        cwd=processes.REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == 'begins\n'
        process.send_signal(signal.SIGTERM)
        since = time.monotonic()
        assert process.wait(timeout=60) == 143
        assert time.monotonic() - since < 30
    finally:
        process.kill()
        process.stdout.close()
