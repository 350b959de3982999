"""The models of a round: which ones it searches with, trains from and measures, and where they are.

A model's path is a Hugging Face directory, a hub name, a .gguf file or a folder that a training
stage wrote; "previous" is what the round before made in this workdir, "tiny" is made on the spot.
A policy that only searches may be served elsewhere: http://HOST:PORT/v1.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import models, parallel, search
from rstar_jax.data import arithmetic
from rstar_jax.job import ledger
from rstar_jax.models import tiny, trained
from rstar_jax.settings import errors
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import NONE, PREVIOUS, TINY
from rstar_jax.stages.round import Round

Path = str | pathlib.Path  # a pathlib.Path lies in the workdir


def searching_model(
    round_: Round, kind: str
) -> models.Policy | models.PPM | search.Endpoint | None:
    """The policy or the PPM (`kind`) that the round searches with; None for no PPM.

    For round 0, what is evaluated.
    """
    config, path = round_.config, searching_path(round_, kind)
    if path is None:
        return None
    if kind == 'policy' and is_endpoint(path):
        return endpoint(config)
    if path == round_.before / kind:
        finished(path, kind, f'--config.{kind}.path={config[kind].path}')
    return load_to_search(config, path, kind)


def load_to_search(config: ConfigDict, path: Path, kind: str) -> models.Policy | models.PPM:
    """Loads a model as a search has it: laid over this host's devices, in the search's dtype."""
    how = {'mesh': searching_mesh(config), 'weights': config.policy.weights}
    return load_model(path, kind, config.policy.dtype, **how)


def is_endpoint(path: Path | None) -> bool:
    """Whether a model's path is the address of a server."""
    return isinstance(path, str) and path.startswith(('http://', 'https://'))


def endpoint(config: ConfigDict) -> search.Endpoint:
    """The server at policy.path."""
    return search.Endpoint(
        url=config.policy.path,
        model=config.policy.model,
        requests=config.policy.requests,
    )


def searching_path(round_: Round, kind: str) -> Path | None:
    """Where the policy or the PPM of the round's search is, or will be; None for no PPM."""
    path = round_.config[kind].path
    if path == PREVIOUS or (kind == 'policy' and round_.config.bootstrap.demonstrations):
        return round_.before / kind
    return None if kind == 'ppm' and path in (NONE, '') else path


def searching_paths(round_: Round) -> list[pathlib.Path]:
    """Those of both models that there are."""
    named = (searching_path(round_, kind) for kind in ('policy', 'ppm'))
    return [pathlib.Path(path) for path in named if path]


def searching_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """This host's devices, as the search uses them."""
    with errors.of_setting('search'):
        return parallel.local_mesh(tensor=config.search.tensor)


def check_searching(round_: Round, ahead) -> Any:
    """Raises UserError where a search's models cannot be read; returns the policy's tokenizer.

    ahead: a `stage.Ahead`. The tokenizer is None where it is not known yet.
    """
    found = {}
    for kind in ('policy', 'ppm'):
        path = searching_path(round_, kind)
        setting = f'--config.{kind}.path'
        if kind == 'policy' and is_endpoint(path):
            endpoint(round_.config).check()
            continue
        if isinstance(path, pathlib.Path):
            setting += f'={round_.config[kind].path}'
        found[kind] = ahead.tokenizer(path, kind, setting)
    check_mesh(round_)
    return found.get('policy')


def check_mesh(round_: Round) -> None:
    """Raises UserError where a search cannot use the devices as it is told to."""
    if round_.config.job.leases != 'ray':  # its workers have devices of their own
        searching_mesh(round_.config)


def first_policy(config: ConfigDict, dtype: str, mesh=None) -> models.Policy:
    """The model that the bootstrap trains: the built-in one, or the one at policy.path."""
    if config.policy.path == TINY:
        return tiny.policy(arithmetic.vocabulary(), seed=config.seed)
    return load_model(config.policy.path, 'policy', dtype, mesh=mesh)


def base_path(round_: Round) -> Path:
    """Where the model that SFT starts from is, or will be: base.path, or the run's first policy.

    Raises:
      UserError: nothing names one.
    """
    config = round_.config
    start = round_.root / 'round0' / 'policy'
    if config.base.path in ('', TINY) and (config.bootstrap.demonstrations or trained.holds(start)):
        return start
    first = (ledger.read_json(round_.root / 'config.json') or {}).get('round1', {})
    named = config.base.path, config.policy.path, first.get('base.path'), first.get('policy.path')
    for path in named:
        if path and path not in (PREVIOUS, TINY) and not is_endpoint(path):
            return path
    raise UserError('base.path', '', 'needs the model that every round trains from')


def own_ppm(round_: Round, say: Callable[[str], None] = lambda text: None) -> pathlib.Path | None:
    """The PPM that the round has trained from its policy, or None.

    say: gets a line where there is one of an older policy.
    """
    policy, ppm = round_.folder / 'policy', round_.folder / 'ppm'
    if not trained.holds(ppm):
        return None
    if ledger.Stage(ppm, inputs=(policy,)).changed:
        say(f'{ppm} is left out, it was trained from an older policy: --stages=ppm makes it anew')
        return None
    return ppm


def check_model(path: Path, kind: str, flag: str) -> Any:
    """Raises UserError where no policy or PPM can be read at `path`, without reading its weights.

    kind: 'policy' or 'ppm'. A name of the hub is fetched.

    Returns its tokenizer; None of what a training wrote.
    """
    if trained.holds(path):
        found = trained.about(path)['kind']
        if found != kind:
            raise UserError(flag, path, f'holds a {found}, not a {kind}')
        return None
    if path == TINY:
        remedy = 'set --config.bootstrap.demonstrations'
        raise UserError(flag, TINY, 'is made by the bootstrap alone', remedy)
    if not str(path):
        expected = 'needs a model: a Hugging Face directory, a hub name, a .gguf file or a'
        raise UserError(flag, '', f'{expected} {kind} folder of a workdir')
    folder = pathlib.Path(path)
    rounds = (folder, *(path for _, path in ledger.rounds(folder)))
    if parts := [one / kind for one in rounds if trained.holds(one / kind)]:
        raise UserError(flag, path, 'a run, or a round of one, not a model', f'use {parts[-1]}')
    try:
        if kind == 'policy' and models.is_ppm(path):
            raise UserError('holds a ppm, not a policy')
        if kind == 'ppm' and folder.is_dir() and not list(folder.glob('value_head.*')):
            raise UserError('a policy, not a PPM: has no value_head.bin')
        return models.check(path, kind == 'ppm')
    except UserError as error:
        raise UserError(flag, path, str(error)) from None


def load_model(
    path: Path, kind: str, dtype: str, *, mesh=None, weights: str = ''
) -> models.Policy | models.PPM:
    """A policy or a PPM (`kind`) from any of the places of the module's docstring.

    weights: as of the setting `policy.weights`.
    """
    if path in ('', TINY):
        check_model(path, kind, f'--config.{kind}.path')
    return models.load_as(kind, path, dtype, mesh=mesh, weights=weights)


def finished(folder: pathlib.Path, what: str, flag: str) -> None:
    """Raises UserError where a training stage has not completed its folder."""
    if not (folder / 'done.json').exists():
        other = 'or name a model' if what in ('policy', 'ppm') else f'--stages={what} comes first'
        raise UserError(
            flag,
            expected=f'{folder} holds no finished {what}',
            remedy=f'run that round in this workdir, {other}',
        )
