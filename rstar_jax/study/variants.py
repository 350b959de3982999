"""What is compared with the method: workdirs in which one thing is done differently, and rows.

Variant   a workdir made of some stages of one round, under settings that differ; all else in it
          is a link to the run's, or to another variant's
Row       one number of one variant's evaluation
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rstar_jax import rounds
from rstar_jax.settings import stages_of

RUN, SEARCHES = 'run', 'searches'
PLAIN, MANY = 'plain', 'many-samples'  # without a PPM
JUDGES = {'ORM': 'orm', 'PQM': 'pqm', 'PRM': 'prm', 'PPM': 'pairwise'}
FORMS = {
    'greedy': (PLAIN, 'greedy', 'greedy'),
    'majority': (PLAIN, 'sampled', 'majority'),
    'best of n': (SEARCHES, 'sampled', 'best'),
    'beam': (SEARCHES, 'beam', 'majority'),
    'DVTS': (SEARCHES, 'dvts', 'majority'),
    'MCTS': (SEARCHES, 'mcts', 'majority'),
    'PUCT': (SEARCHES, 'puct', 'majority'),
}
TITLES = {
    'data': 'What SFT learns from: greedy after one round, for as many tokens of search',
    'judge': 'Judge: models of the last round, for as many tokens',
    'strength': 'PPM of each round, with the policy of the first, for as many tokens',
    'form': 'Form of the search: models of the last round, for as many tokens',
    'rollouts': 'Rollouts of one tree: models of the last round',
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A workdir in which something is done differently.

    Attributes:
      name: of its folder.
      round: the one whose stages it runs.
      shared: {its folder: the folder that is linked there}, below `round` or the seed's folder.
      stages: those that it runs itself.
      settings: what differs, by key of the config.
    """

    name: str
    round: int
    shared: Mapping[str, str]
    stages: tuple[str, ...]
    settings: Mapping[str, Any]


ITSELF = Variant(RUN, 1, {}, (), {})  # nothing differs; its row is of round 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One number: of which variant, of which strategy of its evaluation, chosen how."""

    group: str
    name: str
    variant: str
    strategy: str = 'greedy'
    mode: str = 'greedy'


def variants(config: ConfigDict, tokens: int = 0) -> dict[str, list[Variant]]:
    """{group: its variants}; in the group '' those that several groups use.

    tokens: that the run's first search sampled for a problem; as many samples are trained on.
    """
    last = config.last_round
    policy, own = _of_run(last, 'policy'), _of_run(last, 'policy', 'ppm')
    strategies = 'eval.strategies'
    return {
        'data': _learning(config, tokens),
        '': [
            Variant(PLAIN, last, policy, ('eval',), {strategies: 'sampled,unguided'}),
            Variant(SEARCHES, last, own, ('eval',), {strategies: 'sampled,beam,dvts,mcts,puct'}),
        ],
        'judge': [
            Variant(
                loss,
                last,
                _of_run(last, 'policy', 'curate'),
                ('ppm', 'eval'),
                {'training.ppm.loss': loss, strategies: 'sampled,mcts'},
            )
            for loss in JUDGES.values()
            if loss != config.training.ppm.loss
        ],
        'strength': _strength(config),
        'rollouts': _rollouts(config),
    }


def _of_run(number: int, *names: str, other: int | None = None) -> dict[str, str]:
    """Links to folders of the run's round, or for another round's."""
    return {f'round{number}/{name}': f'{RUN}/round{other or number}/{name}' for name in names}


def _learning(config: ConfigDict, tokens: int) -> list[Variant]:
    """What SFT learns from in round 1."""
    start = _of_run(0, 'policy') if config.bootstrap.demonstrations else {}
    searched = start | _of_run(1, 'synthesize')  # where the run has written problems
    from_samples = start | {'round1/search': 'self-samples/round1/search'}
    samples = {
        'search.strategy': 'mcts',
        'search.candidates': 1,
        'search.rollouts': 1,
        'search.mean_tokens': tokens,
        'search.more_rollouts': (),
    }
    alone = {'eval.strategies': 'greedy', 'eval.mean_tokens': 0}
    right, random = {'curate.choice': 'right'} | alone, {'curate.choice': 'any'} | alone
    learn = 'curate', 'sft', 'eval'
    return [
        Variant('self-samples', 1, searched, ('search', *learn), samples | random),
        Variant('rejection', 1, from_samples, learn, right),
        Variant('unranked', 1, start | _of_run(1, 'search'), learn, right),
    ]


def _strength(config: ConfigDict) -> list[Variant]:
    """The PPM of each round with the policy of the first."""
    numbers = judged(config)
    return [
        Variant(
            f'ppm{number}',
            1,
            _of_run(1, 'policy') | _of_run(1, 'ppm', other=number),
            ('eval',),
            {'eval.strategies': 'unguided,mcts' if number == numbers[0] else 'mcts'},
        )
        for number in numbers
    ]


def _rollouts(config: ConfigDict) -> list[Variant]:
    """One tree of more and more rollouts, and samples beside it."""
    last, asked = config.last_round, config.ablations.rollouts
    few = {'eval.mean_tokens': 0, 'eval.limit': config.ablations.problems or config.eval.limit}
    many = few | {'eval.strategies': 'sampled', 'eval.samples': max(asked, default=1)}
    one_tree = few | {'eval.strategies': 'mcts', 'eval.trajectories': 1}
    own = _of_run(last, 'policy', 'ppm')
    return [
        Variant(MANY, last, _of_run(last, 'policy'), ('eval',), many),
        *(
            Variant(f'rollouts{n}', last, own, ('eval',), one_tree | {'eval.rollouts': n})
            for n in asked
        ),
    ]


def judged(config: ConfigDict) -> list[int]:
    """The rounds that train a PPM."""
    names = stages_of(config.stages)
    return [number for number, stage in rounds.rows(config, names) if stage.name == 'ppm']


def rows_of(config: ConfigDict) -> Iterator[Row]:
    """All rows, group by group, in the order of the table."""
    yield Row('data', 'self-samples', 'self-samples')
    yield Row('data', 'rejection sampling', 'rejection')
    yield Row('data', 'trees, any right trajectory', 'unranked')
    yield Row('data', 'trees, best by Q value', RUN)
    yield Row('judge', 'no judge, MCTS', PLAIN, 'unguided', 'majority')
    for name, loss in JUDGES.items():
        variant = SEARCHES if loss == config.training.ppm.loss else loss
        yield Row('judge', f'{name}, best of n', variant, 'sampled', 'best')
        yield Row('judge', f'{name}, MCTS', variant, 'mcts', 'majority')
    rounds_ = judged(config)
    yield Row('strength', 'no PPM', f'ppm{rounds_[0]}', 'unguided', 'majority')
    for number in rounds_:
        yield Row('strength', f'PPM of round {number}', f'ppm{number}', 'mcts', 'majority')
    for name, (variant, strategy, mode) in FORMS.items():
        yield Row('form', name, variant, strategy, mode)
    for number in config.ablations.rollouts:
        yield Row('rollouts', str(number), f'rollouts{number}', 'mcts', 'majority')


def ours(config: ConfigDict) -> dict[str, str]:
    """{group: the row that has all parts of the method}."""
    return {
        'data': 'trees, best by Q value',
        'judge': 'PPM, MCTS',
        'strength': f'PPM of round {config.last_round}',
        'form': 'MCTS',
    }
