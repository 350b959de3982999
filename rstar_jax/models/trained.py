"""The model that a training wrote, in Orbax's form; `models.load` and `load_ppm` read it.

    DIR/params/         the model's parameters
    DIR/model.json      kind (policy or ppm), config, squash
    DIR/tokenizer/      the tokenizer as transformers writes it

`model.json` is written last, by rename: a directory that has it is whole.
"""

import errno
import functools
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from rstar_jax import parallel
from rstar_jax.job import atomic
from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads, sharding
from rstar_jax.models.config import Config
from rstar_jax.models.policy import PPM, Policy
from rstar_jax.settings.errors import UserError


def holds(path: str | os.PathLike) -> bool:
    """Whether a training has written its model there."""
    return (pathlib.Path(path) / 'model.json').is_file()


def about(directory: str | os.PathLike) -> dict[str, Any]:
    """What model.json says: kind, config, and more.

    Raises UserError: no model is there.
    """
    file = pathlib.Path(directory) / 'model.json'
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        expected = 'holds no trained model (no model.json)'
        raise UserError(str(directory), expected=expected, remedy='train one') from None


def check_kind(directory: str | os.PathLike, kind: str) -> dict[str, Any]:
    """`about`, where that is a 'policy' or 'ppm' as `kind` says; UserError elsewhere."""
    known = about(directory)
    if known['kind'] != kind:
        raise UserError(str(directory), expected=f'holds a {known["kind"]}, not a {kind}')
    return known


def tokenizer(directory: str | os.PathLike) -> Any:
    """The tokenizer of a trained model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pathlib.Path(directory) / 'tokenizer')


def save_model(model, directory: str | os.PathLike) -> None:
    """Writes a Policy or a PPM: parameters by orbax, config and tokenizer beside them.

    Raises OSError: the disk has no room for them.
    """
    directory = pathlib.Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / 'params').exists():  # which would make room
        check_disk(directory, model.params)
    marker = directory / 'model.json'
    if jax.process_index() == 0:
        marker.unlink(missing_ok=True)
        atomic.sync(directory)
    with ocp.Checkpointer(handler()) as checkpointer:
        checkpointer.save(directory / 'params', ocp.args.PyTreeSave(model.params), force=True)
    known = {
        'kind': 'policy',
        'config': model.config.to_dict(),
        'generation': model.generation,
    }
    if isinstance(model, PPM):
        known |= {'kind': 'ppm', 'squash': model.squash}
    if jax.process_index() == 0:
        model.tokenizer.save_pretrained(directory / 'tokenizer')
        atomic.sync_all(directory / 'tokenizer')
        atomic.write_text(marker, json.dumps(known, indent=1))


def load_model(directory: str | os.PathLike, kind: str, dtype: str, mesh=None) -> Policy | PPM:
    """Reads what `save_model` wrote.

    Args:
      kind: 'policy' or 'ppm'.
      dtype: 'float32' or 'bfloat16'.
      mesh: where the parameters go, by `sharding`; None = the first device.

    Raises UserError: the other kind of model is there, or none.
    """
    directory = pathlib.Path(directory).resolve()
    known = check_kind(directory, kind)
    config = Config.from_dict(known['config'])
    shapes = decoders.abstract_params(config, jnp.dtype(dtype), headless=kind == 'ppm')
    if kind == 'ppm':
        make_head = functools.partial(heads.init_value_head, config.embed_dim)
        head = jax.eval_shape(make_head, jax.random.key(0))
        shapes = {'decoder': shapes, 'value_head': head}
    where = sharding.shardings(shapes, mesh or parallel.one_device(), config)
    shapes = jax.tree.map(placed, shapes, where)
    with ocp.Checkpointer(handler()) as checkpointer:
        params = checkpointer.restore(directory / 'params', restore_args(shapes))
    model = config, tokenizer(directory), params
    if kind == 'ppm':
        return PPM(*model, known['squash'], known['generation'])
    return Policy(*model, known['generation'])


def check_disk(folder: pathlib.Path, arrays: Any) -> None:
    """Raises OSError where the disk has no room for the arrays: orbax fails in 200 lines."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < sum(x.nbytes for x in jax.tree.leaves(arrays)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def handler() -> ocp.PyTreeCheckpointHandler:
    """Compressed, weights take a tenth less, longer, and as much memory again while written."""
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def restore_args(like: Any) -> ocp.args.PyTreeRestore:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(like, restore_args=arguments)


def placed(shape: Any, where: Sharding) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, or of a shape, in another sharding."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
