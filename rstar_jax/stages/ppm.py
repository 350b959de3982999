"""The next process preference model: the round's policy, trained on the round's pairs."""

from rstar_jax import data, training
from rstar_jax.evals import metrics
from rstar_jax.job.progress import percent
from rstar_jax.settings.errors import UserError
from rstar_jax.stages import checkpoints, curate
from rstar_jax.stages.round import Round
from rstar_jax.stages.sft import Sft
from rstar_jax.stages.stage import Ahead, Figures, Work
from rstar_jax.stages.train import Training


class Ppm(Training):
    """Trains the next PPM from the round's policy on the round's pairs or trajectories."""

    name = 'ppm'
    folder = 'ppm'
    needs = ('curate', 'policy')

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        loss = round_.config.training.ppm.loss
        curate.check_examples(round_, self.name, training.LOSSES[loss][0], ahead)
        policy = Sft().place(round_)
        path = checkpoints.base_path(round_) if policy in ahead.made else policy
        self.check_memory(round_, ahead, path)
        return super().check(round_, ahead)

    def run(self, round_: Round, work: Work) -> Figures:
        folder, loss = round_.folder / 'curate', round_.config.training.ppm.loss
        kind, _ = training.LOSSES[loss]
        examples = data.load_examples(folder, kind)
        if not len(examples):
            raise UserError(
                str(folder),
                expected=f'no {kind} to train on with loss={loss}',
                remedy='raise --config.search.rollouts or candidates, or leave the stage out with '
                '--stages',
            )
        path = round_.folder / 'policy'
        checkpoints.finished(path, 'policy', work.folder.name)
        mesh = self.mesh(round_, path)
        policy = checkpoints.load_model(path, 'policy', self.dtype(round_), mesh=mesh)
        whole = any(folder.glob('trajectories-*'))  # given pairs come alone
        trajectories = data.load_examples(folder, 'trajectories') if whole else ()
        more = {'trajectories': trajectories, 'mesh': mesh}
        return self.train(round_, work, policy, examples, **more)

    def describe(self, figures: Figures) -> str:
        text = super().describe(figures)
        for name, key in (('pair', 'held_out'), ('answer', 'answer')):
            pairs = figures.get(f'{key}_pairs')
            if pairs:
                when = ('before', 'after')
                before, after = (figures.get(f'{name}_accuracy_{x}') for x in when)
                problems = figures[f'{key}_problems']
                text += (
                    f', held-out {name} accuracy {percent(before)} -> {percent(after)} '
                    f'({pairs:.0f} pairs of {problems:.0f} problems{_chance(after, problems)})'
                )
        return text


def _chance(share: float | None, problems: int) -> str:
    """Says where a judge is not told from one that guesses: a PPM that has learnt nothing.

    Pairs of one problem are not independent, so the interval is of as many pairs as problems.
    """
    low = 0.0 if share is None else metrics.wilson(share, int(problems))[0]
    return '' if share is None or low > 0.5 else ': WITHIN CHANCE'
