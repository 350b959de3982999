"""Known tokens behind paths: prompts and outputs become part of them, steps are scored."""

import jax
import jax.numpy as jnp

from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads, two_part
from rstar_jax.search.engine import copies
from rstar_jax.search.engine.state import KeysValues, Path, as_stored, kv_length


def forward(
    params, prefix: KeysValues, path: Path, trees, tokens, counts, starts, *, config, mixed=False
):
    """Runs rows of known tokens behind paths: prompts, executor outputs, steps to be scored.

    Args:
      prefix: per layer, keys and values [1,K,P,d] in front of paths; P may be 0.
      path: whose keys and values [G,K,S,d] the rows continue.
      trees: i32[R], each row's tree. Rows without tokens may name any.
      tokens: i32[R,T].
      counts: i32[R], tokens of each row; 0 for none.
      starts: i32[R], how much of its path a row continues.
      mixed: whether some paths have no prefix in front of them.

    Returns:
      The hidden state behind each row's last token [R,D], and per layer the rows' own keys and
      values [R,K,T,d].
    """
    network = decoders.bind(config, params)
    length = tokens.shape[1]
    trees = jnp.minimum(trees, path.length.shape[0] - 1)
    own = jnp.arange(length)
    before, shared = path.prefix[trees][:, None], kv_length(prefix)
    positions = before + starts[:, None] + own
    causal = (own[None, None, :] <= own[None, :, None]) & (own < counts[:, None])[:, None, :]
    causal |= jnp.eye(length, dtype=bool)[None]

    group = config.num_heads // config.num_kv_heads

    def biases(window):
        """Of path, own tokens and prefix."""
        stored = jnp.arange(path.kv[0][0].shape[2])
        path_mask, own_mask = (stored < starts[:, None])[:, None, :], causal
        if window is not None:
            path_mask = path_mask & (before[..., None] + stored > positions[..., None] - window)
            path_mask = jnp.repeat(path_mask, group, axis=1)
            own_mask = own_mask & (own[None, None, :] > own[None, :, None] - window)
        own_mask = jnp.repeat(own_mask, group, axis=1)
        present = before[:, 0] > 0 if mixed else None
        to_prefix = two_part.prefix_bias(shared, group, positions, window, present)
        return two_part.bias(path_mask[:, None]), two_part.bias(own_mask[:, None]), to_prefix

    by_window = {window: biases(window) for window in dict.fromkeys(config.windows or (None,))}

    def attend(q, k, v, cache, window=None):
        prefix_kv, (path_k, path_v) = cache
        path_bias, own_bias, prefix_bias = by_window[window]
        queries = two_part.by_key_head(q, k.shape[2])
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        path_kv = [decoders.of_bits(x[trees]) for x in (path_k, path_v)]
        parts = [
            two_part.attend(queries, *path_kv, path_bias),
            two_part.attend(queries, k, v, own_bias),
        ]
        if shared:
            prefix_kv = map(decoders.of_bits, prefix_kv)
            parts.append(two_part.attend_shared(queries, *prefix_kv, prefix_bias))
        out = two_part.merge(*parts).astype(q.dtype)
        own_kv = as_stored(k, path_k.dtype), as_stored(v, path_k.dtype)
        return two_part.by_position(out, length), own_kv

    caches = list(zip(prefix, path.kv, strict=True))
    hidden, kv = network(tokens, positions, attend, caches)
    last = jnp.maximum(counts - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], kv


def extend(
    params,
    prefix: KeysValues,
    path: Path,
    trees,
    tokens,
    counts,
    starts,
    *,
    config,
    mixed: bool = False,
) -> Path:
    """Computes tokens behind paths and makes them part of these; arguments as for `forward`.

    Rows in use come first; a row without tokens names a tree that does not exist.
    """
    rows = trees, tokens, counts, starts
    hidden, kv = forward(params, prefix, path, *rows, config=config, mixed=mixed)

    # The loop takes the hidden states in as well, so that the last layer has read its part of the
    # paths before: otherwise the compiler copies that part of all paths.
    def write(i, path):
        return path.replace(
            kv=copies.put_row(path.kv, kv, trees[i], i, starts[i], counts[i]),
            length=path.length.at[trees[i]].set(starts[i] + counts[i]),
            hidden=path.hidden.at[trees[i]].set(hidden[i]),
        )

    return jax.lax.fori_loop(0, (counts > 0).sum(), write, path)


def score(
    params,
    prefix: KeysValues,
    path: Path,
    cells_kv: KeysValues,
    trees,
    cells,
    tokens,
    counts,
    *,
    config,
    squash,
    mixed: bool = False,
):
    """Scores steps with the PPM, each behind its tree's path.

    Args:
      params: {'decoder', 'value_head'}.
      prefix: as for `forward`.
      path: the trees' paths [G,K,S,d]; a step continues the whole of its own.
      cells_kv: per layer, keys and values [C,K,M,d] of the steps that were scored.
      trees: i32[R], each step's tree.
      cells: i32[R], where in `cells_kv` the first M positions of each step are put.
      tokens: i32[R,T], the steps. Rows in use come first.
      counts: i32[R], tokens of each row; 0 for none.
      squash: a name in `heads.SQUASHES`.
      mixed: as for `forward`.

    Returns:
      cells_kv, and f32[R] scores, in [-1, 1] where they are squashed.
    """
    starts = path.length[jnp.minimum(trees, path.length.shape[0] - 1)]
    rows = trees, tokens, counts, starts
    hidden, kv = forward(params['decoder'], prefix, path, *rows, config=config, mixed=mixed)
    room = cells_kv[0][0].shape[2]
    kv = jax.tree.map(lambda x: x[:, :, :room], kv)
    at, none = jnp.arange(cells.shape[0]), jnp.zeros_like(cells)
    cells_kv = copies.copy(cells_kv, kv, cells, at, none, none, jnp.minimum(counts, room))
    return cells_kv, heads.squash(squash, heads.value(params['value_head'], hidden))
