"""A process that is told to end does so in time, even out of a long call."""

import signal
import subprocess
import sys
import time

import pytest

from rstar_jax.job import interrupts
from tests.parallel import processes

# Key derivation computes in C for minutes, and lets other threads run meanwhile.
PROGRAM = """
import hashlib
from rstar_jax.job import command, interrupts

interrupts.LONGEST_END = 1.0

def run():
    print('begins', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)
    return 0

interrupts.leave(command.guarded(run))
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


@pytest.mark.parametrize('how', ['at its end', 'by itself', 'for another'])
def test_what_follows_a_held_block_ends_in_time_and_is_not_stopped_again(monkeypatch, how):
    """The block stops at its end or where it is asked, by its own signal or another process's."""
    left = []
    monkeypatch.setattr(interrupts, 'LONGEST_END', 0.05)
    monkeypatch.setattr(interrupts, 'leave', left.append)
    with interrupts.Interrupts():
        with pytest.raises(interrupts.Stopped), interrupts.held():
            if how == 'for another':
                interrupts.ask(signal.SIGTERM)
            else:
                signal.raise_signal(signal.SIGTERM)
            time.sleep(0.1)
            assert not left  # what the block saves is saved, however long it takes
            assert interrupts.asked() == signal.SIGTERM
            if how != 'at its end':
                raise interrupts.Stopped(interrupts.asked())
        signal.raise_signal(signal.SIGTERM)  # clusters repeat it, and another's end sends it
        time.sleep(0.15)
        assert left == [143]
