"""LoRA (arXiv 2106.09685): beside the frozen weight W of each dense layer a product of low rank.

    y = W x + b + SCALE * B (A x)        A [rank, in] random, B [out, rank] zero at first

Besides A and B are trained the rows of new tokens, in the embedding and in an untied output, and a
PPM's value head. All else is frozen: it has no gradient, no moments, no float32 copy, and a state
on disk does not hold it.

Parameters are those of `models.decoder`, in two trees: the frozen one has `rows` i32[n] beside a
table's `weight` and, for the rate of what stands there, its `rms`; the trained one `lora_a` and
`lora_b` where the frozen one has a dense `weight`, `new` [n, D] where it has `rows`, and
`value_head`. `joined` makes one tree of the two, which is what the losses take.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

from rstar_jax.job import atomic
from rstar_jax.models import checkpoint, tokenizer, weights
from rstar_jax.models import decoder as decoders

# alpha / rank with alpha = 2 * rank, as in arXiv 2405.09673 (mathematics).
SCALE = 2
DENSE = re.compile(r'.*(attention/[qkvo]|mlp/(gate|up|down))/weight')
TABLE = re.compile(r'(decoder/)?(embed|output)/weight')
PARTS = ('/lora_a', '/lora_b')  # beside what a decoder has by itself
Params = decoders.Params


def dense(config) -> dict[str, tuple[int, int]]:
    """{path: (outputs, inputs)} of the dense layers of a decoder of `config`."""
    flat = weights.flatten(decoders.abstract_params(config, headless=True))
    return {path: x.shape for path, x in flat.items() if DENSE.fullmatch(path)}


def split(params: Params, rank: int, new_rows: Sequence[int], seed: int) -> tuple[Params, Params]:
    """Returns (what of `params` is frozen, what is trained).

    params: a policy's or a PPM's. new_rows: of the tables, see `optimiser.optimiser`.
    """
    # A as in the authors' code: Kaiming's uniform distribution with a = 5 ** 0.5.
    random = np.random.default_rng(seed)
    rows = np.array(new_rows, np.int32)
    frozen: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    for path, weight in sorted(weights.flatten(params).items()):
        module = path.rpartition('/')[0]
        if module == 'value_head':
            trained[path] = weight
            continue
        frozen[path] = weight
        if DENSE.fullmatch(path):
            outputs, inputs = weight.shape
            a = random.uniform(-(inputs**-0.5), inputs**-0.5, (rank, inputs))
            trained[f'{module}/lora_a'] = a.astype(np.float32)
            trained[f'{module}/lora_b'] = np.zeros((outputs, rank), np.float32)
        elif TABLE.fullmatch(path):
            frozen[f'{module}/rows'] = rows
            if len(rows):
                frozen[f'{module}/rms'] = rms(weight)
                trained[f'{module}/new'] = weight[rows]
    return weights.nest(frozen), weights.nest(trained)


@jax.jit
def rms(table: jax.Array) -> jax.Array:
    """f32[], the root mean square of a table."""
    return jnp.sqrt(jnp.mean(jnp.square(table.astype(jnp.float32))))


def joined(frozen: Params, trained: Params) -> Params:
    """One tree of the two."""
    return weights.nest(weights.flatten(frozen) | weights.flatten(trained))


class LowRank(nnx.Module):
    """A dense layer with its low-rank part; the sum of both is in float32."""

    def __init__(self, dense: decoders.Dense, a: jax.Array, b: jax.Array):
        self.dense, self.a, self.b = dense, nnx.Param(a), nnx.Param(b)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = decoders.matmul(x, self.a[...]).astype(x.dtype)
        y = self.dense.wide(x) + SCALE * decoders.matmul(inner, self.b[...])
        if hasattr(self.dense, 'bias'):
            y += self.dense.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


def bind(config, params: Params) -> decoders.Layer:
    """The layer with `params` in place, and with the low-rank parts that they have.

    params: those of one layer, as of `joined`.
    """
    flat = weights.flatten(params)
    base = {path: value for path, value in flat.items() if not path.endswith(PARTS)}
    layer = decoders.bind_layer(config, weights.nest(base))
    for path, a in flat.items():
        module, _, part = path.rpartition('/')
        if part == 'lora_a':
            block, name = module.split('/')
            block = getattr(layer, block)
            setattr(block, name, LowRank(getattr(block, name), a, flat[f'{module}/lora_b']))
    return layer


def new_rows(table: Params) -> tuple[jax.Array, jax.Array] | None:
    """(rows i32[n], what stands there [n, D]) of a table of which only they are trained, or None.

    They are kept apart from the table, so that no gradient of all its rows is ever formed.
    """
    if 'rows' not in table:
        return None
    nothing = jnp.zeros((0, table['weight'].shape[1]), table['weight'].dtype)
    return table['rows'], table.get('new', nothing)


def with_rows(x: jax.Array, embed: Params, tokens: jax.Array) -> jax.Array:
    """x [R, T, D], what `tokens` i32[R, T] look up in the frozen table, with the new rows' own."""
    if 'new' not in embed:
        return x
    rows, new = new_rows(embed)
    found = tokens[..., None] == rows
    # A product, for its gradient is one too: rows of a frequent token are summed in float32.
    inserted = jnp.einsum('rtn,nd->rtd', found.astype(new.dtype), new)
    return jnp.where(found.any(-1, keepdims=True), inserted, x)


def merge(frozen: dict[str, jax.Array], trained: Params) -> Params:
    """W + SCALE * B A, new rows in their tables, all in float32, each lying where its W lay.

    frozen: flat, by path; is deleted on the way, so that no second copy of the model is in memory.
    """
    trained = weights.flatten(trained)
    merged = {path: value for path, value in trained.items() if path.startswith('value_head/')}
    for path in list(frozen):
        module, _, part = path.rpartition('/')
        if part in ('rows', 'rms'):
            continue
        if f'{module}/lora_a' in trained and part == 'weight':
            function, more = _product_added, ('lora_b', 'lora_a')
        elif f'{module}/new' in trained:
            function, more = _rows_set, ('rows', 'new')
        else:
            function, more = _wide, ()
        more = [trained.get(f'{module}/{name}', frozen.get(f'{module}/{name}')) for name in more]
        weight = frozen.pop(path)
        # In its place, or deleted: whoever gave it to the training may hold it still.
        donated = (0,) if weight.dtype == jnp.float32 else ()
        run = jax.jit(function, out_shardings=weight.sharding, donate_argnums=donated)
        merged[path] = run(weight, *more).block_until_ready()
        weight.delete()
    return weights.nest(merged)


def _wide(weight):
    return decoders.of_bits(weight).astype(jnp.float32)


def _product_added(weight, b, a):
    return _wide(weight) + SCALE * jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)


def _rows_set(table, rows, new):
    return _wide(table).at[rows].set(new)


def save(model, trained: Params, rank: int, rows: Sequence[int], directory: pathlib.Path) -> None:
    """Writes what was trained as an adapter that PEFT loads, with the tokenizer; on host 0 only.

    The adapter belongs to the model that the training started from. Where that has fewer rows than
    the tokenizer has tokens, `resize_token_embeddings` comes first. A PPM's value head lies beside
    it as in its export.

    Args:
      model: the Policy or PPM that was trained.
      trained: as from `split`, after the training.
      rows: of the new tokens.
    """
    flat = weights.flatten(trained.get('decoder', trained))
    flat = {path: weights.to_host(value) for path, value in flat.items()}
    head = {name: weights.to_host(value) for name, value in trained.get('value_head', {}).items()}
    if jax.process_index():
        return
    tensors, ranks, targets = {}, {}, set()
    for row in weights.rows(model.config):
        modules = [path.rpartition('/')[0] for path in row.paths]
        name = row.hf.removesuffix('.weight')
        if f'{modules[0]}/lora_a' in flat and row.hf.endswith('.weight'):
            a, b = ([flat[f'{module}/lora_{x}'] for module in modules] for x in 'ab')
            # Layers that are one matrix there (Phi-3): ranks add up, each reaches its own outputs.
            tensors[f'{name}.lora_A.weight'] = np.concatenate(a)
            tensors[f'{name}.lora_B.weight'] = np.ascontiguousarray(scipy.linalg.block_diag(*b))
            target = name.rpartition('.')[2]
            targets.add(target)
            if len(modules) > 1:
                ranks[target] = rank * len(modules)
        elif f'{modules[0]}/new' in flat:
            tensors[f'{name}.token_adapter.trainable_tokens_delta'] = flat[f'{modules[0]}/new']
    tables = [name.split('.')[-3] for name in tensors if 'token_adapter' in name]
    about = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': None,
        'inference_mode': True,
        'r': rank,
        'lora_alpha': SCALE * rank,
        'rank_pattern': ranks,
        'alpha_pattern': {name: SCALE * value for name, value in ranks.items()},
        'target_modules': sorted(targets),
        'trainable_token_indices': {name: list(rows) for name in tables} or None,
        'lora_dropout': 0.0,
        'bias': 'none',
    }
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f'base_model.model.{name}': tensor for name, tensor in tensors.items()}
    weights.write_file(tensors, directory / 'adapter_model.safetensors')
    if head:
        checkpoint.write_value_head(head, directory)
    tokenizer.save(model.tokenizer, directory)
    atomic.sync_all(directory)
    atomic.write_json(directory / 'adapter_config.json', about, indent=2)
