"""The two models of the method: a policy that writes steps, and a PPM that scores them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax.models import attention, decoder, heads, sharding
from rstar_jax.models.config import Config
from rstar_jax.settings.errors import UserError


@dataclasses.dataclass
class Policy:
    """A language model.

    tokenizer: a transformers fast tokenizer. params: nested dict of arrays (see `decoder`).
    generation: further keys of generation_config.json, carried from the checkpoint to its export.
    """

    config: Config
    tokenizer: Any = dataclasses.field(repr=False)
    params: decoder.Params = dataclasses.field(repr=False)  # all would be fetched to be shown
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def logits(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """f32[B, T, V] of tokens i32[B, T], padded on the right; lengths i32[B].

        What stands at positions from a row's length on is meaningless.
        """
        tokens, lengths = jnp.asarray(tokens), jnp.asarray(lengths)
        return _logits(self.config, self.params, tokens, lengths)


@dataclasses.dataclass
class PPM:
    """A process preference model: the decoder with a scalar head instead of the vocabulary's.

    params: {'decoder': ..., 'value_head': {'weight': f32[1, D], 'bias': f32[1]}}.
    squash: how the value comes into [-1, 1], a key of `heads.SQUASHES`.
    """

    config: Config
    tokenizer: Any = dataclasses.field(repr=False)
    params: decoder.Params = dataclasses.field(repr=False)  # all would be fetched to be shown
    squash: str = 'tanh'
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.squash not in heads.SQUASHES:
            expected = f'expected one of {", ".join(heads.SQUASHES)}'
            raise UserError('squash', self.squash, expected)

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """f32[B] in [-1, 1], read at the last token of each row.

        tokens: i32[B, T], padded on the right; lengths: i32[B], at least 1.
        """
        tokens, lengths = jnp.asarray(tokens), jnp.asarray(lengths)
        return _scores(self.config, self.squash, self.params, tokens, lengths)


def init_ppm(policy: Policy, seed: int = 0, squash: str = 'tanh') -> PPM:
    """A PPM to be trained from `policy`: its decoder (arrays shared) with a new scalar head."""
    trunk = {name: part for name, part in policy.params.items() if name != 'output'}
    head = heads.init_value_head(policy.config.embed_dim, jax.random.key(seed))
    params = {'decoder': trunk, 'value_head': head}
    return PPM(policy.config, policy.tokenizer, params, squash, dict(policy.generation))


def add_tokens(policy: Policy, tokens: list[str]) -> Policy:
    """`policy` with `tokens` as special tokens of its tokenizer; tokens it knows stay as they are.

    A new token's rows, in the embedding and in an untied output, begin as the mean of the rows of
    the pieces in which the tokenizer wrote its text so far: no two of them alike, and near to what
    the model knows of that text. Padding rows of the vocabulary are used first; the vocabulary
    grows only by what they do not hold. `policy` itself is left as it is.
    """
    import copy

    tokenizer = copy.deepcopy(policy.tokenizer)
    fresh = new_tokens(policy, tokens)
    pieces = [tokenizer(token, add_special_tokens=False)['input_ids'] for token in fresh]
    # Encoded, a new token must come out whole: transformers' own flag for that is "special".
    tokenizer.add_special_tokens(
        {'additional_special_tokens': fresh}, replace_extra_special_tokens=False
    )
    ids = tokenizer.convert_tokens_to_ids(fresh)
    params = dict(policy.params)
    for name in ('embed', 'output'):
        if name in params:
            weight = _with_rows_of_pieces(name, params[name]['weight'], ids, pieces)
            params[name] = {**params[name], 'weight': weight}
    config = policy.config.replace(vocab_size=params['embed']['weight'].shape[0])
    return Policy(config, tokenizer, params, dict(policy.generation))


def new_tokens(policy: Policy, tokens: list[str]) -> list[str]:
    """Those of `tokens` that are no token of their own in `policy` yet."""
    known = policy.tokenizer.get_vocab()
    return [token for token in dict.fromkeys(tokens) if token not in known]


def _with_rows_of_pieces(
    name: str, weight: jax.Array, ids: list[int], pieces: list[list[int]]
) -> jax.Array:
    """Sets the rows `ids` to means of the rows of their pieces, appending rows as needed."""
    if not pieces:
        return weight
    shape = (max(max(ids) + 1, weight.shape[0]), weight.shape[1])
    where = None
    mesh = sharding.mesh_of(weight)
    if mesh is not None:
        spec = sharding.spec(f'{name}/weight', shape, mesh)
        where = jax.sharding.NamedSharding(mesh, spec)

    def made(weight):
        grown = jnp.zeros((shape[0] - weight.shape[0], shape[1]), weight.dtype)
        weight = jnp.concatenate([weight, grown])
        rows = [jnp.mean(weight[np.array(part)].astype(jnp.float32), axis=0) for part in pieces]
        return weight.at[np.array(ids)].set(jnp.stack(rows).astype(weight.dtype))

    return jax.jit(made, out_shardings=where)(weight)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, lengths):
    network = decoder.bind(config, params)
    return network.head(_hidden(network, tokens, lengths))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(config, squash, params, tokens, lengths):
    network = decoder.bind(config, params['decoder'])
    hidden = _hidden(network, tokens, lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return heads.squash(squash, heads.value(params['value_head'], last))


def _hidden(network, tokens, lengths):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return network(tokens, positions, attention.whole_texts(lengths), rope_length=lengths)[0]
