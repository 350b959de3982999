"""A first policy out of demonstrations, for runs that have some."""

from rstar_jax.settings.table import TINY
from rstar_jax.stages import checkpoints, problems
from rstar_jax.stages.round import Round
from rstar_jax.stages.sft import PolicyTraining
from rstar_jax.stages.stage import Ahead, Figures, Work


class Bootstrap(PolicyTraining):
    """Trains the run's first policy, a stage of round 0."""

    name = 'bootstrap'
    asked_by = 'bootstrap.demonstrations'

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        path = round_.config.policy.path
        if path != TINY:
            checkpoints.check_model(path, 'policy', 'policy.path')
        self.check_memory(round_, ahead, path)
        return super().check(round_, ahead)

    def run(self, round_: Round, work: Work) -> Figures:
        config = round_.config
        mesh = self.mesh(round_, config.policy.path)
        policy = checkpoints.first_policy(config, self.dtype(round_), mesh)
        examples = problems.world(config).demonstrations
        return self.train(round_, work, policy, examples, mesh=mesh)
