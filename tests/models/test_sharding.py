"""Sharding on eight devices: same logits on every mesh, layouts kept as text, full-size shapes."""

import importlib
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rstar_jax import models
from rstar_jax.models import attention, published, sharding, weights

sys.path.insert(0, str(pathlib.Path(__file__).parent))
tiny_torch = importlib.import_module('tiny_torch')

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
SNAPSHOTS = pathlib.Path(__file__).parent / 'snapshots'

TINY = models.Config('qwen2', 320, 64, 96, 2, 8, 2, 8, qkv_bias=True)  # fewer kv heads than devices
ODD = models.Config('phi3', 321, 56, 72, 2, 7, 7, 8, windows=(5, 5))  # heads that 8 does not divide
WHOLE = TINY.replace(family='olmo2', qkv_bias=False, qk_norm=True, whole_norm=True, norm_after=True)

PARAMETERS = {  # of the published checkpoints
    'qwen2.5-math-7b': 7_615_616_512,
    'qwen2-math-7b': 7_615_616_512,
    'qwen2.5-math-1.5b': 1_543_714_304,
    'phi3-mini-4k': 3_821_079_552,
    'phi3-mini-128k': 3_821_079_552,
    'qwen3-1.7b': 1_720_574_976,
    'qwen2.5-coder-0.5b': 494_032_768,
    'smollm2-135m': 134_515_008,
}


def mesh_of(shape):
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ('data', 'fsdp', 'tensor'))


def forward(config, params, tokens):
    network = models.decoder.bind(config, params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = network(tokens, positions, attention.whole_texts())
    return network.head(hidden)


@pytest.mark.parametrize('config', [TINY, ODD, WHOLE], ids=['tiny', 'odd', 'whole'])
def test_same_logits_on_every_mesh(config):
    params = models.decoder.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda x: x if x.ndim == 1 else 4 * x, params)
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, config.vocab_size)
    run = jax.jit(forward, static_argnums=0)
    expected = np.asarray(run(config, params, tokens))
    for shape in MESHES:
        mesh = mesh_of(shape)
        spread = sharding.shard(params, mesh, config)
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
        ours = np.asarray(run(config, spread, jax.device_put(tokens, rows)))
        assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max(), shape


@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_layout_is_as_kept(shape):
    """One line a parameter: path, shape, spec. RSTAR_UPDATE_SNAPSHOTS=1 rewrites the files."""
    mesh = mesh_of(shape)
    lines = []
    for name, config in {'tiny': TINY, 'odd': ODD}.items():
        flat = weights.flatten(models.decoder.abstract_params(config))
        lines.append(f'# {name}')
        for path, leaf in flat.items():
            if path.startswith('layers/') and not path.startswith('layers/0/'):
                continue
            spec = sharding.spec(path, leaf.shape, mesh, config)
            lines.append(f'{path} {list(leaf.shape)} {list(spec)}')
    text = '\n'.join(lines) + '\n'
    file = SNAPSHOTS / f'sharding_{"_".join(map(str, shape))}.txt'
    if os.environ.get('RSTAR_UPDATE_SNAPSHOTS'):
        file.write_text(text)
    assert file.read_text() == text


def test_keys_and_values_are_whole_heads():
    for shape in MESHES:
        mesh = mesh_of(shape)
        for path, rows in (('layers/0/attention/k/weight', 16), ('layers/0/attention/v/bias', 16)):
            spec = sharding.spec(path, (rows, 64)[: 1 if 'bias' in path else 2], mesh, TINY)
            ways = mesh.shape['tensor'] if spec and spec[0] == 'tensor' else 1
            assert TINY.num_kv_heads % ways == 0


def test_loading_puts_each_part_where_it_belongs(tmp_path):
    tiny_torch.save('qwen2', tmp_path)
    whole = models.load(tmp_path, 'float32')
    mesh = mesh_of((2, 2, 2))
    spread = models.load(tmp_path, 'float32', mesh=mesh)
    expected = weights.flatten(sharding.shardings(whole.params, mesh, whole.config))
    for path, leaf in weights.flatten(spread.params).items():
        assert leaf.sharding == expected[path], path
    jax.tree.map(np.testing.assert_array_equal, spread.params, whole.params)
    up = spread.params['layers']['0']['mlp']['up']['weight']
    assert {part.data.shape for part in up.addressable_shards} == {(25, 18)}
    models.save(spread, tmp_path / 'copy')
    again = models.load(tmp_path / 'copy', 'float32')
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


@pytest.mark.parametrize('name', published.SHAPES)
def test_full_size_models_traced_without_arrays(name):
    config = published.SHAPES[name]
    shapes = models.decoder.abstract_params(config, jnp.bfloat16)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == PARAMETERS[name]
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    logits = jax.eval_shape(lambda p, t: forward(config, p, t), shapes, tokens)
    assert logits.shape == (2, 16, config.vocab_size) and logits.dtype == jnp.float32
    # Every parameter beyond norms and biases is cut over all eight devices.
    mesh = mesh_of((1, 8, 1))
    for path, leaf in weights.flatten(shapes).items():
        if len(leaf.shape) == 2:
            assert 'fsdp' in sharding.spec(path, leaf.shape, mesh, config), path


def test_snapshots_have_no_strays():
    kept = {file.name for file in SNAPSHOTS.glob('*.txt')}
    assert kept == {f'sharding_{"_".join(map(str, shape))}.txt' for shape in MESHES}
