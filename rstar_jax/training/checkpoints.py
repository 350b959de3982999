"""Orbax checkpoints: the state of a training, to go on from, and the model that came of it.

    DIR/state/STEP/     what is trained, optimiser state; the newest only, gone when all is done
    DIR/best/STEP/      what is trained at the least held-out loss, with keep='best'; gone likewise
    DIR/params/         the model's parameters
    DIR/adapter/        of a training with LoRA, for PEFT
    DIR/model.json      kind (policy or ppm), config, squash
    DIR/tokenizer/      the tokenizer as transformers writes it

`model.json` is written last, by rename: a directory that has it is whole.
"""

import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, Sharding

from rstar_jax import atomic, models, parallel
from rstar_jax.errors import UserError
from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads, sharding

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
        handlers = {'state': _handler(), 'about': ocp.JsonCheckpointHandler()}
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
        _check_disk(self._path, state)
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
        args = ocp.args.Composite(state=_restore(like))
        return self._manager.restore(step, args=args)['state']

    def close(self) -> None:
        self._manager.close()

    def __exit__(self, *error) -> None:
        self.close()


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Compressed, weights take a tenth less, longer, and as much memory again while written."""
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def _check_disk(folder: pathlib.Path, arrays: Any) -> None:
    """Raises OSError where the disk has no room for the arrays: orbax fails in 200 lines."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < sum(x.nbytes for x in jax.tree.leaves(arrays)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _restore(like: Any) -> ocp.args.PyTreeRestore:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(like, restore_args=arguments)


def one_device() -> Mesh:
    """The mesh of the first device alone."""
    return parallel.global_mesh(devices=jax.local_devices()[:1])


def placed(shape: Any, where: Sharding) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, or of a shape, in another sharding."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def abstract(state: Any) -> Any:
    """Shape, dtype and sharding of each array."""
    return jax.tree.map(lambda x: placed(x, x.sharding), state)


def delete_states(directory: str | os.PathLike) -> None:
    """Removes the states of a training whose model is on disk."""
    if jax.process_index() == 0:
        for folder in ('state', 'best'):
            shutil.rmtree(pathlib.Path(directory) / folder, ignore_errors=True)


def save_model(model, directory: str | os.PathLike) -> None:
    """Writes a Policy or a PPM: parameters by orbax, config and tokenizer beside them.

    Raises OSError: the disk has no room for them.
    """
    directory = pathlib.Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / 'params').exists():  # which would make room
        _check_disk(directory, model.params)
    marker = directory / 'model.json'
    if jax.process_index() == 0:
        marker.unlink(missing_ok=True)
        atomic.sync(directory)
    with ocp.Checkpointer(_handler()) as checkpointer:
        checkpointer.save(directory / 'params', ocp.args.PyTreeSave(model.params), force=True)
    about = {
        'kind': 'policy',
        'config': model.config.to_dict(),
        'generation': model.generation,
    }
    if isinstance(model, models.PPM):
        about |= {'kind': 'ppm', 'squash': model.squash}
    if jax.process_index() == 0:
        model.tokenizer.save_pretrained(directory / 'tokenizer')
        atomic.sync_all(directory / 'tokenizer')
        atomic.write_text(marker, json.dumps(about, indent=1))


def load_policy(directory: str | os.PathLike, dtype: str = 'float32', mesh=None) -> models.Policy:
    """Reads a policy that `save_model` wrote.

    Args:
      dtype: 'float32' or 'bfloat16'.
      mesh: where the parameters go, by models.sharding; None = the first device.
    """
    about, config, tokenizer, params = _load(directory, 'policy', dtype, mesh)
    return models.Policy(config, tokenizer, params, about['generation'])


def load_ppm(directory: str | os.PathLike, dtype: str = 'float32', mesh=None) -> models.PPM:
    """Reads a PPM that `save_model` wrote; arguments as of `load_policy`."""
    about, config, tokenizer, params = _load(directory, 'ppm', dtype, mesh)
    return models.PPM(config, tokenizer, params, about['squash'], about['generation'])


def _load(directory, kind: str, dtype: str, mesh):
    directory = pathlib.Path(directory).resolve()
    try:
        about = json.loads((directory / 'model.json').read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{directory}: holds no trained model (no model.json); train one') from None
    if about['kind'] != kind:
        raise UserError(f'{directory}: holds a {about["kind"]}, not a {kind}')
    from transformers import AutoTokenizer

    config = models.Config.from_dict(about['config'])
    tokenizer = AutoTokenizer.from_pretrained(directory / 'tokenizer')
    shapes = decoders.abstract_params(config, jnp.dtype(dtype), headless=kind == 'ppm')
    if kind == 'ppm':
        make_head = functools.partial(heads.init_value_head, config.embed_dim)
        head = jax.eval_shape(make_head, jax.random.key(0))
        shapes = {'decoder': shapes, 'value_head': head}
    where = sharding.shardings(shapes, mesh or one_device(), config)
    shapes = jax.tree.map(placed, shapes, where)
    with ocp.Checkpointer(_handler()) as checkpointer:
        params = checkpointer.restore(directory / 'params', _restore(shapes))
    return about, config, tokenizer, params
