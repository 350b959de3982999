"""Models and training data as others read them, with cards, and onto the Hugging Face hub.

usage: python -m rstar_jax.export CHECKPOINT DIR [--dtype=bfloat16] [--push_to_hub=NAME] [--dry_run]

  CHECKPOINT           a policy or PPM: a folder that a training wrote, a Hugging Face directory or
                       a .gguf file; or a round of a run (WORKDIR/round1) with all that it made; or
                       a WORKDIR: its last round
  DIR                  where it is written: a model into DIR itself, a round into DIR/policy,
                       DIR/ppm and DIR/data
  --dtype=bfloat16     of the weights; float32 by default
  --license=NAME       for the cards, as the hub spells it: apache-2.0
  --push_to_hub=NAME   you/name, pushed once transformers gives the same logits; a round goes to
                       NAME, NAME-ppm and, as a dataset, NAME-data; other files there are deleted
  --private            what the push creates is visible to you only
  --dry_run            writes and checks everything and lists what would be pushed, without network
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rstar_jax import models
from rstar_jax.job import atomic, ledger
from rstar_jax.job.progress import Line, times
from rstar_jax.models import trained
from rstar_jax.settings.errors import UserError, one_line

if TYPE_CHECKING:
    from rstar_jax.data import TreeStore
    from rstar_jax.search import Record

PROBE = 'Ann has 12 apples. Then Ann finds 7. How many apples are there?'
TOLERANCE = 1e-3  # of the largest logit: float32 through many layers, in another order
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
    from rstar_jax import models
    from rstar_jax.export import model_card
    from rstar_jax.job import hosts

    kind, directory = kind_of(source), pathlib.Path(directory)
    model = models.load_as(kind, source, dtype, mesh=_mesh(source))
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
    from rstar_jax import data
    from rstar_jax.export import model_card

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
        target = directory / 'array_record' / folder.name
        for number, path in enumerate(sorted(folder.glob('*.array_record'))):
            inner = target / f'more{number // MOST}' if number >= MOST else target
            inner.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, inner / path.name)
    model_card.write_data_card(
        directory, model_card.origin_of(round_folder), counts, license_, name
    )
    return Exported('data', directory)


def _begin(directory: pathlib.Path) -> None:
    """Makes a folder ours from the first file on: one that is killed may be done again."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (card := directory / 'README.md').exists():
        card.write_text(f'{MADE_BY}, and not yet whole.\n', encoding='utf-8')


def _told(store: TreeStore, name: str) -> Iterator[Record]:
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
    """Writes a model, or all of a round, with cards; see the module's text.

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
        raise UserError(f'{folder}: holds no finished policy, PPM or training data')
    return made


def check_target(source: str, directory: str) -> None:
    """Raises UserError where nothing can be written, or something else would be written over."""
    if not directory.strip():
        raise UserError(f'DIR={directory!r}: expected a folder to write to')
    target = pathlib.Path(directory)
    parts = SUFFIXES if kind_of(source) in ('run', 'round') else ('',)
    for folder in (target / part for part in parts):
        if folder.resolve() == pathlib.Path(source).resolve():
            raise UserError(f'DIR={directory}: is what is exported; name another folder')
        card = folder / 'README.md'
        ours = card.is_file() and MADE_BY in card.read_text(encoding='utf-8', errors='replace')
        if folder.is_dir() and any(folder.iterdir()) and not ours:
            raise UserError(
                f'DIR={directory}: {folder} holds other files than an export; name a new folder'
            )
    missing = [path for path in (target, *target.parents) if not path.exists()]
    ledger.check_writable(target, 'DIR')
    for path in missing:  # of what cannot be read nothing is left
        path.rmdir()


def _mesh(source: str | pathlib.Path) -> Any:
    """All devices, where there are several: one alone may not hold a model in float32."""
    import jax

    from rstar_jax import parallel

    if jax.device_count() == 1:
        return None
    return parallel.global_mesh(model=models.read_config(source))


def _has_model(source: pathlib.Path) -> bool:
    finished = ((source / part / 'done.json').exists() for part in ('policy', 'ppm'))
    return kind_of(source) != 'round' or any(finished)


def _last_round(workdir: pathlib.Path) -> pathlib.Path:
    folders = [folder for _, folder in ledger.rounds(workdir)]
    done = [folder for folder in folders if (folder / 'policy' / 'done.json').exists()]
    if not done:
        raise UserError(f'{workdir}: none of its rounds has a finished policy; name a round')
    return done[-1]


def largest_difference(exported: Exported) -> float | None:
    """How far transformers' outputs are from ours, as a share of the largest of them.

    Of a policy the logits of a short text, of a PPM its score; in float32, one model after the
    other in memory. None where torch is not installed.
    """
    if importlib.util.find_spec('torch') is None:
        return None
    import jax
    import numpy as np

    from rstar_jax import models, steps

    load = models.load if exported.kind == 'policy' else models.load_ppm
    theirs, tokens = _by_transformers(exported, steps.prompt(PROBE))
    with jax.default_matmul_precision('highest'):
        model = load(exported.folder, 'float32', mesh=_mesh(exported.folder))
        lengths = np.array([tokens.shape[1]], np.int32)
        run = model.logits if exported.kind == 'policy' else model.scores
        ours = np.asarray(run(tokens, lengths), np.float32)
    # A model may have more rows than transformers' tokenizer has tokens, never other ones.
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _by_transformers(exported: Exported, text: str) -> tuple[Any, Any]:
    """(what transformers computes, f32[1, T, V] or f32[1]; the tokens i32[1, T])."""
    import numpy as np
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = str(exported.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors='pt')['input_ids']
    makers = {'policy': transformers.AutoModelForCausalLM, 'ppm': transformers.AutoModel}
    model = makers[exported.kind].from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        if exported.kind == 'policy':
            found = model(tokens).logits
        else:
            from rstar_jax.models import heads

            head = torch.load(exported.folder / 'value_head.bin', weights_only=True)
            hidden = model(tokens).last_hidden_state[:, -1]
            value = hidden @ head['v_head.summary.weight'].T + head['v_head.summary.bias']
            config = json.loads((exported.folder / 'config.json').read_text(encoding='utf-8'))
            found = torch.tensor(
                np.array(heads.squash(config['ppm_squash'], value[:, 0].numpy()), np.float32)
            )
    return found.numpy(), tokens.numpy().astype(np.int32)


def check(made: Sequence[Exported], *, whole: bool = True) -> Iterator[str]:
    """Checks what is to be pushed; yields a line for each thing checked.

    Args:
      whole: whether it is an error that torch, which transformers needs, is not installed.

    Raises:
      UserError: a card is not valid, or transformers gives other logits than we do.
    """
    from rstar_jax.export import model_card

    for exported in made:
        model_card.check(exported.folder / 'README.md', exported.repository)
        yield f'{exported.folder}: card valid'
        if exported.kind == 'data':
            continue
        difference = largest_difference(exported)
        if difference is None:
            if whole:
                raise UserError(
                    f'{exported.folder}: not pushed: to be compared with transformers it needs '
                    'torch (pip install torch); hf upload pushes a folder unseen'
                )
            yield f'{exported.folder}: not compared with transformers, torch is not installed'
        elif not difference <= TOLERANCE:
            raise UserError(
                f'{exported.folder}: transformers gives other outputs than rstar_jax, by '
                f'{difference:.1e} of the largest: nothing was pushed'
            )
        else:
            yield f'{exported.folder}: transformers gives the same within {difference:.1e}'


def push(made: Sequence[Exported], name: str, *, private: bool = False) -> Iterator[str]:
    """Pushes what `export` wrote; yields the address of each repository.

    Raises:
      UserError: the hub refused it, or cannot be reached.
    """
    import huggingface_hub as hub

    interface = hub.HfApi()
    for exported, repository in zip(made, repositories(made, name)):
        kind = exported.repository
        try:
            card = hub.ModelCard if kind == 'model' else hub.DatasetCard
            card.load(exported.folder / 'README.md').validate()
            interface.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
            url = interface.upload_folder(
                repo_id=repository,
                folder_path=exported.folder,
                repo_type=kind,
                commit_message='Export of rstar_jax',
                # An earlier push's: readers would take its weights for these.
                delete_patterns='*',
                ignore_patterns=f'*{atomic.TEMPORARY}*',  # of an export that was killed
            )
        except Exception as error:  # network, authorisation, what the hub will not have
            raise UserError(
                f'--push_to_hub={name}: {repository} was not pushed ({one_line(error)}); is '
                'HF_TOKEN set, or have you logged in with `hf auth login`?'
            ) from None
        yield str(url)


def repositories(made: Sequence[Exported], name: str) -> list[str]:
    """The name of each directory's repository.

    Raises:
      UserError: the hub has no such names.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    alone = len(made) == 1 and made[0].kind != 'data'  # a model
    names = [name + ('' if alone else SUFFIXES[exported.kind]) for exported in made]
    for repository in names:
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(
                f'--push_to_hub={name}: {one_line(error, None)}; expected you/name'
            ) from None
    return names


def listing(made: Sequence[Exported], name: str) -> Iterator[str]:
    """What a push would put where: repositories, files, sizes."""
    targets = repositories(made, name) if name else [str(exported.folder) for exported in made]
    for exported, target in zip(made, targets):
        files = sorted(path for path in exported.folder.rglob('*') if path.is_file())
        total = sum(path.stat().st_size for path in files)
        yield f'{exported.repository} {target}: {len(files)} files, {_size(total)}'
        for path in files:
            yield f'  {path.relative_to(exported.folder)}  {_size(path.stat().st_size)}'


def _size(count: float) -> str:
    for unit in ('bytes', 'kB', 'MB'):
        if count < 1000:
            return f'{count:.0f} {unit}'
        count /= 1000
    return f'{count:.1f} GB'


def _run(arguments: Sequence[str]) -> int:
    from rstar_jax.job import command

    parser = argparse.ArgumentParser(prog='python -m rstar_jax.export')
    parser.add_argument('checkpoint')
    parser.add_argument('directory')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--license', default='')
    parser.add_argument('--push_to_hub', default='')
    parser.add_argument('--private', action='store_true')
    parser.add_argument('--dry_run', action='store_true')
    if any(argument in ('-h', '--help') for argument in arguments):
        return command.show_help(__doc__.strip())
    parser.error = _refuse
    options = parser.parse_args(arguments)
    name = options.push_to_hub
    if name:
        repositories([Exported('policy', pathlib.Path())], name)  # before the work
        without = importlib.util.find_spec('torch') is None
        if without and not options.dry_run and _has_model(pathlib.Path(options.checkpoint)):
            raise UserError(
                '--push_to_hub: needs torch, to compare what is pushed with transformers: '
                'pip install torch'
            )
    check_target(options.checkpoint, options.directory)
    made = export(
        options.checkpoint, options.directory, options.dtype, license_=options.license, name=name
    )
    if name or options.dry_run:
        for line in check(made, whole=not options.dry_run):
            print(line, flush=True)
    for line in listing(made, name):
        print(line, flush=True)
    if options.dry_run:
        print('dry run: nothing was pushed')
    elif name:
        for url in push(made, name, private=options.private):
            print(f'pushed {url}', flush=True)
    return 0


def _refuse(message: str) -> None:
    raise UserError(f'{message}; python -m rstar_jax.export --help')


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns the exit code."""
    from rstar_jax.job import command

    return command.guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))
