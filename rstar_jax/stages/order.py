"""Which stages a run has, in which order, and what each is made from and bound to."""

import contextlib
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from rstar_jax.job import ledger
from rstar_jax.settings import configs, kinds, table
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import curating, preflight, sources
from rstar_jax.stages.sources import Round

Row = tuple[int, str]  # number of a round, name of a stage


def rows(config: ConfigDict, names: Sequence[str]) -> list[Row]:
    """Everything that a run does, in its order.

    names: the stages of all rounds; a round's `stages` in the schedule leaves some of them out.
    """
    first = max(1, config.first_round)
    at_start = _stages_of_round(config, 0, names)
    found = [(0, 'bootstrap')] if 'bootstrap' in at_start else []
    starts = _starts(config) if 'eval' in at_start else []
    if config.first_round == 0:
        found, starts = found + starts, []
    for number in range(first, config.last_round + 1):
        for name in _stages_of_round(config, number, names):
            if name == 'eval':  # the first
                found, starts = found + starts, []
            found.append((number, name))
    return found


def _starts(config: ConfigDict) -> list[Row]:
    """Evaluations of what the run starts from: of the first policy, and of the model that every
    training starts from, where that is another."""
    if config.first_round > 1 and config.policy.path == configs.PREVIOUS:
        return []  # the round that made the policy has evaluated it
    base = config.base.path
    starts = [(0, 'eval')]
    other = base != config.policy.path or config.bootstrap.demonstrations
    if base not in ('', table.TINY) and other:
        starts.insert(0, (0, kinds.BASE))
    return starts


def _stages_of_round(config: ConfigDict, number: int, names: Sequence[str]) -> list[str]:
    """Those of `names` that a round runs; its schedule may leave some out."""
    own = config.schedule.get(f'round{number}', {}).get('stages')
    chosen = [name for name in names if name in configs.stages_of(own)] if own else names
    return kinds.of_round(number, configs.flatten(configs.for_round(config, number)), chosen)


def stage_of(round_: Round, name: str) -> ledger.Stage:
    """The bookkeeping of one stage."""
    kind = kinds.KINDS[name]
    inputs, binds = [round_.folder / folder for folder in (*kind.needs, *kind.uses)], kind.binds
    if name == 'curate':
        inputs = [] if preflight.given(round_) else curating.searches(round_)
    elif name == kinds.BASE:
        inputs = [pathlib.Path(round_.config.base.path)]
    elif name in ('eval', 'export') and not sources.own_ppm(round_):
        inputs = inputs[:1]
    if name in ('search', 'synthesize') or (name == 'eval' and not round_.number):
        named = [sources.searching_path(round_, model) for model in ('policy', 'ppm')]
        inputs += [pathlib.Path(path) for path in named if path]
        binds += kinds.BINDS_START if name == 'eval' else ()
    settings = kinds.bound(configs.flatten(round_.config), binds)
    stage = ledger.Stage(round_.folder_of(name), settings, tuple(inputs), growing=kind.grows)
    if name == 'sft' and not round_.config.base.path:
        # Whatever the first policy is, it binds.
        with contextlib.suppress(UserError):
            base = sources.base_path(round_)
            if base == round_.config.policy.path:
                settings['base.path'] = base
    if name == 'synthesize' and stage.done is not None and not stage.changed:
        del settings['data.limit']  # what was written stands, however many problems are searched
    if name == 'search':
        if round_.config.data.solved:
            stage.inputs += tuple(sources.earlier_searches(round_))
        stage.precious = True
        stage.followers = tuple(f for f in round_.later('search') if ledger.Stage(f).binding)
    return stage
