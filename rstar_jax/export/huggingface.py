"""Models and training data as directories that others read, with their cards.

a policy, a PPM                   -> a Hugging Face directory
a round's trees, examples, pairs  -> a data set in the released project's form, TRL's and ours
"""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax

from rstar_jax import data, models, parallel
from rstar_jax.data.record import Record
from rstar_jax.export import model_card
from rstar_jax.job import hosts, ledger
from rstar_jax.job.progress import Line, times
from rstar_jax.models import trained
from rstar_jax.settings.errors import UserError

SHORT = 2.0  # seconds after which it is told how far it is
MADE_BY = 'Made with rstar_jax'  # in every card
MOST = 9000  # files of a folder: the hub refuses those of more than 10,000
SUFFIXES = {'policy': '', 'ppm': '-ppm', 'data': '-data'}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A directory that is one repository of the hub: 'policy', 'ppm' or 'data'."""

    kind: str
    folder: pathlib.Path

    @property
    def repository(self) -> str:
        """The hub's kind of repository."""
        return 'dataset' if self.kind == 'data' else 'model'


def kind_of(path: str | pathlib.Path) -> str:
    """'policy' or 'ppm' of a model, 'round' of a round's folder, 'run' of a workdir.

    Raises:
      UserError: it is none of these.
    """
    folder = pathlib.Path(path)
    if about := ledger.read_json(folder / 'model.json'):
        return about['kind']
    if any((folder / name).is_file() for name in ('value_head.bin', 'value_head.safetensors')):
        return 'ppm'
    if ledger.rounds(folder):  # whatever its own name
        return 'run'
    if ledger.round_number(folder.absolute().name) is not None and folder.is_dir():
        return 'round'
    return 'policy'  # what else `models.load` reads, or says what is wrong with


def export_model(
    source: str | pathlib.Path,
    directory: str | pathlib.Path,
    dtype: str = 'float32',
    *,
    license_: str = '',
    name: str = '',
) -> Exported:
    """Writes a policy or a PPM as a Hugging Face directory, with its card.

    On several hosts all must call it; the first one writes.

    Args:
      source: a folder that a training wrote, a Hugging Face directory or a .gguf file.
      dtype: of the weights, 'float32' or 'bfloat16'.
      license_, name: for the card.
    """
    kind, directory = kind_of(source), pathlib.Path(directory)
    model = models.load_as(kind, source, dtype, mesh=mesh_for(source))
    if hosts.is_first():
        _begin(directory)
    if kind == 'ppm':
        models.save_ppm(model, directory)
    else:
        models.save(model, directory)
    if hosts.is_first():
        model_card.write_model_card(directory, kind, model_card.origin_of(source), license_, name)
    return Exported(kind, directory)


def export_data(
    round_folder: pathlib.Path, directory: pathlib.Path, *, license_: str = '', name: str = ''
) -> Exported | None:
    """Writes a round's trees, SFT examples and pairs in all forms; None where it has none.

    The forms are the released project's, TRL's, and our own files as they are.
    """
    counts: dict[str, int] = {}
    folders = [round_folder / name for name in ('curate', 'search')]
    finished = [folder for folder in folders if (folder / 'done.json').exists()]
    curated, searched = folders
    if finished:
        _begin(directory)
    if curated in finished:
        examples = data.load_examples(curated, 'sft')
        counts['sft.json'] = data.write_json_items(examples, directory / 'sft.json')
        pairs = data.load_examples(curated, 'pairs')
        counts['pairs.json'] = data.write_json_items(pairs, directory / 'pairs.json')
        path = directory / 'trl_preference.jsonl'
        counts[path.name] = data.export_trl_preference(pairs, path)
    if searched in finished:
        with data.TreeStore(searched, writer=None) as store:
            path = directory / 'trl_stepwise.jsonl'
            counts[path.name] = data.export_trl_stepwise(_told(store, path.name), path)
            path = directory / 'trees.jsonl'
            counts[path.name] = data.export_trees(_told(store, path.name), path)
    if not counts:
        return None
    # What an earlier export had, of a round with more, would be pushed too.
    shutil.rmtree(directory / 'array_record', ignore_errors=True)
    for file in model_card.FILES.keys() - counts.keys():
        (directory / file).unlink(missing_ok=True)
    for folder in finished:
        copy_files(folder, directory / 'array_record' / folder.name)
    model_card.write_data_card(
        directory, model_card.origin_of(round_folder), counts, license_, name
    )
    return Exported('data', directory)


def copy_files(folder: pathlib.Path, target: pathlib.Path, most: int = MOST) -> None:
    """Copies our own files; what is more than `most` of them into folders of their own."""
    for number, path in enumerate(sorted(folder.glob('*.array_record'))):
        inner = target / f'more{number // most}' if number >= most else target
        inner.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, inner / path.name)


def _begin(directory: pathlib.Path) -> None:
    """Makes a folder ours from the first file on: one that is killed may be done again."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (card := directory / 'README.md').exists():
        card.write_text(f'{MADE_BY}, and not yet whole.\n', encoding='utf-8')


def _told(store: data.TreeStore, name: str) -> Iterator[Record]:
    """The trees of a store, and how far whoever takes them is."""
    start = time.monotonic()
    with Line(f'writing {name}') as line:
        for count, record in enumerate(store, 1):
            yield record
            gone, share = time.monotonic() - start, count / len(store)
            if gone > SHORT:
                told = times(gone, gone * (1 / share - 1))
                line.show(f'{count:,}/{len(store):,} trees, {told}', share)


def export(
    source: str, directory: str, dtype: str = 'float32', *, license_: str = '', name: str = ''
) -> list[Exported]:
    """Writes a model, or all of a round, with cards; a workdir is its last round.

    name: of the hub's repository, for the cards.
    """
    kind, folder, target = kind_of(source), pathlib.Path(source), pathlib.Path(directory)
    if kind == 'run':
        folder, kind = _last_round(folder), 'round'
    if kind != 'round':
        return [export_model(source, target, dtype, license_=license_, name=name)]
    made: list[Exported] = []
    for part in ('policy', 'ppm'):
        if trained.holds(folder / part) and (folder / part / 'done.json').exists():
            print(f'writing {target / part}', flush=True)
            options = {'license_': license_, 'name': name and name + SUFFIXES[part]}
            made.append(export_model(folder / part, target / part, dtype, **options))
    print(f'writing {target / "data"}', flush=True)
    title = name and name + SUFFIXES['data']
    found = export_data(folder, target / 'data', license_=license_, name=title)
    made += [found] if found else []
    if not made:
        raise UserError(str(folder), expected='holds no finished policy, PPM or training data')
    return made


def check_target(source: str, directory: str) -> None:
    """Raises UserError where nothing can be written, or something else would be written over."""
    if not directory.strip():
        raise UserError('directory', directory, 'expected a folder to write to')
    target = pathlib.Path(directory)
    parts = SUFFIXES if kind_of(source) in ('run', 'round') else ('',)
    for folder in (target / part for part in parts):
        if folder.resolve() == pathlib.Path(source).resolve():
            raise UserError('directory', directory, 'is what is exported', 'name another folder')
        card = folder / 'README.md'
        ours = card.is_file() and MADE_BY in card.read_text(encoding='utf-8', errors='replace')
        if folder.is_dir() and any(folder.iterdir()) and not ours:
            holds = f'{folder} holds other files than an export'
            raise UserError('directory', directory, holds, 'name a new folder')
    missing = [path for path in (target, *target.parents) if not path.exists()]
    ledger.check_writable(target, 'directory')
    for path in missing:  # of what cannot be read nothing is left
        path.rmdir()


def mesh_for(source: str | pathlib.Path) -> Any:
    """All devices, where there are several: one alone may not hold a model in float32."""
    if jax.device_count() == 1:
        return None
    return parallel.global_mesh(model=models.read_config(source))


def _last_round(workdir: pathlib.Path) -> pathlib.Path:
    folders = [folder for _, folder in ledger.rounds(workdir)]
    done = [folder for folder in folders if (folder / 'policy' / 'done.json').exists()]
    if not done:
        none = 'none of its rounds has a finished policy'
        raise UserError(str(workdir), expected=none, remedy='name a round')
    return done[-1]
