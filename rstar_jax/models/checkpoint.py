"""Models in and out of files: Hugging Face folders, hub names and GGUF files.

A folder is complete when its config.json is there: that file is written last, when all others are
on the disk.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax import parallel
from rstar_jax.job import atomic
from rstar_jax.models import families, sharding, tokenizer, torch_file, trained, weights
from rstar_jax.models.config import Config
from rstar_jax.models.gguf_file import GGUFFile
from rstar_jax.models.policy import PPM, Policy
from rstar_jax.models.quantized import quantized
from rstar_jax.settings.errors import UserError, one_line

SHARD_BYTES = 4 << 30
HUB_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
HUB_FILES = ['*.json', 'model*.safetensors', '*.model', '*.txt', '*.jinja', 'value_head.*']
PLACES = 'a Hugging Face folder, a .gguf file or a hub name'
HEAD = {'weight': 'v_head.summary.weight', 'bias': 'v_head.summary.bias'}
SQUASH_KEY = 'ppm_squash'  # in a PPM's config.json; transformers carries unknown keys along


def load(
    path_or_name: str | pathlib.Path,
    dtype: str | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Policy:
    """A policy from a Hugging Face folder, a hub name ('Qwen/Qwen2.5-Math-1.5B'), a .gguf file or
    a folder that a training wrote.

    dtype: 'float32' or 'bfloat16'; None = what the devices are fast at.
    mesh: lay the parameters out over it (see `sharding`); None = the default device.
    Raises UserError: no such path, a PPM, architecture not supported, damaged files, no tokenizer;
    all faults of the weights in one.
    """
    if trained.holds(path_or_name):
        return trained.load_model(path_or_name, 'policy', dtype or parallel.fast_dtype(), mesh)
    config, params, made, generation = _read(_find(path_or_name), dtype, mesh, headless=False)
    return Policy(config, made, params, generation)


def load_as(
    kind: str,
    path_or_name: str | pathlib.Path,
    dtype: str | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    weights: str = '',
) -> Policy | PPM:
    """`load` of a 'policy', `load_ppm` of a 'ppm'.

    weights: 'int8' holds them in 8 bits; '' as they are loaded.
    """
    model = (load if kind == 'policy' else load_ppm)(path_or_name, dtype or None, mesh=mesh)
    return quantized(model) if weights == 'int8' else model


def read_config(path_or_name: str | pathlib.Path) -> Config:
    """The shape of a model as `load` would read it; errors as there."""
    if trained.holds(path_or_name):
        return Config.from_dict(trained.about(path_or_name)['config'])
    path = _find(path_or_name)
    return GGUFFile(path).config if path.suffix == '.gguf' else _folder_config(path)


def check(path_or_name: str | pathlib.Path, ppm: bool = False) -> Any:
    """All that `load` does, for a PPM `load_ppm`, but reading the weights; errors as there.

    Returns the tokenizer.
    """
    if trained.holds(path_or_name):
        trained.check_kind(path_or_name, 'ppm' if ppm else 'policy')
        return trained.tokenizer(path_or_name)
    path = _find(path_or_name)
    if ppm:
        _read_head(path)
    source, config, made, _ = _open(path, headless=ppm)
    weights.check(source, config, headless=ppm)
    return made


def is_ppm(path_or_name: str | pathlib.Path) -> bool:
    """Whether what `load` or `load_ppm` would read is a PPM; errors as of `read_config`."""
    if trained.holds(path_or_name):
        return trained.about(path_or_name)['kind'] == 'ppm'
    path = _find(path_or_name)
    if path.suffix == '.gguf':
        return False
    return any(path.glob('value_head.*')) or SQUASH_KEY in _json(path / 'config.json')


def save(policy: Policy, directory: str | pathlib.Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a Hugging Face folder: safetensors (sharded beyond `shard_bytes`), config, generation
    config and tokenizer. On several hosts all must call it; the first one writes.

    Raises UserError: `directory` is a file; a model in 8 bits; a PPM, which `save_ppm` saves.
    """
    _check(policy, Policy)
    _write(pathlib.Path(directory), policy, policy.params, shard_bytes, {})


def load_ppm(
    directory: str | pathlib.Path,
    dtype: str | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> PPM:
    """A PPM from a folder of the decoder plus its value head, or one that a training wrote.

    The head is read from value_head.safetensors, else value_head.bin (the released code's form).
    Where nothing says how values come into [-1, 1], it is by 'tanh5', the released code's.
    """
    if trained.holds(directory):
        return trained.load_model(directory, 'ppm', dtype or parallel.fast_dtype(), mesh)
    folder = _find(directory)
    head = _read_head(folder)
    config, params, made, generation = _read(folder, dtype, mesh, headless=True)
    put = _putter('float32', mesh, config)
    value_head = {name: put(f'value_head/{name}', tensor) for name, tensor in head.items()}
    squash = _json(folder / 'config.json').get(SQUASH_KEY, 'tanh5')
    params = {'decoder': params, 'value_head': value_head}
    return PPM(config, made, params, squash, generation)


def save_ppm(ppm: PPM, directory: str | pathlib.Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the decoder as a Hugging Face folder, with value_head.bin and value_head.safetensors.

    The decoder's vocabulary head is gone where it was untied: transformers then makes up a new one
    and says so, which is right, as a PPM does not use it. Errors as of `save`.
    """
    _check(ppm, PPM)
    head = {name: weights.to_host(tensor) for name, tensor in ppm.params['value_head'].items()}
    extra = {SQUASH_KEY: ppm.squash}
    _write(pathlib.Path(directory), ppm, ppm.params['decoder'], shard_bytes, extra, head)


def write_value_head(head: dict[str, np.ndarray], folder: pathlib.Path) -> None:
    """Writes the two files of a PPM's value head."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {HEAD[name]: np.asarray(tensor, np.float32) for name, tensor in head.items()}
    torch_file.save(tensors, folder / 'value_head.bin')
    weights.write_file(tensors, folder / 'value_head.safetensors')


def _read(path, dtype, mesh, headless):
    """(config, params, tokenizer, generation)."""
    dtype = parallel.fast_dtype() if dtype is None else dtype
    if dtype not in ('float32', 'bfloat16'):
        raise UserError('dtype', dtype, 'expected float32 or bfloat16')
    source, config, made, generation = _open(path, headless)
    params = weights.place(source, config, _putter(dtype, mesh, config), headless)
    return config, params, made, generation


def _open(path, headless):
    """(source of the weights, config, tokenizer, generation)."""
    if not headless and is_ppm(path):
        expected = 'holds a ppm, not a policy'
        raise UserError(str(path), expected=expected, remedy='models.load_ppm reads it')
    generation: dict[str, Any] = {}
    if path.suffix == '.gguf':
        source = GGUFFile(path)
        config = source.config
        made = tokenizer.from_gguf(source.fields, str(path))
    else:
        config = _folder_config(path)
        if (path / 'generation_config.json').exists():
            generation = _json(path / 'generation_config.json')
            config = _with_ends(config, generation)
        made = tokenizer.load(path)
        source = weights.SafetensorsFolder(path)
    if (needed := tokenizer.rows(made)) > config.vocab_size:
        expected = f'its tokenizer has {needed} entries, its embedding {config.vocab_size} rows'
        raise UserError(str(path), expected=expected)
    return source, config, made, generation


def _folder_config(folder: pathlib.Path) -> Config:
    file = folder / 'config.json'
    try:
        return families.read_config(_json(file), str(file))
    except (TypeError, ValueError, AttributeError) as error:  # of values of other types
        raise UserError(str(file), expected=f'cannot be read ({one_line(error)})') from None


def _with_ends(config: Config, generation: dict[str, Any]) -> Config:
    """The ids that end a text, where generation_config.json names more of them."""
    eos = generation.get('eos_token_id')
    if eos is None:
        return config
    return config.replace(eos_ids=tuple(eos) if isinstance(eos, list) else (eos,))


def _find(path_or_name: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(os.path.expanduser(path_or_name))
    if path.is_dir():
        if not (path / 'config.json').exists():
            files = ', '.join(sorted(p.name for p in path.glob('*.gguf'))[:4])
            hint = f'name one of its files: {files}' if files else ''
            raise UserError(str(path), expected='no config.json in this folder', remedy=hint)
        return path
    if path.is_file():
        if path.suffix != '.gguf':
            raise UserError(str(path), expected=f'expected {PLACES}')
        return path
    if path.suffix == '.gguf' or not HUB_NAME.fullmatch(str(path_or_name)):
        raise UserError(str(path), expected='does not exist', remedy=f'expected {PLACES}')
    return _from_hub(str(path_or_name))


def _from_hub(name: str) -> pathlib.Path:
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # network, authorisation, no such repository: many kinds
        reason = one_line(error)
        expected = f'no such folder, and not had from the hub ({reason})'
        raise UserError(name, expected=expected) from None


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise UserError(str(path), expected=f'expected a JSON object ({error})') from None
    if not isinstance(values, dict):
        raise UserError(str(path), expected='expected a JSON object')
    return values


def _read_head(folder: pathlib.Path) -> dict[str, np.ndarray]:
    if folder.suffix == '.gguf':
        expected = 'a PPM is read from a folder with value_head.bin'
        raise UserError(str(folder), expected=expected)
    names = ('value_head.safetensors', 'value_head.bin')
    file = next((folder / name for name in names if (folder / name).exists()), None)
    if file is None:
        expected = f'no value head: expected {names[1]} (or {names[0]})'
        raise UserError(str(folder), expected=expected, remedy='models.load reads a policy')
    if file.suffix == '.bin':
        tensors = torch_file.load(file)
    else:
        from safetensors.numpy import load_file

        try:
            tensors = load_file(file)
        except Exception as error:  # the library raises its own type without a base
            expected = f'cut off or no safetensors file ({error})'
            raise UserError(str(file), expected=expected) from None
    missing = [name for name in HEAD.values() if name not in tensors]
    weights.raise_faults(str(file), [f'{name} is missing' for name in missing])
    expected = {'weight': (1, _folder_config(folder).embed_dim), 'bias': (1,)}
    faults = [
        f'{HEAD[name]} has shape {list(tensors[HEAD[name]].shape)}, expected {list(shape)}'
        for name, shape in expected.items()
        if tensors[HEAD[name]].shape != shape
    ]
    weights.raise_faults(str(folder), faults)
    return {ours: np.asarray(tensors[name], np.float32) for ours, name in HEAD.items()}


def _putter(
    dtype: str, mesh: jax.sharding.Mesh | None, config: Config
) -> Callable[[str, np.ndarray], jax.Array]:
    """put(path, tensor): a copy in `dtype`, on the default device or in its place on the mesh."""

    def put(path, tensor):
        if mesh is None:
            return jax.device_put(weights.cast(tensor, dtype))
        spec = sharding.spec(path, tensor.shape, mesh, config)
        where = jax.sharding.NamedSharding(mesh, spec)
        parts: dict[tuple, np.ndarray] = {}

        def part(index):
            place = tuple((cut.start, cut.stop) for cut in index)
            if place not in parts:  # several devices may hold the same one
                parts[place] = weights.cast(tensor[index], dtype)
            return parts[place]

        return jax.make_array_from_callback(tensor.shape, where, part)

    return put


def _check(model: Policy | PPM, kind: type) -> None:
    if not isinstance(model, kind):
        other = 'save_ppm' if kind is Policy else 'save'
        expected = f'expected a {kind.__name__}, got a {type(model).__name__}'
        raise UserError('model', expected=expected, remedy=f'use models.{other}')
    if model.config.int8:
        expected = 'a model in 8 bits is for searching only'
        raise UserError('model', expected=expected, remedy='save it before models.quantized')


def _write(folder, model, params, shard_bytes, extra, head=None):
    dtype = jnp.dtype(params['embed']['weight'].dtype).name
    if folder.is_file():
        expected = 'is a file; a model is saved into a folder'
        raise UserError(str(folder), expected=expected)
    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'config.json').unlink(missing_ok=True)
        atomic.sync(folder)
        for stale in folder.glob('value_head.*'):
            stale.unlink()
        if head is not None:
            write_value_head(head, folder)
    weights.save_safetensors(params, model.config, folder, shard_bytes, write=first)
    if not first:
        return
    if model.tokenizer is not None:
        tokenizer.save(model.tokenizer, folder)
    config = families.write_config(model.config, dtype)
    ends = {name: config[name] for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
    # Only of the ends of a text is the config the whole truth: see `_with_ends`.
    said = {k: v for k, v in model.generation.items() if v is not None and k != 'eos_token_id'}
    generation = {**model.generation, **ends, **said}
    atomic.write_json(folder / 'generation_config.json', generation, indent=2)
    atomic.sync_all(folder)
    atomic.write_json(folder / 'config.json', {**config, **extra}, indent=2)
