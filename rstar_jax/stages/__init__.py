"""The stages of a round, a file each: what a stage is made from, needs and makes, and what it does.

A new one is a file with a `Stage` and a line in STAGES, here; `rounds.method` says when it runs,
the table of settings which of these bind it.
"""

from rstar_jax.stages.bootstrap import Bootstrap
from rstar_jax.stages.curate import Curate
from rstar_jax.stages.evaluate import Evaluate, EvaluateBase
from rstar_jax.stages.export import Export
from rstar_jax.stages.ppm import Ppm
from rstar_jax.stages.round import Round, asked
from rstar_jax.stages.search import Search
from rstar_jax.stages.sft import Sft
from rstar_jax.stages.stage import Stage
from rstar_jax.stages.synthesize import Synthesize

STAGES: tuple[Stage, ...] = (
    Bootstrap(),
    Synthesize(),
    Search(),
    Curate(),
    Sft(),
    Ppm(),
    EvaluateBase(),
    Evaluate(),
    Export(),
)
BY_NAME = {stage.name: stage for stage in STAGES}

__all__ = ['BY_NAME', 'STAGES', 'Round', 'Stage', 'asked']
