"""Who writes to a workdir in an object store: one run alone.

A file there, CLAIM, names the run and counts on every BEAT seconds. Clocks of machines are not
compared: whoever finds the file watches it for LOST seconds. If it changes, a run lives; else that
run's machine was lost, and the file is taken over. A run that was taken for lost, as a machine that
slept, writes nothing more.
"""

import contextlib
import json
import pathlib
import secrets
import socket
import threading
import time
from typing import Any

from rstar_jax.job import ledger
from rstar_jax.settings.errors import Later, UserError, one_line

CLAIM = '.in_use.json'
BEAT = 20.0
LOST = 60.0


class Claim:
    """Of one run.

    Args:
      store: fsspec's, with the workdir at `root` of it.
      url: of the workdir, for messages.
      folder: of this machine, locked by this run; keeps the run's number.
    """

    def __init__(self, store: Any, root: str, url: str, folder: pathlib.Path):
        self._store, self._path, self._url = store, f'{root}/{CLAIM}', url
        self._own = folder / CLAIM
        self._claim = {'host': socket.gethostname(), 'number': secrets.randbelow(2**53), 'beat': 0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name='claim', daemon=True)
        self._taken = ''  # the host that has taken the workdir over

    def take(self) -> None:
        """Returns when the workdir is this run's.

        Raises:
          Later: another run works on it.
          UserError: the store cannot be read or written.
        """
        theirs, mine = self._read(), ledger.read_json(self._own)
        # Of a run that was killed here: this one holds the folder's lock.
        if theirs and not (mine and mine['number'] == theirs['number']):
            self._watch(theirs)
        self._own.parent.mkdir(parents=True, exist_ok=True)
        ledger.write_json(self._own, self._claim)
        self._write()
        self._thread.start()

    def check(self) -> None:
        """Raises UserError where another run has taken the workdir over: before each push."""
        with contextlib.suppress(UserError):  # the store is away: the push will tell
            self._is_mine()
        if self._taken:
            raise UserError(
                f'--workdir={self._url}: a run on {self._taken} has taken it over, as this one was '
                f'silent for {LOST:.0f} s'
            )

    def release(self) -> None:
        """Gives the workdir back."""
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # else the next run waits until it is lost
            if self._is_mine():
                self._store.rm_file(self._path)

    def _watch(self, theirs: dict[str, Any]) -> None:
        host = theirs['host']
        print(
            f'--workdir={self._url}: a run on {host} works on it, or did so until it was lost: '
            f'that is known in {LOST:.0f} s',
            flush=True,
        )
        end = time.monotonic() + LOST
        while time.monotonic() < end:
            time.sleep(BEAT / 10)
            now = self._read()
            if now is None:
                return
            if now != theirs:
                raise Later(
                    f'--workdir={self._url}: a run on {host} works on it: wait for it, or use '
                    'another one'
                )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if not self._is_mine():
                    return
                self._claim['beat'] += 1
                self._write()
            except UserError:  # the store is away for a while
                continue

    def _is_mine(self) -> bool:
        there = self._read()
        if there is not None and there['number'] != self._claim['number']:
            self._taken = there['host']
        return not self._taken

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._store.cat_file(self._path))
        except FileNotFoundError:
            return None
        except Exception as error:  # each store has errors of its own
            raise UserError(f'--workdir={self._url}: cannot be read ({one_line(error)})') from None

    def _write(self) -> None:
        try:
            self._store.pipe_file(self._path, json.dumps(self._claim).encode())
        except Exception as error:
            raise UserError(
                f'--workdir={self._url}: cannot be written ({one_line(error)})'
            ) from None
