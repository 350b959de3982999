"""Stages by their names, as tests ask for them."""

from collections.abc import Sequence
from typing import Any

from rstar_jax import rounds
from rstar_jax.job import ledger
from rstar_jax.job.progress import Line
from rstar_jax.stages import BY_NAME, Round, running
from rstar_jax.stages.stage import Work


def rows(config, names: Sequence[str]) -> list[tuple[int, str]]:
    """What a run does: (number of a round, name of a stage)."""
    return [(number, stage.name) for number, stage in rounds.rows(config, names)]


def kept(round_: Round, name: str) -> ledger.Stage:
    """The bookkeeping of a stage."""
    return BY_NAME[name].kept(round_)


def check(asked: Sequence[tuple[Round, str]]) -> list[str]:
    """What is told of stages before they run."""
    return running.check([(round_, BY_NAME[name]) for round_, name in asked])


def run(round_: Round, name: str) -> None:
    """A stage with all that is around it."""
    running.run_stage(round_, BY_NAME[name])


def work(round_: Round, name: str, stage: ledger.Stage | None = None) -> dict[str, Any]:
    """What a stage does, and nothing around it; returns its figures."""
    with Line(name) as line:
        own = stage or kept(round_, name)
        return BY_NAME[name].run(round_, Work(own, line, own.beat))
