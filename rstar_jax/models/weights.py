"""Weights in and out: one table of names serves Hugging Face files, GGUF files, loading and export.

A source (a folder of safetensors, a GGUF file) says which tensors it has and reads one at a time;
`check` compares all of them with the table and raises every fault at once, `place` puts tensor
after tensor on the devices: the host never holds more than the file that is open and one tensor.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rstar_jax.job import atomic
from rstar_jax.models import decoder
from rstar_jax.models.config import Config
from rstar_jax.settings.errors import UserError

# (Hugging Face's name, GGUF's name, our paths: more than one are joined along the first axis)
OUTER = (
    ('model.embed_tokens.weight', 'token_embd.weight', ('embed/weight',)),
    ('model.norm.weight', 'output_norm.weight', ('norm/weight',)),
    ('lm_head.weight', 'output.weight', ('output/weight',)),
)
LAYER = (
    ('input_layernorm.weight', 'attn_norm.weight', ('attention_norm/weight',)),
    ('self_attn.q_proj.weight', 'attn_q.weight', ('attention/q/weight',)),
    ('self_attn.q_proj.bias', 'attn_q.bias', ('attention/q/bias',)),
    ('self_attn.k_proj.weight', 'attn_k.weight', ('attention/k/weight',)),
    ('self_attn.k_proj.bias', 'attn_k.bias', ('attention/k/bias',)),
    ('self_attn.v_proj.weight', 'attn_v.weight', ('attention/v/weight',)),
    ('self_attn.v_proj.bias', 'attn_v.bias', ('attention/v/bias',)),
    ('self_attn.o_proj.weight', 'attn_output.weight', ('attention/o/weight',)),
    ('self_attn.o_proj.bias', 'attn_output.bias', ('attention/o/bias',)),
    ('self_attn.q_norm.weight', 'attn_q_norm.weight', ('attention/q_norm/weight',)),
    ('self_attn.k_norm.weight', 'attn_k_norm.weight', ('attention/k_norm/weight',)),
    ('post_attention_layernorm.weight', 'ffn_norm.weight', ('mlp_norm/weight',)),
    ('mlp.gate_proj.weight', 'ffn_gate.weight', ('mlp/gate/weight',)),
    ('mlp.gate_proj.bias', 'ffn_gate.bias', ('mlp/gate/bias',)),
    ('mlp.up_proj.weight', 'ffn_up.weight', ('mlp/up/weight',)),
    ('mlp.up_proj.bias', 'ffn_up.bias', ('mlp/up/bias',)),
    ('mlp.down_proj.weight', 'ffn_down.weight', ('mlp/down/weight',)),
    ('mlp.down_proj.bias', 'ffn_down.bias', ('mlp/down/bias',)),
)
OF_FAMILY = {  # rows of a family that replace all rows with the same targets
    'olmo2': (
        (
            'post_attention_layernorm.weight',
            'post_attention_norm.weight',
            ('attention_norm/weight',),
        ),
        ('post_feedforward_layernorm.weight', 'post_ffw_norm.weight', ('mlp_norm/weight',)),
    ),
    'phi3': (
        (
            'self_attn.qkv_proj.weight',
            'attn_qkv.weight',
            ('attention/q/weight', 'attention/k/weight', 'attention/v/weight'),
        ),
        ('mlp.gate_up_proj.weight', 'ffn_up.weight', ('mlp/gate/weight', 'mlp/up/weight')),
    ),
}
# Tensors that a checkpoint may hold beside the decoder's: tables that are computed here, and what
# a value head's trainer leaves in the same file.
IGNORED = re.compile(r'.*rotary_emb\.inv_freq|rope_freqs\.weight|rope_factors_.*|v_head\..*')
FLOATS = ('float32', 'bfloat16', 'float16', 'float64')


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a file: its names, and our arrays that it holds, one below the other."""

    hf: str
    gguf: str
    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])


class Source(Protocol):
    """Tensors of a checkpoint by name (`Row.hf` or `Row.gguf`, as `key` says)."""

    where: str
    key: str

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{name: (shape, dtype's name)} of all tensors."""

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The named tensors, one at a time, in the order that costs least."""


def rows(config: Config, headless: bool = False) -> tuple[Row, ...]:
    """All tensors of a checkpoint of `config`; headless: without the output table."""
    flat = flatten(decoder.abstract_params(config, headless=headless))
    own = OF_FAMILY.get(config.family, ())
    replaced = {path for _, _, paths in own for path in paths}
    layer = own + tuple(row for row in LAYER if row[2][0] not in replaced)
    table = list(OUTER)
    for i in range(config.num_layers):
        for hf, gguf, paths in layer:
            ours = tuple(f'layers/{i}/{path}' for path in paths)
            table.append((f'model.layers.{i}.{hf}', f'blk.{i}.{gguf}', ours))
    # Rows of what this config lacks (biases, per-head norms, an untied output) drop out here.
    return tuple(
        Row(hf, gguf, paths, tuple(flat[path].shape for path in paths))
        for hf, gguf, paths in table
        if paths[0] in flat
    )


def check(source: Source, config: Config, headless: bool = False) -> dict[str, Row]:
    """The rows of `config` by their names in `source`, which has them all.

    Raises UserError naming every missing, unknown, mis-shaped and non-float tensor.
    """
    by_name = {getattr(row, source.key): row for row in rows(config, headless)}
    found = source.shapes()
    faults = [f'{name} is missing' for name in by_name if name not in found]
    for name, (shape, dtype) in found.items():
        if name not in by_name:
            # Some files of tied models repeat the embedding; a PPM may keep its language head.
            spare = name in ('lm_head.weight', 'output.weight') and (
                headless or config.tie_embeddings
            )
            if not spare and not IGNORED.fullmatch(name):
                faults.append(f'{name} is unknown to {config.family}')
        elif shape != by_name[name].shape:
            faults.append(f'{name} has shape {list(shape)}, expected {list(by_name[name].shape)}')
        elif dtype not in FLOATS:
            faults.append(f'{name} has dtype {dtype}, expected one of {", ".join(FLOATS)}')
    raise_faults(source.where, faults)
    return by_name


def place(
    source: Source,
    config: Config,
    put: Callable[[str, np.ndarray], jax.Array],
    headless: bool = False,
) -> decoder.Params:
    """Reads all tensors of `config` from `source`; put(path, tensor) brings one to the devices.

    Errors as of `check`.
    """
    by_name = check(source, config, headless)
    flat = {}
    for name, tensor in source.read(by_name):
        row = by_name[name]
        ends = np.cumsum([shape[0] for shape in row.shapes])
        for path, part in zip(row.paths, np.split(tensor, ends[:-1])):
            flat[path] = put(path, part)
        del tensor, part  # before the next one is read
    return nest(flat)


def raise_faults(where: str, faults: list[str], most: int = 8) -> None:
    """Raises one UserError for all faults of a checkpoint, if there are any."""
    if faults:
        more = f'; and {len(faults) - most} more' if len(faults) > most else ''
        raise UserError(where, expected='; '.join(faults[:most]) + more)


class SafetensorsFolder:
    """A folder's `*.safetensors`, by its index where there is one."""

    key = 'hf'

    def __init__(self, folder: pathlib.Path):
        self.where = str(folder)
        index = folder / 'model.safetensors.index.json'
        if index.exists():
            files = [folder / name for name in _indexed(index)]
        else:
            files = sorted(folder.glob('model*.safetensors'))
        missing = [f'shard {file.name} is missing' for file in files if not file.exists()]
        raise_faults(self.where, missing)
        if not files:
            kinds = ', '.join(p.name for p in folder.glob('*.bin')) or 'no weights'
            expected = f'expected model*.safetensors, found {kinds}'
            raise UserError(str(folder), expected=expected)
        self._where_is: dict[str, tuple[pathlib.Path, str]] = {}
        self._shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        faults = []
        for file in files:
            try:
                self._read_header(file)
            except Exception as error:  # the library raises its own type without a base
                faults.append(f'{file.name} is cut off or no safetensors file ({error})')
        raise_faults(self.where, faults)

    def _read_header(self, file: pathlib.Path) -> None:
        from safetensors import safe_open

        with safe_open(file, 'numpy') as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (not a dict)
                piece = tensors.get_slice(stored)
                # A language model with value head keeps the decoder under a prefix.
                name = stored.removeprefix('pretrained_model.')
                if not name.startswith(('model.', 'lm_head.', 'v_head.')):
                    name = f'model.{name}'  # saved as a bare decoder
                self._where_is[name] = (file, stored)
                dtype = DTYPES.get(piece.get_dtype(), piece.get_dtype())
                self._shapes[name] = (tuple(piece.get_shape()), dtype)

    def shapes(self):
        return self._shapes

    def read(self, names):
        from safetensors import safe_open

        by_file: dict[pathlib.Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._where_is[name][0], []).append(name)
        for file, inside in by_file.items():
            with safe_open(file, 'numpy') as tensors:
                for name in inside:
                    yield name, tensors.get_tensor(self._where_is[name][1])


def _indexed(index: pathlib.Path) -> list[str]:
    """The names of the files that an index lists."""
    try:
        return sorted(set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = f'expected a JSON object with weight_map ({error!r})'
        raise UserError(str(index), expected=expected) from None


DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16', 'F64': 'float64'}


def save_safetensors(
    params: decoder.Params,
    config: Config,
    folder: pathlib.Path,
    shard_bytes: int,
    write: bool = True,
) -> None:
    """Writes `params` under Hugging Face's names, in files of at most `shard_bytes` each.

    One file's tensors are on the host at a time. A file appears under its name when it is whole;
    weights of an earlier save that are not overwritten are removed. write: False on all hosts but
    one, which take part in gathering only.
    """
    flat = flatten(params)

    def whole(row: Row) -> np.ndarray:
        return np.concatenate([to_host(flat[path]) for path in row.paths])

    shards: list[list[Row]] = [[]]
    size = total = 0
    for row in rows(config, headless='output' not in params):
        bytes_of_row = sum(flat[path].nbytes for path in row.paths)
        if shards[-1] and size + bytes_of_row > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += bytes_of_row
        total += bytes_of_row
    written, index = set(), {}
    for number, shard in enumerate(shards, 1):
        many = f'-{number:05d}-of-{len(shards):05d}' if len(shards) > 1 else ''
        name = f'model{many}.safetensors'
        if not write:
            for row in shard:
                whole(row)
            continue
        tensors = {row.hf: whole(row) for row in shard}
        write_file(tensors, folder / name)
        written.add(name)
        index |= dict.fromkeys(tensors, name)
        del tensors  # before the next file's are gathered
    if not write:
        return
    if len(shards) > 1:
        text = json.dumps({'metadata': {'total_size': total}, 'weight_map': index}, indent=1)
        written.add('model.safetensors.index.json')
        atomic.write_text(folder / 'model.safetensors.index.json', text)
    for old in [*folder.glob('model*.safetensors'), *folder.glob('model.safetensors.index.json')]:
        if old.name not in written:
            old.unlink()


def write_file(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a safetensors file; the library makes files that only their owner may read."""
    from safetensors.numpy import save_file

    with atomic.replacing(path) as temporary:
        save_file(tensors, temporary, metadata={'format': 'pt'})
        temporary.chmod(0o644)


def to_host(array: Any) -> np.ndarray:
    """The whole array as numpy, gathered from all hosts where it is spread over them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


# {'a': {'b': x}} -> {'a/b': x}, and back.
flatten = functools.partial(traverse_util.flatten_dict, sep='/')
nest = functools.partial(traverse_util.unflatten_dict, sep='/')


def cast(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy of `tensor` in `dtype` that owns its memory: device arrays must not alias a file."""
    return np.array(tensor, dtype=jnp.dtype(dtype), copy=True, order='C')
