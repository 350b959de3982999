"""Orbax checkpoints: the state of a training, to go on from; its model is `models.trained`'s.

DIR/state/STEP/     what is trained, optimiser state; the newest only, gone when all is done
DIR/best/STEP/      what is trained at the least held-out loss, with keep='best'; gone likewise
DIR/adapter/        of a training with LoRA, for PEFT
"""

import contextlib
import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from rstar_jax.models import trained

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
        self._path = path = pathlib.Path(directory).resolve() / folder
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


def abstract(state: Any) -> Any:
    """Shape, dtype and sharding of each array."""
    return jax.tree.map(lambda x: trained.placed(x, x.sharding), state)


def delete_states(directory: str | os.PathLike) -> None:
    """Removes the states of a training whose model is on disk."""
    if jax.process_index() == 0:
        for folder in ('state', 'best'):
            shutil.rmtree(pathlib.Path(directory) / folder, ignore_errors=True)
