"""Self-evolution: rounds in which a policy searches, and learns from what it found.

A complete stage is skipped and an incomplete one goes on, so killing a run loses at most what was
in flight; how, `stages.running` says. What a stage does, its file in `stages` says.
"""

import pathlib
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from rstar_jax import parallel, report
from rstar_jax.job import hosts
from rstar_jax.report import terminal
from rstar_jax.settings import flatten, for_round, stages_of
from rstar_jax.settings.table import PREVIOUS, TINY
from rstar_jax.stages import BY_NAME, STAGES, Stage, running, searches

Row = tuple[int, Stage]  # the number of a round, what it does


def method(first: int, last: int) -> Iterator[tuple[int, str]]:
    """Every stage of the rounds first..last, in order: (round, name).

    The base model is the same in each round. Policy 0 is what the run starts from; PPM 0 is none.
    """
    yield 0, 'bootstrap'  #      demonstrations                     -> policy 0
    yield 0, 'base'  #           base model                         -> its results
    yield 0, 'eval'  #           policy 0, PPM 0                    -> results of the start
    for k in range(first, last + 1):
        yield k, 'synthesize'  # known problems, policy k-1         -> new problems
        yield k, 'search'  #     problems, policy k-1, PPM k-1      -> trees
        yield k, 'curate'  #     trees                              -> SFT examples, pairs of steps
        yield k, 'sft'  #        base model, SFT examples           -> policy k
        yield k, 'ppm'  #        policy k, pairs of steps           -> PPM k
        yield k, 'eval'  #       policy k, alone and with PPM k     -> results
        yield k, 'export'  #     policy k, PPM k                    -> Hugging Face directories


def run(config: ConfigDict, workdir: str, names: Sequence[str]) -> None:
    """Runs rounds first_round..last_round of `config`, of each the stages in `names`.

    Raises:
      UserError: what the config names does not exist, or does not fit what the workdir holds.
    """
    with running.opened(workdir) as opened:
        # Where JAX has none of an accelerator it takes the CPU.
        if hosts.is_first() and config.job.leases != searches.RAY:
            print(f'devices: {parallel.devices_in_use()}', flush=True)

        def after(root: pathlib.Path) -> None:
            report.attempt(root, STAGES)
            opened.push()

        todo = [(opened.round(config, number), stage) for number, stage in rows(config, names)]
        running.run_all(todo, after)
        if hosts.is_first():
            terminal.show(opened.root, STAGES)


def rows(config: ConfigDict, names: Sequence[str]) -> list[Row]:
    """Of `method`, what a run does: what is asked for and has something to do.

    names: the stages of all rounds; a round's `stages` in the schedule leaves some of them out.
    """
    first = max(1, config.first_round)
    every = [(k, BY_NAME[name]) for k, name in method(first, config.last_round)]
    found = [(k, stage) for k, stage in every if stage.called in names and asked(config, k, stage)]
    starts = _starts(config, any(k and stage.name == 'eval' for k, stage in found))
    return [(k, stage) for k, stage in found if k or stage.name in starts]


def _starts(config: ConfigDict, measured: bool) -> set[str]:
    """Which stages of round 0 have a meaning; measured: whether other rounds are."""
    starts = {'bootstrap'}
    # The round that made the policy has measured it.
    known = config.first_round > 1 and config.policy.path == PREVIOUS
    if (measured or config.first_round == 0) and not known:
        starts.add('eval')
        base = config.base.path
        another = base != config.policy.path or config.bootstrap.demonstrations
        if base not in ('', TINY) and another:
            starts.add('base')
    return starts


def asked(config: ConfigDict, number: int, stage: Stage) -> bool:
    """Whether a stage has something to do in a round, and the schedule does not leave it out."""
    own = config.schedule.get(f'round{number}', {}).get('stages')
    if own and stage.name not in stages_of(own):
        return False
    settings = flatten(for_round(config, number))
    return bool(settings.get(stage.asked_by, True))
