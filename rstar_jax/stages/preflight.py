"""What a run needs is looked at before its first stage begins, not found missing hours later.

Looked at is what the stages that are not complete will need: files of problems and benchmarks, the
models' paths, stages that others are made from, settings that only make sense together.
"""

import contextlib
import math
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax

from rstar_jax import data, execution, models, parallel, search, training
from rstar_jax.job import ledger
from rstar_jax.models import trained
from rstar_jax.parallel.memory import GIB, device_bytes
from rstar_jax.settings import configs, kinds, table
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import searching, sources, synthesis
from rstar_jax.stages.sources import Round

RUN_PROGRAMS = ('synthesize', 'search', kinds.BASE, 'eval')
# Of the problems in this check, by their settings: how many are used, {index: benchmark} of others.
_selected: dict[str, tuple[int, dict[int, str]]] = {}
_shapes: dict[str, models.Config] = {}  # of its models, by their paths


def check(rows: Sequence[tuple[Round, str]]) -> list[str]:
    """Checks stages in the order in which they will run; complete ones are left out of `rows`.

    Returns:
      Lines to be told.

    Raises:
      UserError: what is missing or cannot be meant.
    """
    told: list[str] = []
    strict = False
    _selected.clear()
    _shapes.clear()
    made: set[pathlib.Path] = set()
    for round_, name in rows:
        needed = kinds.KINDS[name].needs
        if not round_.number or (name == 'curate' and given(round_)):
            needed = ()
        if name in ('sft', 'ppm'):
            _needs_examples(round_, name, made)
        for folder in needed:
            _need(round_.folder / folder, made, f'round {round_.number} {name}')
        if name in round_.config.training:
            _training(round_, name)
        elif name in RUN_PROGRAMS and round_.config.job.leases != searching.RAY:
            strict |= round_.config.execution.isolation == 'strict'
        told += CHECKS.get(name, lambda round_, made: [])(round_, made)
        made.add(round_.folder_of(name))
    if strict:
        execution.Pool(1, isolation='strict').close()
    return list(dict.fromkeys(told))


def given(round_: Round) -> bool:
    """Whether training examples come from files, in place of trees."""
    return bool(round_.config.curate.sft or round_.config.curate.pairs)


def _needs_examples(round_: Round, name: str, made: set[pathlib.Path]) -> None:
    """Raises UserError where the files that stand for trees have no examples for a training."""
    folder, loss = round_.folder_of('curate'), round_.config.training.ppm.loss
    curated = ledger.Stage(folder)
    complete = folder not in made and curated.done is not None
    # A complete curation has what it was made from, whatever the config names now.
    settings = curated.made_with if complete else configs.flatten(round_.config)
    files = {kind: settings.get(f'curate.{kind}') for kind in ('sft', 'pairs')}
    if not any(files.values()) or not (complete or folder in made):
        return
    kind = 'sft' if name == 'sft' else training.LOSSES[loss][0]
    if kind not in ('sft', 'pairs'):
        raise UserError(
            f'--config.training.ppm.loss={loss}: learns from {kind}, which no file holds: use '
            'pairwise, or leave ppm out with --stages'
        )
    if not (len(data.load_examples(folder, kind)) if complete else files[kind]):
        remedy = f'name one and delete {folder}' if complete else 'name one'
        raise UserError(
            f'--config.curate.{kind}={files[kind]}: {name} has nothing to train on, as examples '
            f'come from files: {remedy}, or leave {name} out with --stages'
        )


def _need(folder: pathlib.Path, made: set[pathlib.Path], flag: str) -> None:
    if folder not in made:
        sources.finished(folder, folder.name, flag)


def _model(path: str | pathlib.Path | None, kind: str, flag: str, made: set[pathlib.Path]) -> Any:
    """Its tokenizer, where it is not one that a round trains, or has trained."""
    if isinstance(path, pathlib.Path):  # in the workdir
        _need(path, made, flag)
    elif path is not None:
        return sources.check_model(path, kind, flag)
    return None


def searching_models(round_: Round, made: Collection[pathlib.Path] = ()) -> Any:
    """Raises UserError where a search's models cannot be read; made: by then, in the workdir.

    Returns the policy's tokenizer, as of `_model`.
    """
    found = {}
    for kind in ('policy', 'ppm'):
        path = sources.searching_path(round_, kind)
        flag = f'--config.{kind}.path'
        if kind == 'policy' and sources.is_endpoint(path):
            sources.endpoint(round_.config).check()
            continue
        shown = f'{flag}={round_.config[kind].path}' if isinstance(path, pathlib.Path) else flag
        found[kind] = _model(path, kind, shown, made)
    _mesh(round_)
    return found.get('policy')


def _room(config: search.Config, tokenizer: Any) -> None:
    """Raises UserError where no step fits behind a prompt; None for a tokenizer: not known."""
    if tokenizer is not None:
        search.begin.template(config, tokenizer)


def _mesh(round_: Round) -> None:
    if round_.config.job.leases != searching.RAY:  # its workers have devices of their own
        sources.searching_mesh(round_.config)


def _training(round_: Round, name: str) -> None:
    try:
        training.check(name, round_.config.training[name])
    except UserError as error:
        raise UserError(f'--config.training.{name}.{error}') from None


def _memory(round_: Round, name: str, path: str | pathlib.Path) -> None:
    """Raises UserError where the devices cannot hold a training's model and its moments.

    What it needs beside these it tells itself, before its first step. path: of the model, or of
    one of its shape.
    """
    if path == table.TINY or (isinstance(path, pathlib.Path) and not trained.holds(path)):
        return  # it will be made here, in this memory
    if str(path) not in _shapes:
        _shapes[str(path)] = models.read_config(path)
    settings, shape = round_.config.training[name], _shapes[str(path)]
    shapes = models.decoder.abstract_params(shape, headless=name == 'ppm')
    # Of a parameter; a frozen one may be in bfloat16.
    each = 2 if settings.lora else 12 - 2 * (settings.moments == 'bfloat16')
    held = each * sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    held /= parallel.shares(shape, jax.device_count())
    memory = device_bytes(parallel.local_mesh())
    if held > memory > 0:
        lora = f'--config.training.{name}.lora=16, ' if not settings.lora else ''
        raise UserError(
            f'--config.training.{name}: at least {held / GIB:.1f} GiB of {path} have to lie on '
            f'each device, which has {memory / GIB:.1f} GiB: {lora}a smaller model or more devices'
        )


def _bootstrap(round_: Round, made: set[pathlib.Path]) -> list[str]:
    path = round_.config.policy.path
    if path != table.TINY:
        sources.check_model(path, 'policy', '--config.policy.path')
    _memory(round_, 'bootstrap', path)
    return []


def _synthesize(round_: Round, made: set[pathlib.Path]) -> list[str]:
    config = round_.config
    synthesis.Config(**config.synthesize)  # raises where its samples cannot agree
    if config.synthesize.problems and config.job.leases == searching.RAY:
        raise UserError(
            f'--config.synthesize.problems={config.synthesize.problems}: not by workers on Ray: '
            'first run --stages=synthesize with --config.job.leases=counter'
        )
    return _search(round_, made)


def _search(round_: Round, made: set[pathlib.Path]) -> list[str]:
    asked = round_.config.search
    for rollouts in (*asked.more_rollouts, asked.rollouts):
        settings = sources.search_config(round_.config, rollouts=rollouts)
    _room(settings, searching_models(round_, made))
    # What earlier rounds will have solved is not known yet.
    kept, left_out = _split(round_, known=True)
    told = _passed_over(round_)
    if left_out:
        told.append(
            f'data: {len(left_out):,} of {kept + len(left_out):,} problems are left out, as they '
            f'overlap with {_names(left_out.values())} (--config.data.overlap=0 keeps them)'
        )
    return told


def _passed_over(round_: Round) -> list[str]:
    """What is told of a run that begins behind a round whose policy it does not take."""
    before = round_.before / 'policy'
    path = sources.searching_path(round_, 'policy')
    taken = isinstance(path, pathlib.Path) or pathlib.Path(path).absolute() == before.absolute()
    if taken or not (before / 'done.json').exists():
        return []
    return [
        f'round {round_.number}: searches with {path}, as first_round={round_.number} begins with '
        f'policy.path; with what round {round_.number - 1} trained: --config.policy.path=previous'
    ]


def _split(round_: Round, known: bool = False) -> tuple[int, dict[int, str]]:
    """See `_selected`: many problems take a minute to read, so not in every round again."""
    config = round_.config
    solved = round_.number if config.data.solved and not known else None
    key = repr((config.data, config.eval.benchmarks, config.eval.folder, solved))
    if key not in _selected:
        kept, left_out, _ = sources.split_problems(round_, known)
        _selected[key] = len(kept), left_out
    return _selected[key]


def _names(benchmarks: Iterable[str]) -> str:
    return ', '.join(sorted(set(benchmarks)))


def _curate(round_: Round, made: set[pathlib.Path]) -> list[str]:
    for kind in ('sft', 'pairs'):
        path = round_.config.curate[kind]
        if path and next(data.IMPORTS[kind](path), None) is None:
            raise UserError(f'--config.curate.{kind}={path}: holds no example')
    if given(round_):
        sources.overlap(round_)  # the benchmarks can be read
    return []


def _sft(round_: Round, made: set[pathlib.Path]) -> list[str]:
    _base_model(round_, made)
    _memory(round_, 'sft', sources.base_path(round_))
    return []


def _ppm(round_: Round, made: set[pathlib.Path]) -> list[str]:
    policy = round_.folder_of('sft')
    _memory(round_, 'ppm', sources.base_path(round_) if policy in made else policy)
    return []


def _base_model(round_: Round, made: set[pathlib.Path]) -> Any:
    return _model(sources.base_path(round_), 'policy', '--config.base.path', made)


def _eval(round_: Round, made: set[pathlib.Path]) -> list[str]:
    sources.benchmarks(round_)
    settings = searching.evaluation_config(round_)
    _mesh(round_)
    if not round_.number:
        _room(settings.search, searching_models(round_, made))
        return []
    return _learnt(round_, made)


def _learnt(round_: Round, made: set[pathlib.Path]) -> list[str]:
    """What is told of a complete search of problems that are in a benchmark named since."""
    folder, found = round_.folder_of('search'), {}
    if folder not in made and (folder / 'done.json').exists():
        with contextlib.suppress(UserError):  # the problems may be gone since
            _, left_out = _split(round_)
            trees = data.TreeStore(folder, writer=None).keys() if left_out else ()
            found = {index: left_out[index] for index, _ in trees if index in left_out}
    if not found:
        return []
    return [
        f'round {round_.number} eval: of the problems that were searched, and may have been '
        f'trained on, {len(found):,} overlap with {_names(found.values())}'
    ]


def _base(round_: Round, made: set[pathlib.Path]) -> list[str]:
    settings = searching.evaluation_config(round_, base=True)
    _room(settings.search, _base_model(round_, made))
    return []


CHECKS = {
    'bootstrap': _bootstrap,
    'synthesize': _synthesize,
    'search': _search,
    'curate': _curate,
    'sft': _sft,
    'ppm': _ppm,
    'eval': _eval,
    kinds.BASE: _base,
}
