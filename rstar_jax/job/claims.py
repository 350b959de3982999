"""Who writes to a workdir in an object store: one run alone.

    .in_use/00000001   of the first run that had it
    .in_use/00000002   of the next, and so on: whose number is the greatest has the workdir

Each is made by a conditional create, so of two runs that begin at once one is refused. Its run
counts on in it every BEAT seconds. Clocks of machines are not compared: whoever finds it watches it
for LOST seconds. If it changes, a run lives; else that run's machine was lost, and the next number
is taken. The numbers are never deleted: before each write a run looks whether there is a next one,
and then, as after a machine slept or the process was stopped, writes nothing more.
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

CLAIM = '.in_use'
BEAT = 20.0
LOST = 60.0
FRESH = 1.0  # seconds for which a look at the next number holds


class Claim:
    """Of one run.

    Args:
      store: fsspec's, with the workdir at `root` of it.
      url: of the workdir, for messages.
      folder: of this machine, locked by this run; keeps the run's claim.
    """

    def __init__(self, store: Any, root: str, url: str, folder: pathlib.Path):
        self._store, self._root, self._url = store, f'{root}/{CLAIM}', url
        self._own = folder / f'{CLAIM}.json'
        self._claim = {'host': socket.gethostname(), 'run': secrets.token_hex(8), 'beat': 0}
        self._number, self._looked, self._taken = 0, 0.0, ''
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name='claim', daemon=True)

    def take(self) -> None:
        """Returns when the workdir is this run's.

        Raises:
          Later: another run works on it.
          UserError: the store cannot be read or written.
        """
        number, theirs = self._newest()
        mine = ledger.read_json(self._own)
        # Of a run that was killed here: this one holds the folder's lock.
        if theirs and theirs['run'] and not (mine and mine['run'] == theirs['run']):
            self._watch(number, theirs)
        self._number = number + 1
        self._own.parent.mkdir(parents=True, exist_ok=True)
        ledger.write_json(self._own, self._claim)
        self._write(create=True)
        self._thread.start()

    def check(self, fresh: float = FRESH) -> None:
        """Raises UserError where another run has taken the workdir over.

        fresh: seconds for which an earlier look is good enough.
        """
        now = time.monotonic()
        if self._number and not self._taken and now - self._looked > fresh:
            with contextlib.suppress(UserError):  # the store is away: the write will tell
                after = self._read(self._number + 1)
                self._taken, self._looked = (after or {}).get('host', ''), now
        if self._taken:
            raise UserError(
                self._url,
                expected=f'a run on {self._taken} has taken it over, as this one was silent for '
                f'{LOST:.0f} s',
            )

    def release(self) -> None:
        """Gives the workdir back."""
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join()
        self._claim['run'] = ''
        with contextlib.suppress(UserError):  # else the next run waits until it is lost
            self._write()

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """The greatest number and what it says. A listing may be late: the next are tried."""
        try:
            self._store.invalidate_cache()
            names = self._store.ls(self._root, detail=False)
        except FileNotFoundError:
            names = []
        except Exception as error:  # each store has errors of its own
            raise UserError(self._url, expected=f'cannot be read ({one_line(error)})') from None
        numbers = [name.rstrip('/').rpartition('/')[2] for name in names]
        number = max((int(x) for x in numbers if x.isdigit()), default=0)
        while self._read(number + 1) is not None:
            number += 1
        return number, self._read(number)

    def _watch(self, number: int, theirs: dict[str, Any]) -> None:
        host = theirs['host']
        print(
            f'{self._url}: a run on {host} works on it, or did so until it was lost: '
            f'that is known in {LOST:.0f} s',
            flush=True,
        )
        end = time.monotonic() + LOST
        while time.monotonic() < end:
            time.sleep(BEAT / 10)
            now = self._read(number)
            if now is None or not now['run']:
                return
            if now != theirs:
                self._refuse(host)

    def _refuse(self, host: str) -> None:
        raise Later(
            self._url,
            expected=f'a run on {host} works on it',
            remedy='wait for it, or use another one',
        )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._claim['beat'] += 1
            with contextlib.suppress(UserError):  # the store is away for a while, or taken over
                self._write()

    def _path(self, number: int) -> str:
        return f'{self._root}/{number:08}'

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            return json.loads(self._store.cat_file(self._path(number)))
        except FileNotFoundError:
            return None
        except ValueError:  # a create that was cut off
            return {'host': 'another machine', 'run': '?'}
        except Exception as error:  # each store has errors of its own
            raise UserError(self._url, expected=f'cannot be read ({one_line(error)})') from None

    def _write(self, create: bool = False) -> None:
        """Into this run's own number, which nobody else writes to."""
        path, data = self._path(self._number), json.dumps(self._claim).encode()
        try:
            if not create:
                self._store.pipe_file(path, data)
            elif 'file' in self._store.protocol:  # its pipe_file looks first, and then writes
                with self._store.open(path, 'xb') as file:
                    file.write(data)
            else:
                self._store.pipe_file(path, data, mode='create')
        except FileExistsError:
            self._refuse((self._read(self._number) or {}).get('host', 'another machine'))
        except Exception as error:  # each store has errors of its own
            raise UserError(self._url, expected=f'cannot be written ({one_line(error)})') from None
        there = self._read(self._number)  # some stores take no notice of the condition
        if create and (there or {}).get('run') != self._claim['run']:
            self._refuse((there or {}).get('host', 'another machine'))
