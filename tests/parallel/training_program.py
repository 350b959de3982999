"""Trains from each kind of model file, saves and exports, on all devices of all processes.

Usage: training_program.py MODELS OUT, where MODELS holds hf/, own/ and model.gguf.
"""

import pathlib
import sys

import jax
import numpy as np

from rstar_jax import models, parallel, steps, training
from rstar_jax.job import hosts
from rstar_jax.stages import checkpoints

WORDS = ('three', 'apples', 'and', 'four', 'pears', 'seven', 'plums')


def examples(rng):
    for _ in range(8):
        text = ' '.join(rng.choice(WORDS, rng.integers(4, 12)))
        yield {'query': text[:12], 'response': f'<code>\n{text}<end_of_step><end_of_code>'}


def pairs(rng):
    for _ in range(6):
        prompt = steps.prompt(' '.join(rng.choice(WORDS, 4))) + '<code>\n'
        sides = {side: ' '.join(rng.choice(WORDS, 5)) + '<end_of_step>' for side in ('pos', 'neg')}
        yield {'prompt': prompt, **sides, 'pos_count': 1, 'neg_count': 1}


def settings(kind, **changes):
    shape = dict(epochs=2, batch_size=4, length=192, learning_rate=1e-3, held_out=0.3)
    return training.settings(kind, {'dtype': 'float32'} | shape | changes)


def check(params, mesh) -> None:
    """Every array is where the table says: no device has more than its part."""
    for leaf in jax.tree.leaves(params):
        if leaf.ndim == 2 and leaf.shape[0] > 1:
            part = leaf.addressable_shards[0].data.size
            assert part * mesh.shape['fsdp'] == leaf.size, (leaf.shape, leaf.sharding)


def main(folder: pathlib.Path, out: pathlib.Path) -> None:
    mesh = parallel.global_mesh()
    for name in ('hf', 'own', 'model.gguf'):
        rng = np.random.default_rng(0)
        policy = checkpoints.load_model(folder / name, 'policy', 'float32', mesh=mesh)
        check(policy.params, mesh)
        sft = settings('sft', form=0.0)
        policy, _ = training.sft(policy, examples(rng), sft, out / name, mesh=mesh, release=True)
        check(policy.params, mesh)
        del policy
    # From here on it is the same, whatever it began with.
    policy = checkpoints.load_model(out / 'hf', 'policy', 'float32', mesh=mesh)
    check(policy.params, mesh)
    ppm_settings = settings('ppm', batch_size=2)
    data = list(pairs(rng))
    fitted = training.settings('ppm', {**ppm_settings, 'head': 'fitted'})
    training.ppm(policy, data, fitted, out / 'fitted', mesh=mesh)
    ppm, _ = training.ppm(policy, data, ppm_settings, out / 'ppm', mesh=mesh, release=True)
    check(ppm.params, mesh)
    policy = models.load(out / 'hf', 'float32', mesh=mesh)
    models.save(policy, out / 'export' / 'policy')
    models.save_ppm(ppm, out / 'export' / 'ppm')


if __name__ == '__main__':
    hosts.initialise()
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    hosts.barrier('end')
