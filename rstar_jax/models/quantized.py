"""Weights in 8 bits, for searching: half the bytes of bfloat16 to hold and to read.

Every dense weight [out, in] becomes int8 with one float32 scale for each output, such that its
largest entry is 127 (absmax, LLM.int8 arXiv 2208.07339 section 2). Products run in the dtype of the
hidden states; norms, biases, the table that tokens are looked up in and the value head stay as they
are.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from rstar_jax.models.policy import PPM, Policy

LARGEST = 127
Model = TypeVar('Model', Policy, PPM)


def quantized(model: Model) -> Model:
    """The model in 8 bits. Its former weights are given up one by one: it cannot be used again."""
    is_ppm = isinstance(model, PPM)
    decoder = dict(model.params['decoder'] if is_ppm else model.params)
    decoder['layers'] = {name: _layer(layer) for name, layer in decoder['layers'].items()}
    if not is_ppm:
        if model.config.tie_embeddings:
            decoder['output'] = _scaled(decoder['embed']['weight'])
        else:
            decoder['output'] = _scaled_in_place(decoder['output']['weight'])
    config = dataclasses.replace(model.config, int8=True, tie_embeddings=False)
    params = {**model.params, 'decoder': decoder} if is_ppm else decoder
    return dataclasses.replace(model, config=config, params=params)


def _layer(layer: dict) -> dict:
    if 'weight' not in layer:
        return {name: _layer(part) for name, part in layer.items()}
    if layer['weight'].ndim < 2:
        return layer
    return {**layer, **_scaled_in_place(layer['weight'])}


@jax.jit
def _scaled(weight: jax.Array) -> dict[str, jax.Array]:
    wide = jnp.asarray(weight, jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=1), jnp.finfo(jnp.float32).tiny) / LARGEST
    return {'weight': jnp.round(wide / scale[:, None]).astype(jnp.int8), 'scale': scale}


def _scaled_in_place(weight: jax.Array) -> dict[str, jax.Array]:
    made = jax.block_until_ready(_scaled(weight))
    if isinstance(weight, jax.Array):
        weight.delete()
    return made
