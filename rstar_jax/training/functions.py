"""What a training computes, as functions of arrays: gradients, updates, evaluation.

`step.Compiled` compiles them. `frozen` is what is not trained (training.lora), {} where all is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rstar_jax.training import activations, layers, lora, losses


@dataclasses.dataclass(frozen=True)
class Functions:
    """Those of one training.

    Attributes:
      config: the decoder's.
      settings: as of training.settings.
      dtype: the network runs in it.
      loss: a name in losses.BY_NAME.
      optimiser: as of optimiser.optimiser.
    """

    config: Any
    settings: Any
    dtype: jnp.dtype
    loss: str
    optimiser: optax.GradientTransformation

    def step(self, state, batch, scale, number, frozen):
        """`accumulate` and `update` of one micro batch -> (state, metric sums, norm)."""
        grads, metrics = self._gradients(state['params'], frozen, batch, scale, number)
        state, norm = self.update(state, grads, frozen)
        return state, metrics, norm

    def accumulate(self, grads, params, batch, scale, number, frozen):
        """-> (grads + gradients of scale * (loss of the micro batch), metric sums)."""
        new, metrics = self._gradients(params, frozen, batch, scale, number)
        return jax.tree.map(jnp.add, grads, new), metrics

    def update(self, state, grads, frozen):
        """One AdamW step -> (state, norm of the gradients before clipping)."""
        moments, params = state['optimiser'], state['params']
        norm = optax.tree.norm(grads)
        updates, moments = self.optimiser.update(grads, moments, params, frozen=frozen)
        params = optax.apply_updates(params, updates)
        return {'params': params, 'optimiser': moments}, norm

    def evaluate(self, loss: str, params, batch, frozen):
        """-> sums of a loss and its metrics, without dropout."""
        value, metrics = self._value(params, frozen, batch, None, loss)
        return {'loss': value} | metrics

    def read(self, params, batch, frozen):
        """-> the hidden states f32[R, P, D] of a reward model's decoder at batch['places']."""
        decoder = lora.joined(frozen, layers.cast(params, self.dtype))['decoder']
        hidden = losses.hidden_states(self.config, decoder, batch, self.settings)
        found = jnp.take_along_axis(hidden, batch['places'][..., None], axis=1)
        return found.astype(jnp.float32)

    def _gradients(self, params, frozen, batch, scale, number):
        key = jax.random.key(self.settings.seed)
        for n in number:
            key = jax.random.fold_in(key, n)

        def loss(params, added):
            value, metrics = self._value(params, frozen, batch | added, key, self.loss)
            return scale * value, {'loss': value} | metrics

        added = {}
        if not frozen:  # see _with_looked_up
            shape = *batch['tokens'].shape, self.config.embed_dim
            added['added'] = activations.rows_over_mesh(jnp.zeros(shape, self.dtype))
        (grads, by_input), metrics = jax.grad(loss, (0, 1), has_aux=True)(params, added)
        if added:
            # Padding is nowhere: XLA's sums are slow where one index comes again and again.
            tokens = jnp.where(batch['end'] > 0, batch['tokens'], self.config.vocab_size)
            grads = _with_looked_up(grads, tokens, by_input['added'])
        return grads, metrics

    def _value(self, params, frozen, batch, key, loss: str):
        value_head = params.get('value_head')
        params = layers.cast(params, self.dtype)
        if value_head is not None:
            params['value_head'] = value_head
        params = lora.joined(frozen, params)
        return losses.BY_NAME[loss](self.config, params, batch, key, self.settings)


def _with_looked_up(grads, tokens: jax.Array, by_input: jax.Array):
    """Adds the gradients of looked up rows to those of the embedding.

    Left to JAX, they would be a table of their own beside the output's: as large again where one
    table is both, and in bfloat16 a frequent token's would be summed in bfloat16.

    tokens: i32[R, T], those beyond the vocabulary are left out. by_input: [R, T, D], gradients by
      what was looked up.
    """
    if 'decoder' in grads:
        return {**grads, 'decoder': _with_looked_up(grads['decoder'], tokens, by_input)}
    table = grads['embed']['weight']
    by_input = activations.columns_over_mesh(by_input.astype(table.dtype))
    return {**grads, 'embed': {'weight': table.at[tokens].add(by_input, mode='drop')}}
