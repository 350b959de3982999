"""A workdir in an object store: `--workdir=gs://BUCKET/RUN`, s3://, or whatever fsspec knows.

A run works in a folder of this machine; this module keeps the store the same:

    pull    as a run begins: what the store has and the folder has not
    push    every PUSH_SECONDS, after each stage and at the end: what is new, changed or gone

What is pushed while the run goes on is sent by a thread: a 7B training's state takes it half an
hour. It sends the folder as it was when the push began.

Files are whole or absent in both places. What says that others are whole (MARKERS) is removed from
the store before these change and written after them, and a training's state goes when the next
one, or the model, is whole there: so whenever a machine is lost, the store holds what a run can go
on from. What cannot be written is told in a line and tried again.

Of several processes the first one does all this, for the folder that all of them work in. Of runs
on several machines one has the workdir, see claims.py.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Mapping
from typing import Any

from rstar_jax.job import atomic, claims, hosts, ledger
from rstar_jax.settings.errors import UserError, one_line

PUSH_SECONDS = 60.0
TRIES = 3  # of a push that must succeed, with WAIT seconds between
WAIT = 2.0
MARKERS = ('done.json', 'model.json', '_CHECKPOINT_METADATA')
STATES = ('state', 'best')  # folders of checkpoints, which are whole with their metadata
SMALL = 1 << 20  # bytes; smaller files are fetched again without a look at their version
VERSIONS = ('ETag', 'etag', 'generation', 'md5Hash', 'content_md5', 'mtime', 'created')
COPIED = 64 << 20  # bytes; larger files are written once, and linked for a push, not copied
LOGS = ('metrics.jsonl', 'events.out')  # in the names of files that grow in place
KNOWN = (
    '.store.json'  # what the store holds: {name: [size, time of change, version of a large one]}
)
KNOWN_SECONDS = 5.0  # between two writes of it while a push goes on
SHARED = '.shared.json'  # what the first process writes to see whether all work in its folder
SENDING = '.sending'  # the files of a push as it began: the run may change or delete its own


def is_url(workdir: str) -> bool:
    """Whether a workdir lies in a store."""
    return '://' in workdir


class Place:
    """A folder of this machine and its copy in a store.

    Args:
      url: of the workdir in the store.
      folder: of this machine; by default one in the user's cache folder, the same for the same url.

    Raises:
      UserError: fsspec cannot reach the store; names what to install or to change.
    """

    def __init__(self, url: str, folder: str | os.PathLike | None = None):
        import fsspec

        self.url = url
        try:
            self._store, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                url,
                expected=one_line(error),
                remedy='name a folder, or the address of a store such as gs://BUCKET/RUN',
            ) from None
        self._root = root.rstrip('/')
        if 'file' in self._store.protocol:
            self._store.auto_mkdir = True  # stores have no folders
        name = hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:16]
        try:
            cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
        except RuntimeError:  # a user without a home, as in some containers
            raise UserError(
                url,
                expected='works in a folder of this machine, and no home is known',
                remedy='set XDG_CACHE_HOME',
            ) from None
        self.folder = pathlib.Path(folder or cache / 'rstar_jax' / 'runs' / name)
        self._pushed = self._told = time.monotonic()  # a push has ended; KNOWN was written
        self._stored: dict[str, list[int]] | None = None  # what KNOWN holds, or will hold
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._running: concurrent.futures.Future | None = None
        self._claim = claims.Claim(self._store, self._root, url, self.folder)

    def begin(self) -> None:
        """Pulls; returns, on all processes, when they may work in the folder.

        Raises:
          Later: another run works on it.
          UserError: a process works in another folder, as it runs on another machine.
        """
        shared = self.folder / SHARED
        if hosts.is_first():
            self._claim.take()
            try:
                self.pull()
            except BaseException:
                self._claim.release()
                raise
            ledger.write_json(shared, {'number': secrets.randbelow(2**31)})
        if hosts.alike_soon(lambda: ledger.read_json(shared)):
            return
        raise UserError(
            self.url,
            expected=f'{self.folder} is another folder here than on the first process',
            remedy='on several machines name a folder of a disk that all mount, or set '
            'XDG_CACHE_HOME to one',
        )

    def end(self) -> None:
        """Pushes, and lets other runs begin."""
        try:
            self.push()
        finally:
            self._claim.release()

    def pull(self) -> None:
        """Makes the folder what the store holds, and what it has not been told of yet."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store.invalidate_cache()
            there = self._store.find(self._root, detail=True)
        except FileNotFoundError:
            there = {}
        except Exception as error:  # each store has errors of its own
            raise UserError(self.url, expected=f'cannot be read ({one_line(error)})') from None
        # Consoles, and stores that are mounted, make an object 'FOLDER/' of each folder.
        there = {p[len(self._root) + 1 :]: x for p, x in there.items() if p[-1:] != '/'}
        there = {name: about for name, about in there.items() if name and self._is_ours(name)}
        known = self._known()
        for name in known.keys() - there.keys():
            if _about(self.folder / name) == known[name][:2] and self._is_gone(name):
                (self.folder / name).unlink(missing_ok=True)
        for name, about in there.items():
            path = self.folder / name
            size, now = about['size'], _about(path)
            size_known, _, *version_known = known.get(name, [None, None])
            as_pushed = now is not None and now == known.get(name, [])[:2]
            if size < SMALL or not version_known:
                elsewhere = size != size_known or as_pushed
            else:
                elsewhere = [_version(about)] != version_known
            # A push that was killed has sent it, and KNOWN does not say so.
            grown = now is not None and not as_pushed and _is_log(name) and now[0] > size
            if now is None or (elsewhere and not grown):
                self._fetch(name, path)
                known[name] = [*_about(path), *([_version(about)] if size >= SMALL else [])]
        self._write_known({name: known[name] for name in there if name in known})
        self._drop_broken_states()

    def _is_ours(self, name: str) -> bool:
        """Whether a run has written it. Raises UserError where it would lie outside the folder."""
        parts = name.split('/')
        if {'..', '.', ''} & set(parts) or '\0' in name:
            raise UserError(
                f'{self.url}/{name}',
                expected='is no name of a file in a workdir',
                remedy='delete it',
            )
        return all(map(_is_whole, parts))

    def _is_gone(self, name: str) -> bool:
        """Whether an object that was not listed is deleted: listings may be late."""
        try:
            self._store.info(f'{self._root}/{name}')
        except FileNotFoundError:
            return True
        except Exception:  # each store has errors of its own
            return False
        return False

    def _fetch(self, name: str, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.name}.part')
        for left in reversed(range(TRIES)):
            try:
                self._store.get_file(f'{self._root}/{name}', str(temporary))
                break
            except Exception as error:  # each store has errors of its own; it may be throttled
                if not left:
                    reason = f'cannot be read ({one_line(error)})'
                    raise UserError(f'{self.url}/{name}', expected=reason) from None
                time.sleep(WAIT * (TRIES - left))
        temporary.replace(path)

    def _drop_broken_states(self) -> None:
        """Deletes checkpoints of which the store had not got everything."""
        for kind in STATES:
            for state in self.folder.glob(f'*/*/{kind}/*'):
                if state.is_dir() and not (state / '_CHECKPOINT_METADATA').exists():
                    shutil.rmtree(state)

    def push_if_due(self) -> None:
        """Begins a push in the background, unless one goes on or it is too soon."""
        if self._running is not None and self._running.done():
            self._wait()
        if self._running is None and time.monotonic() - self._pushed >= PUSH_SECONDS:
            self._running = self._thread.submit(self._push, self._begin_push())

    def push(self, must: bool = False) -> None:
        """Makes the store what the folder is, behind a push that goes on.

        must: tries again, and raises UserError where something still cannot be written.
        """
        self._wait()
        failed: dict[str, str] = {}
        for attempt in range(TRIES if must else 1):
            if attempt:
                time.sleep(WAIT)
            failed = self._push(self._begin_push())
            if not failed:
                break
        if failed and must:
            name, reason = next(iter(failed.items()))
            raise UserError(
                f'{self.url}/{name}',
                expected=f'cannot be written ({reason}); all is kept in {self.folder}',
                remedy='run the same command again on this machine',
            )

    def _wait(self) -> None:
        """Returns when no push goes on; raises what has ended one, as a full disk here."""
        if self._running is not None:
            concurrent.futures.wait([self._running])
            ended, self._running = self._running, None
            ended.result()

    def _begin_push(self) -> dict[str, list[int]]:
        """What the folder holds now; the files to send are copied or linked into SENDING.

        Else training would delete a state before it is sent, and the store would never hold one;
        and a log would be longer there than KNOWN says.
        """
        self._claim.check(0.0)
        here, known = self._here(), self._known()
        shutil.rmtree(self.folder / SENDING, ignore_errors=True)
        for name, (size, changed) in here.items():
            if known.get(name, [])[:2] != here[name]:
                path, sent = self.folder / name, self.folder / SENDING / name
                try:
                    sent.parent.mkdir(parents=True, exist_ok=True)
                    if size > COPIED:
                        sent.hardlink_to(path)
                    else:
                        shutil.copyfile(path, sent)
                        # Changed since it was looked at, it is sent again next time.
                        here[name] = [sent.stat().st_size, changed]
                except OSError:  # gone already; a file system without links; a full disk
                    sent.unlink(missing_ok=True)
        return here

    def _push(self, here: dict[str, list[int]]) -> dict[str, str]:
        """One attempt; tells and returns {name: reason} of what was not written."""
        known, failed = self._known(), {}
        changed = [name for name, about in here.items() if known.get(name, [])[:2] != about]
        gone = [name for name in known if name not in here]
        markers = [name for name in changed if _is_marker(name)]
        there_is = [name for name in here if _is_marker(name)]
        old = {name for name in gone if _replaced(name, there_is)}
        gone = [name for name in gone if name not in old]
        unmark = [(self._remove, name) for name in [*gone, *markers] if _is_marker(name)]
        send = [(self._send, name) for name in changed if not _is_marker(name)]
        remove = [(self._remove, name) for name in gone if not _is_marker(name)]
        mark = [(self._send, name) for name in markers]
        old_ones = [(self._remove, name) for name in sorted(old, key=_is_marker, reverse=True)]
        for steps in (unmark, send, remove, mark, old_ones):  # what is gone may be in what is sent
            if not failed:
                self._do(steps, here, known, failed)
        self._write_known(known)
        shutil.rmtree(self.folder / SENDING, ignore_errors=True)
        for name, reason in failed.items():
            print(f'{self.url}/{name}: not written ({reason}); tried again', flush=True)
        self._pushed = time.monotonic()
        return failed

    def _do(self, steps: list, here: dict, known: dict, failed: dict[str, str]) -> None:
        for step, name in steps:
            # Where there is a marker, others believe it: another look before each.
            self._claim.check(*([0.0] if _is_marker(name) else []))
            try:
                step(name)
            except Exception as error:  # each store has errors of its own
                if step == self._remove or self._to_send(name).exists():
                    failed[name] = one_line(error)
                continue
            known.pop(name, None)
            if step == self._send:
                known[name] = [*here[name], *self._version_of(name, here[name][0])]
            if time.monotonic() - self._told >= KNOWN_SECONDS:
                self._write_known(known)

    def _send(self, name: str) -> None:
        """A store's objects appear when they are whole."""
        self._store.put_file(str(self._to_send(name)), f'{self._root}/{name}')

    def _version_of(self, name: str, size: int) -> list[str]:
        """Of a large file that has just been sent; nothing where it is not known."""
        if size >= SMALL:
            with contextlib.suppress(Exception):  # then the file is fetched again
                self._store.invalidate_cache()
                return [_version(self._store.info(f'{self._root}/{name}'))]
        return []

    def _to_send(self, name: str) -> pathlib.Path:
        sent = self.folder / SENDING / name
        return sent if sent.exists() else self.folder / name

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(f'{self._root}/{name}')

    def _here(self) -> dict[str, list[int]]:
        """The folder's whole files."""
        found, root = {}, os.path.join(self.folder, '')
        for folder, inner, names in os.walk(root):
            inner[:] = [name for name in inner if _is_whole(name)]
            for path in (os.path.join(folder, name) for name in names if _is_whole(name)):
                if (about := _about(path)) is not None:
                    found[path.removeprefix(root)] = about
        return found

    def _known(self) -> dict[str, list[int]]:
        if self._stored is None:
            self._stored = ledger.read_json(self.folder / KNOWN) or {}
        return self._stored

    def _write_known(self, known: dict[str, Any]) -> None:
        self._stored = known
        atomic.write_json(self.folder / KNOWN, known)
        self._told = time.monotonic()


def _is_whole(name: str) -> bool:
    """Whether a file or folder is no longer being written."""
    return not name.startswith('.') and '-tmp' not in name


def _is_marker(name: str) -> bool:
    return name.rpartition('/')[2] in MARKERS


def _is_log(name: str) -> bool:
    return any(log in name.rpartition('/')[2] for log in LOGS)


def _replaced(name: str, markers: Collection[str]) -> bool:
    """Whether a file that is gone was of a state whose stage has a newer one, or its model."""
    *stage, kind = name.split('/')[:3]
    return kind in STATES and any(marker.split('/')[:2] == stage for marker in markers)


def _version(about: Mapping[str, Any]) -> str:
    """What a store says of an object that is another one when it was written again."""
    return next((f'{about[key]}' for key in VERSIONS if about.get(key) is not None), '')


def _about(path: str | os.PathLike) -> list[int] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else None
