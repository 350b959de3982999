"""What a run keeps beside its results, so that the same command goes on where it stopped.

    config.json              {"round1": {key: value, ...}, ...}: the settings of each round, to read
    roundK/STAGE/begun.json  written when a stage begins: from what and with which settings it is
                             made, seconds so far
    roundK/STAGE/done.json   written when it is complete: its id, seconds, figures for the table

A stage with a done.json is skipped. A stage that has begun under other settings is an error, one
that was made from results which have been made anew since is done again, and one that was made
without what its round has made since goes on. Of several processes, all in one workdir, the first
one writes these files.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from rstar_jax.job import atomic
from rstar_jax.settings import former
from rstar_jax.settings.errors import Later, UserError

BEAT_SECONDS = 10.0


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes atomically, in lines that people can read."""
    atomic.write_json(path, value, indent=1)


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The object in the file, or None where there is no file."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(found, dict):
            return found
        reason = f'found {type(found).__name__}'
    except (FileNotFoundError, NotADirectoryError):  # a model may be one file
        return None
    except ValueError as error:
        reason = str(error)
    raise UserError(
        str(path),
        expected=f'not a JSON object ({reason})',
        remedy='use another workdir, or delete it',
    )


def round_number(name: str) -> int | None:
    """'round12' -> 12; None for what is no round's name."""
    found = re.fullmatch(r'round(\d+)', name)
    return int(found[1]) if found else None


def rounds(workdir: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """(number, folder) of each round that a workdir has, by number; none where it is no folder."""
    folders = [path for path in workdir.glob('round*') if path.is_dir()]
    numbers = [round_number(path.name) for path in folders]
    return sorted((n, path) for n, path in zip(numbers, folders) if n is not None)


@dataclasses.dataclass
class Stage:
    """The folder of one stage of one round, and its bookkeeping.

    Attributes:
      folder: where the stage's results and its begun.json and done.json lie.
      settings: what it makes depends on these, {'search.rollouts': 8, ...}.
      inputs: the folders of the stages it is made from.
      precious: whether results made from something older, or without what is there now, are an
        error instead of being made again.
      growing: of the settings, those that may grow, numbers (0 is the most) or lists by commas: the
        stage goes on then.
      followers: precious stages that were made from what this one makes; with some, nothing grows.
    """

    folder: pathlib.Path
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: tuple[pathlib.Path, ...] = ()
    precious: bool = False
    growing: tuple[str, ...] = ()
    followers: tuple[pathlib.Path, ...] = ()
    _started: float = 0.0
    _before: float = 0.0
    _beat: float = 0.0

    @property
    def done(self) -> dict[str, Any] | None:
        """What done.json says, or None while the stage is not complete."""
        return read_json(self.folder / 'done.json')

    @property
    def begun(self) -> bool:
        """Whether there is anything of the stage."""
        return (self.folder / 'begun.json').exists()

    @property
    def binding(self) -> bool:
        """Whether it has made anything: only then do its settings bind."""
        return any(
            path.name != 'begun.json' and not path.name.startswith('.')
            for path in self.folder.rglob('*')
            if path.is_file()
        )

    @property
    def made_with(self) -> dict[str, Any]:
        """The settings under which what there is has been made; none where there is nothing."""
        begun = read_json(self.folder / 'begun.json') if self.binding else None
        return former.today((begun or {}).get('settings', {}))

    def grows(self, label: str, defaults: Mapping[str, Any] | None = None) -> bool:
        """Whether the settings ask for more of the same than those that it was made with.

        Args:
          label: 'round1, search'.
          defaults: what a setting was that the workdir's version of the software did not have yet.

        Raises:
          UserError: a setting differs otherwise: the key, both values, and the remedy.
        """
        if not (made := self.made_with):
            return False
        made, grown = _plain(defaults or {}) | made, False
        for key, now in sorted(_plain(self.settings).items()):
            old = made.get(key)
            if old == now or (key in self.growing and _same(old, now)):
                continue
            shown = 'nothing' if old == '' else old
            if key not in self.growing or not _more(old, now):
                raise UserError(
                    key,
                    now,
                    f'{self.folder.parent.parent} was made with {shown} ({label})',
                    f'use that value, another workdir, or delete {self.folder} to do the stage '
                    'again',
                )
            if self.followers:
                raise UserError(
                    key,
                    now,
                    f'{self.followers[0]} was made from the first {shown} of {label}',
                    'use that value, another workdir, or delete the folder',
                )
            grown = True
        return grown

    def reopen(self) -> None:
        """Lets a complete stage go on."""
        (self.folder / 'done.json').unlink(missing_ok=True)

    @property
    def _recorded(self) -> dict[str, str]:
        """The inputs that what there is was made from."""
        begun = read_json(self.folder / 'begun.json') if self.binding else None
        return (begun or {}).get('inputs', {})

    @property
    def changed(self) -> list[str]:
        """Inputs that have been made anew since the stage was made from them."""
        recorded = self._recorded
        return [name for name, key in _ids(self.inputs).items() if recorded.get(name, key) != key]

    @property
    def added(self) -> list[str]:
        """Inputs of the same round that came after the stage was complete."""
        own = [folder for folder in self.inputs if folder.parent == self.folder.parent]
        return [name for name in _ids(own) if name not in self._recorded] if self.done else []

    def drop_if_stale(self) -> str | None:
        """Deletes the results where an input is new since; returns which one.

        Where it is one that they were made without, the stage goes on with them.
        """
        changed, added = self.changed, self.added
        if not changed and not added:
            return None
        if self.precious:
            how = f'from an older {changed[0]}' if changed else f'without {added[0]}'
            raise UserError(
                str(self.folder),
                expected=f'made {how}',
                remedy='delete the folder, or use another workdir',
            )
        if changed:
            shutil.rmtree(self.folder)
        self.reopen()
        return [*changed, *added][0]

    def sweep(self) -> None:
        """Removes what killed runs have left half written, while nobody writes here."""
        for path in self.folder.rglob(f'{atomic.TEMPORARY}*'):
            path.unlink(missing_ok=True)

    def begin(self) -> None:
        """Starts the clock and records what the stage is made from."""
        recorded = read_json(self.folder / 'begun.json') or {}
        self._before = recorded.get('seconds', 0.0)
        self._started = self._beat = time.monotonic()
        self._write(self._before)

    def beat(self) -> None:
        """Keeps the seconds so far on disk; cheap enough to be called at every progress report."""
        now = time.monotonic()
        if now - self._beat >= BEAT_SECONDS:
            self._beat = now
            self._write(self.seconds)

    @property
    def seconds(self) -> float:
        """Time spent on the stage, earlier runs of the command included."""
        return self._before + time.monotonic() - self._started

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Marks the stage complete."""
        self._write(self.seconds)  # a stage that goes on later adds to them
        done = {'id': uuid.uuid4().hex, 'seconds': round(self.seconds, 3), 'figures': dict(figures)}
        write_json(self.folder / 'done.json', done)

    def _write(self, seconds: float) -> None:
        from rstar_jax.job import hosts  # the report reads workdirs without JAX

        if not hosts.is_first():
            return
        begun = {
            'inputs': _ids(self.inputs),
            'settings': dict(self.settings),
            'seconds': round(seconds, 3),
        }
        write_json(self.folder / 'begun.json', begun)


def _name(folder: pathlib.Path) -> str:
    """What a stage is called where it is an input: round1/policy."""
    return f'{folder.parent.name}/{folder.name}'


def _ids(folders: Iterable[pathlib.Path]) -> dict[str, str]:
    """{name: id} of those of the stages that are complete."""
    done = {_name(folder): read_json(folder / 'done.json') for folder in folders}
    return {name: found['id'] for name, found in done.items() if found is not None}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(json.dumps(dict(settings)))


def _same(old: Any, now: Any) -> bool:
    """Whether two lists by commas have the same items."""
    lists = isinstance(old, str) and isinstance(now, str)
    return lists and sorted(_items(old)) == sorted(_items(now))


def _more(old: Any, now: Any) -> bool:
    if isinstance(old, str) and isinstance(now, str):
        return set(_items(old)) < set(_items(now))
    return not now or 0 < old < now


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(',') if item.strip()]


def check(
    rows: Collection[tuple[Stage, str, str, Mapping[str, Any]]],
    defaults: Mapping[str, Any] | None = None,
    further: Callable[[Collection[pathlib.Path]], None] = lambda grown: None,
) -> None:
    """Compares what is to be done with what is there; reopens what goes on; writes config.json.

    There the settings of a round are the new ones, but for those that bind another stage of it. All
    processes of a job call this, and find that file written when it returns.

    Args:
      rows: the stages to be done, in their order: (stage, 'round3', 'search', all of the round's
        settings).
      defaults: see `Stage.grows`.
      further: called with the folders of the stages that will be reopened; may raise.

    Raises:
      UserError: see `Stage.grows`; or precious results would be older than what they come from, all
        of which are named; or as `further`. Nothing has changed then.
    """
    from rstar_jax.job import hosts

    grown = [stage for stage, label, name, _ in rows if stage.grows(f'{label}, {name}', defaults)]
    _check_precious([stage for stage, *_ in rows], {stage.folder for stage in grown})
    further({stage.folder for stage in grown})
    if hosts.is_first():
        for stage in grown:
            stage.reopen()
        _keep_settings(rows)
    hosts.barrier('settings are kept')


def _keep_settings(rows: Collection[tuple[Stage, str, str, Mapping[str, Any]]]) -> None:
    own = {stage.folder for stage, *_ in rows}
    kept: dict[pathlib.Path, dict[str, Mapping[str, Any]]] = {}
    for stage, label, _, settings in rows:
        kept.setdefault(stage.folder.parent.parent, {})[label] = settings
    for workdir, asked in kept.items():
        for label in asked:
            for begun in sorted((workdir / label).glob('*/begun.json')):
                if begun.parent not in own:
                    asked[label] = {**asked[label], **Stage(begun.parent).made_with}
        path = workdir / 'config.json'
        write_json(path, {**(read_json(path) or {}), **asked})


def _check_precious(stages: Iterable[Stage], made: set[pathlib.Path]) -> None:
    """Raises UserError where precious results will not be those of what they were made from.

    made: the stages that will be done, to which those that follow from them are added.
    """
    old: dict[pathlib.Path, str] = {}
    for stage in stages:
        done, recorded = stage.done is not None, stage._recorded
        fresh = [*stage.changed, *stage.added]
        for folder in stage.inputs:
            own = done and folder.parent == stage.folder.parent
            if folder in made and (own or _name(folder) in recorded):
                fresh.append(_name(folder))
        if fresh and stage.precious and stage.binding:
            old[stage.folder] = fresh[0]
        if fresh or not done:
            made.add(stage.folder)
    if old:
        what = 'the folder' if len(old) == 1 else 'these folders'
        raise UserError(
            ', '.join(map(str, old)),
            expected=f'older than {next(iter(old.values()))} is or will be',
            remedy=f'delete {what}, or use another workdir',
        )


def check_writable(folder: pathlib.Path, flag: str = '--workdir') -> None:
    """Raises UserError where no file can be made in a folder, which is made where it is not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(flag, folder, f'cannot be written ({error.strerror})') from None


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir for this process, so that two runs never write into the same files."""
    check_writable(workdir)
    path = workdir / '.lock'
    file = open(path, 'a')  # noqa: SIM115 (closing it would let go of the lock)
    if not atomic.lock(file):
        file.close()
        remedy = 'wait for it, or use another one'
        if (owner := atomic.owner(path)).exists():  # a lost machine leaves it
            remedy += f'; if none runs any more, delete {owner}'
        raise Later(str(workdir), expected='another run is writing into it', remedy=remedy)
    try:
        yield
    finally:
        atomic.unlock(file)
