"""What a study cannot do, told before it begins."""

import jax
from ml_collections import ConfigDict

from rstar_jax import rounds
from rstar_jax.settings import for_round, groups_of, stages_of
from rstar_jax.settings.errors import UserError
from rstar_jax.study.variants import judged

TREES = (
    'give it trees, as by --config.search.candidates=3 --config.search.rollouts=4 '
    '--config.search.trees=1 --config.curate.choice=best'
)


def check(config: ConfigDict, stages: str) -> None:
    """Raises UserError for what ablations cannot do.

    stages: of the command line, where they would leave some out.
    """
    last = config.last_round
    if stages:
        remedy = '--config.stages says which the rounds have, --config.ablations.groups what is run'
        raise UserError('--stages', stages, 'ablations run all', remedy)
    if jax.process_count() > 1:
        needs = f'needs one process, {jax.process_count()} were started'
        raise UserError('ablations.seeds', config.ablations.seeds, needs)
    if not config.eval.benchmarks:
        raise UserError('eval.benchmarks', '', 'ablations compare what is right of some')
    if config.first_round > 1:
        raise UserError('first_round', config.first_round, 'ablations begin with round 1')
    if last not in judged(config):
        raise UserError(
            'stages',
            config.stages,
            'ablations need a PPM of the last round',
            f'add ppm here, and to --config.schedule.round{last}.stages where it is set',
        )
    for number in range(1, last + 1):
        _check_budget(for_round(config, number).eval, number)
    if config.search.agree:
        needs = 'ablations need as many trees of each problem'
        raise UserError('search.agree', config.search.agree, needs, 'set it to 0')
    if 'data' in groups_of(config.ablations.groups):
        _check_data(config)


def _check_budget(settings: ConfigDict, number: int) -> None:
    if not settings.trajectories:
        needs = f'needs at least 1 in round {number}'
        raise UserError('eval.trajectories', 0, 'ablations compare searches', needs)


def _check_data(config: ConfigDict) -> None:
    """Of the group that compares what round 1 learns from."""
    first = for_round(config, 1)
    ran = rounds.rows(config, stages_of(config.stages))
    ran = {stage.name for number, stage in ran if number == 1}
    lacking = [name for name in ('search', 'curate', 'sft', 'eval') if name not in ran]
    given = first.curate.sft or first.curate.pairs
    if lacking or given:
        why = f'examples come from {given}' if given else f'round 1 has no {lacking[0]}'
        needs = f'data compares what round 1 learns from, and {why}'
        raise UserError(
            'ablations.groups', config.ablations.groups, needs, 'change that, or name other groups'
        )
    if first.search.candidates == 1:
        needs = 'ablations compare trees with samples, and round 1 draws samples'
        raise UserError('search.candidates', 1, needs, TREES)
