"""What is known of each stage before it runs: where it lies, what it is made from, what binds it.

`rounds`, which has what the stages do, the checks before a run, the config's keys and the report go
by this table.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One kind of stage.

    Attributes:
      folder: of its round, for what it makes.
      needs: folders of its round that it cannot do without.
      uses: those that it is made from as well, where they are there.
      binds: the config keys, or sections, that its results depend on: they bind it once it has
        begun.
      grows: of these, what may be raised or added to: the stage goes on then.
    """

    folder: str
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()


BASE = 'base'  # evaluates the model that rounds train from: a stage of round 0, in base/eval
TRAININGS = ('bootstrap', 'sft', 'ppm')
_EVAL = Kind(
    'eval',
    needs=('policy',),
    uses=('ppm',),
    binds=('seed', 'eval', 'execution', 'policy.dtype', 'policy.weights', 'search.one_size'),
    grows=('eval.strategies', 'eval.benchmarks', 'eval.limit'),
)
# In the order in which they run. `order.stage_of` adds what depends on the settings: the models of
# a search, the trees of earlier rounds, the model at base.path.
KINDS = {
    'bootstrap': Kind('policy', binds=('seed', 'policy.path', 'bootstrap', 'training.bootstrap')),
    'synthesize': Kind(
        'synthesize', binds=('seed', 'policy', 'data', 'search', 'execution', 'synthesize')
    ),
    'search': Kind(
        'search',
        uses=('synthesize',),
        binds=('seed', 'policy', 'ppm', 'data', 'synthesize', 'search', 'execution'),
        grows=('data.limit',),
    ),
    'curate': Kind('curate', needs=('search',), binds=('curate', 'data.overlap')),
    'sft': Kind('policy', needs=('curate',), binds=('seed', 'base', 'training.sft')),
    'ppm': Kind('ppm', needs=('curate', 'policy'), binds=('seed', 'training.ppm')),
    BASE: Kind('eval', binds=(*_EVAL.binds, 'base.path'), grows=_EVAL.grows),
    'eval': _EVAL,
    'export': Kind('export', needs=('policy',), uses=('ppm',)),
}
STAGES = tuple(name for name in KINDS if name != BASE)  # those that a round may be asked for
# The settings without which a stage has nothing to do.
ASKED_BY = {
    'bootstrap': 'bootstrap.demonstrations',
    'synthesize': 'synthesize.problems',
    'eval': 'eval.benchmarks',
}
BINDS_START = ('policy', 'ppm', 'search.prompt')  # the evaluation of round 0, as well
# Of the sections that bind, but what is made is the same whatever they are.
UNBOUND = (
    *('data.folder', 'eval.folder', 'policy.requests', 'policy.seconds'),
    *(f'search.{key}' for key in ('slots', 'trees_in_flight', 'chunk', 'drafts', 'tensor')),
    *(f'execution.{key}' for key in ('isolation', 'workers')),
    *(
        f'training.{name}.{key}'
        for name in TRAININGS
        for key in ('attention', 'form', 'checkpoint_minutes')
    ),
)


def of_round(number: int, settings: Mapping[str, Any], asked: Collection[str]) -> list[str]:
    """The stages that a round runs, in their order: of those asked for, what has something to do.

    settings: the round's, by dotted key. The bootstrap is a stage of round 0.
    """
    own = STAGES[1:] if number else ('bootstrap', 'eval')
    return [name for name in own if name in asked and settings.get(ASKED_BY.get(name, ''), True)]


def bound(settings: Mapping[str, Any], binds: Sequence[str]) -> dict[str, Any]:
    """Of all settings, by dotted key, those that bind a stage; binds: as of `Kind`."""
    prefixes = tuple(f'{key}.' for key in binds)
    return {
        key: value
        for key, value in settings.items()
        if key not in UNBOUND and f'{key}.'.startswith(prefixes)
    }
