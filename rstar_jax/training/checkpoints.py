"""Orbax checkpoints: the state of a training, to go on from; its model is `models.trained`'s.

DIR/state/STEP/     what is trained, optimiser state; the newest only, gone when all is done
DIR/best/STEP/      what is trained at the least held-out loss, with keep='best'; gone likewise
DIR/adapter/        of a training with LoRA, for PEFT
"""

import contextlib
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from rstar_jax.models import trained
from rstar_jax.settings.errors import UserError

KEPT = 1  # states on disk; a new one is whole before the old one goes


class States(contextlib.AbstractContextManager):
    """The states of one training, by step; a context manager, whose end waits for all writing.

    Args:
      directory: of the training.
      folder: in it, 'state' or 'best'.
      background: whether `save` returns while the state is being written. None: where the devices
        have a memory of their own. Beside them, a state that is written is a copy of it in the
        host's memory, 12 bytes a parameter; on a CPU that would be the memory, and the cores, that
        the training needs.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        folder: str = 'state',
        *,
        background: bool | None = None,
    ):
        self._background = jax.default_backend() != 'cpu' if background is None else background
        # What a killed process has left half written would stay, as large as a state each time.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, create=True, cleanup_tmp_directories=True
        )
        self.directory = pathlib.Path(directory)
        self._path = path = self.directory.resolve() / folder
        handlers = {'state': trained.handler(), 'about': ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(path, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        """Writes the state after `step` steps, unless it is there; waits for the one before.

        The arrays may be donated as soon as this returns: orbax copies them to the host first, and
        where their memory is the host's own, JAX does not donate what is still being read.

        state: pytree of arrays. about: small JSON values kept with it.

        Raises OSError: the disk has no room for them.
        """
        self.wait()
        if step == self._manager.latest_step():
            return
        trained.check_disk(self._path, state)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=args)
        if not self._background:
            self.wait()

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Returns (step, about) of the newest state, or None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return step, self._manager.restore(step, args=args)['about']

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state after `step` steps.

        like: as from `abstract`.
        """
        args = ocp.args.Composite(state=trained.restore_args(like))
        return self._manager.restore(step, args=args)['state']

    def close(self) -> None:
        self._manager.close()

    def __exit__(self, *error) -> None:
        self.close()


class Best:
    """The parameters of the least held-out loss before the last step: on disk, with their step.

    Step 0 are those that the training begins with.
    """

    def __init__(self, states: States, own: dict[str, str]):
        """states: of the folder 'best'. own: as of `check_own`."""
        self._states, self._own = states, own
        self._step, about = states.newest() or (-1, None)
        if about is not None:
            check_own(about, own, states.directory)
        self._found = about['found'] if about else {'held_out_loss': math.inf}

    def offer(self, step: int, params, found: dict[str, Any]) -> None:
        """Writes what was measured after `step` if it is better.

        A step that is taken again after a kill may have been written by the run before.
        """
        if step > self._step and found['held_out_loss'] < self._found['held_out_loss']:
            self._step, self._found = step, found
            self._states.save(step, params, self._own | {'found': found})

    def wait(self) -> None:
        """Returns when all that was offered is on disk."""
        self._states.wait()

    def choose(self, step: int, params, found: dict[str, Any]) -> tuple[int, Any, dict[str, Any]]:
        """(step, parameters, what was measured) of the best, the last step's given."""
        if found['held_out_loss'] < self._found['held_out_loss'] or self._step < 0:
            return step, params, found
        self.wait()
        params = self._states.restore(self._step, abstract(params))
        return self._step, params, self._found


def check_own(about: dict[str, Any], own: dict[str, str], directory: str | os.PathLike) -> None:
    """Raises UserError where a state is not of the training that `own` tells of.

    about: what lies beside the state. own: fingerprint, layout, dtype.
    """
    expected, remedy = '', 'remove it or choose another directory'
    if about['fingerprint'] != own['fingerprint']:
        dtype = about.get('dtype', own['dtype'])
        differs = f'; in {dtype}, here in {own["dtype"]}' if dtype != own['dtype'] else ''
        expected = 'holds the state of another training (other settings, examples or start'
        expected += f'{differs})'
    elif about.get('layout') != own['layout']:
        expected = 'holds the state of a training by another version of rstar_jax'
        remedy = 'go on with that one, or remove it to begin anew'
    if expected:
        raise UserError(str(directory), expected=expected, remedy=remedy)


def abstract(state: Any) -> Any:
    """Shape, dtype and sharding of each array."""
    return jax.tree.map(lambda x: trained.placed(x, x.sharding), state)


def delete_states(directory: str | os.PathLike) -> None:
    """Removes the states of a training whose model is on disk."""
    if jax.process_index() == 0:
        for folder in ('state', 'best'):
            shutil.rmtree(pathlib.Path(directory) / folder, ignore_errors=True)
