"""The next policy: the base model, trained on the round's trajectories."""

import contextlib
from typing import Any

from rstar_jax import data, steps
from rstar_jax.job.progress import percent
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import checkpoints, curate
from rstar_jax.stages.round import Round
from rstar_jax.stages.stage import Ahead, Figures, Work
from rstar_jax.stages.train import Training


class PolicyTraining(Training):
    """A training of a policy."""

    folder = 'policy'

    def describe(self, figures: Figures) -> str:
        form = figures.get('form_after')
        if not form:
            return super().describe(figures)
        marks = {mark: n / due for mark, (n, due) in form.items() if mark not in steps.OUTPUT_MARKS}
        mark = min(marks, key=marks.get)
        least = f'at least {percent(marks[mark])} ({mark})'
        return f'{super().describe(figures)}, marks likeliest where due: {least}'


class Sft(PolicyTraining):
    """Trains the next policy from the base model, the same each round."""

    name = 'sft'
    needs = ('curate',)

    def bound(self, round_: Round) -> dict[str, Any]:
        settings = super().bound(round_)
        if not round_.config.base.path:
            # Whatever the first policy is, it binds.
            with contextlib.suppress(UserError):
                base = checkpoints.base_path(round_)
                if base == round_.config.policy.path:
                    settings['base.path'] = base
        return settings

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        curate.check_examples(round_, self.name, 'sft', ahead)
        path = checkpoints.base_path(round_)
        ahead.tokenizer(path, 'policy', '--config.base.path')
        self.check_memory(round_, ahead, path)
        return super().check(round_, ahead)

    def run(self, round_: Round, work: Work) -> Figures:
        examples = data.load_examples(round_.folder / 'curate', 'sft')
        if not len(examples):
            raise UserError(
                str(round_.folder / 'curate'),
                expected='no trajectory to train on, the search solved no problem',
                remedy='raise --config.search.rollouts or candidates, or use a stronger policy',
            )
        path = checkpoints.base_path(round_)
        mesh = self.mesh(round_, path)
        policy = checkpoints.load_model(path, 'policy', self.dtype(round_), mesh=mesh)
        return self.train(round_, work, policy, examples, mesh=mesh)
