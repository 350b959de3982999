"""What the stages that train have in common: bootstrap, sft and ppm."""

import contextlib
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from rstar_jax import models, parallel, training
from rstar_jax.job.progress import of_training
from rstar_jax.models import trained
from rstar_jax.parallel.memory import GIB, device_bytes
from rstar_jax.settings import errors, table, training_values
from rstar_jax.settings.errors import UserError
from rstar_jax.settings.table import TINY
from rstar_jax.stages import checkpoints
from rstar_jax.stages.round import Round
from rstar_jax.stages.stage import Ahead, Figures, Stage, Work
from rstar_jax.training.defaults import compute_dtype
from rstar_jax.training.memory import held


class Training(Stage):
    """A stage that trains a model by the settings training.NAME."""

    def check(self, round_: Round, ahead: Ahead) -> list[str]:
        with self.of_settings():
            training.check(self.name, self.settings(round_))
        return []

    def of_settings(self) -> contextlib.AbstractContextManager[None]:
        """Within it, errors of a training's arguments are of its settings."""
        names = {key: row.name for key, row in table.training_rows(self.name).items()}
        return errors.of_setting(f'training.{self.name}', names)

    def settings(self, round_: Round) -> ConfigDict:
        """As of `training.settings`."""
        return training.settings(self.name, training_values(round_.config, self.name))

    def check_memory(self, round_: Round, ahead: Ahead, path: checkpoints.Path) -> None:
        """Raises UserError where the devices cannot hold a training's model and its moments.

        What it needs beside these it tells itself, before its first step. path: of the model, or
        of one of its shape.
        """
        if path == TINY or (isinstance(path, pathlib.Path) and not trained.holds(path)):
            return  # it will be made here, in this memory
        if str(path) not in ahead.shapes:
            ahead.shapes[str(path)] = models.read_config(path)
        own, shape = self.settings(round_), ahead.shapes[str(path)]
        dtype, headless = compute_dtype(own), self.name == 'ppm'
        need = held(shape, dtype, own, headless).least
        need /= parallel.shares(shape, jax.device_count())
        memory = device_bytes(parallel.local_mesh())
        if need > memory > 0:
            lora = f'--config.training.{self.name}.lora=16, ' if not own.lora else ''
            raise UserError(
                f'--config.training.{self.name}',
                expected=f'at least {need / GIB:.1f} GiB of {path} have to lie on each device, '
                f'which has {memory / GIB:.1f} GiB',
                remedy=f'{lora}a smaller model or more devices',
            )

    def dtype(self, round_: Round) -> str:
        """That in which the model is loaded from which it starts."""
        return training.start_dtype(self.settings(round_))

    def mesh(self, round_: Round, path: checkpoints.Path) -> jax.sharding.Mesh | None:
        """Of the training of a model at a path; None for one device."""
        if jax.device_count() == 1:
            return None
        shape = None if path == TINY else models.read_config(path)
        return parallel.training_mesh(self.settings(round_).batch_size, shape)

    def train(
        self, round_: Round, work: Work, policy: models.Policy, examples, **more: Any
    ) -> Figures:
        """Trains from `policy`; takes its arrays over."""
        own = self.settings(round_)
        own.seed = round_.config.seed

        def tell(now: dict[str, float]) -> None:
            work.beat()
            work.line.show(*of_training(now))
            if 'step' in now:
                name = f'round{round_.number}/{self.folder}'
                round_.events.add(name, now, int(now['step']))

        train = training.ppm if self.name == 'ppm' else training.sft
        how = {'progress': tell, 'release': True}
        with self.of_settings():
            _, figures = train(policy, examples, own, work.folder, **how, **more)
        return figures

    def describe(self, figures: Figures) -> str:
        return (
            f'loss {figures["loss_first"]:.3f} -> {figures["loss_last"]:.3f} in '
            f'{figures["steps"]} steps ({figures["tokens_per_second"]:.0f} tokens/s)'
        )
