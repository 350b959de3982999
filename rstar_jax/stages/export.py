"""What the round trained as Hugging Face directories."""

import pathlib
from collections.abc import Mapping

from rstar_jax import export as exporting
from rstar_jax import parallel
from rstar_jax.stages import checkpoints
from rstar_jax.stages.round import Round
from rstar_jax.stages.stage import Figures, Stage, Work


class Export(Stage):
    """Writes the round's policy, and its PPM where there is one, for others."""

    name = 'export'
    folder = 'export'
    needs = ('policy',)
    uses = ('ppm',)

    def inputs(self, round_: Round) -> list[pathlib.Path]:
        policy, ppm = super().inputs(round_)
        return [policy, ppm] if checkpoints.own_ppm(round_) else [policy]

    def run(self, round_: Round, work: Work) -> Figures:
        made, folder = {}, round_.folder
        checkpoints.finished(folder / 'policy', 'policy', self.label(round_.number))
        ppm = checkpoints.own_ppm(round_, work.line.say)
        for part in filter(None, (folder / 'policy', ppm)):
            title = f'{round_.root.absolute().name}-round{round_.number}-{part.name}'
            exporting.export_model(part, work.folder / part.name, name=title)
            made[part.name] = part.name
            parallel.give_memory_back()
        return made

    def describe(self, figures: Figures) -> str:
        return ', '.join(figures)

    def results(self, figures: Figures) -> Mapping[str, str]:
        return figures
