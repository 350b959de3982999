"""Known tokens behind paths: prompts and outputs become part of them, steps are scored."""

import jax
import jax.numpy as jnp

from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads, two_part
from rstar_jax.search.engine import copies
from rstar_jax.search.engine.state import KeysValues, Path, as_stored, kv_length

AT_ONCE = (
    64  # tokens of a row: the scores of longer ones are made row by row, which takes less room
)


def forward(
    params,
    prefix: KeysValues,
    path: Path,
    trees,
    tokens,
    counts,
    starts,
    first,
    *,
    config,
    mixed=False,
):
    """Runs segments of known tokens behind paths: prompts, executor outputs, steps to be scored.

    A segment lies in one or more rows that follow each other, all full but for the last.

    Args:
      prefix: per layer, keys and values [1,K,P,d] in front of paths; P may be 0.
      path: whose keys and values [G,K,S,d] the segments continue.
      trees: i32[R], each row's tree. Rows without tokens may name any.
      tokens: i32[R,T].
      counts: i32[R], tokens of each row; 0 for none.
      starts: i32[R], how much of its path a row's segment continues.
      first: i32[R], the row that a row's segment begins with.
      mixed: whether some paths have no prefix in front of them.

    Returns:
      The hidden state behind each row's last token [R,D], and per layer the rows' own keys and
      values [R,K,T,d].
    """
    network = decoders.bind(config, params)
    rows, length = tokens.shape
    trees = jnp.minimum(trees, path.length.shape[0] - 1)
    before, shared = path.prefix[trees][:, None], kv_length(prefix)
    own = _offsets(first, length)[:, None] + jnp.arange(length)  # in the segment
    # Row by row the rows from the segment's first one on; those behind the row itself are masked.
    segment = jnp.minimum(first[:, None] + jnp.arange(rows), rows - 1)
    group = config.num_heads // config.num_kv_heads

    def biases(window, starts, before, own):
        """Of path, own tokens and prefix."""
        stored, of_segment = jnp.arange(path.kv[0][0].shape[2]), jnp.arange(rows * length)
        positions = before + starts[:, None] + own
        path_mask = (stored < starts[:, None])[:, None, :]
        own_mask = of_segment <= own[..., None]
        if window is not None:
            path_mask = path_mask & (before[..., None] + stored > positions[..., None] - window)
            path_mask = jnp.repeat(path_mask, group, axis=1)
            own_mask = own_mask & (of_segment > own[..., None] - window)
        own_mask = jnp.repeat(own_mask, group, axis=1)
        present = before[:, 0] > 0 if mixed else None
        to_prefix = two_part.prefix_bias(shared, group, positions, window, present)
        return two_part.bias(path_mask[:, None]), two_part.bias(own_mask[:, None]), to_prefix

    places = starts, before, own
    windows = dict.fromkeys(config.windows or (None,))
    by_window = {window: biases(window, *places) for window in windows}

    def attend(q, k, v, cache, window=None):
        prefix_kv, (path_k, path_v) = cache
        prefix_kv = [decoders.of_bits(x) for x in prefix_kv]
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

        def attended(queries, trees, segment, path_bias, own_bias, prefix_bias):
            path_kv = [decoders.of_bits(x[trees]) for x in (path_k, path_v)]
            own_kv = [
                x[segment].swapaxes(1, 2).reshape(len(trees), x.shape[1], -1, x.shape[3])
                for x in (k, v)
            ]
            parts = [
                two_part.attend(queries, *path_kv, path_bias),
                two_part.attend(queries, *own_kv, own_bias),
            ]
            if shared:
                parts.append(two_part.attend_shared(queries, *prefix_kv, prefix_bias))
            return two_part.merge(*parts).astype(q.dtype)

        def one(row):
            queries, trees, segment, *place = jax.tree.map(lambda x: x[None], row)
            return attended(queries, trees, segment, *biases(window, *place))[0]

        of_rows = two_part.by_key_head(q, k.shape[1]), trees, segment
        if length <= AT_ONCE:
            out = attended(*of_rows, *by_window[window])
        else:
            out = jax.lax.map(one, (*of_rows, *places))
        stored = as_stored(k, path_k.dtype), as_stored(v, path_k.dtype)
        return two_part.by_position(out, length), stored

    caches = list(zip(prefix, path.kv, strict=True))
    hidden, kv = network(tokens, before + starts[:, None] + own, attend, caches)
    last = jnp.maximum(counts - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], kv


def _offsets(first, length: int):
    """i32[R]: where in its segment each row of `length` tokens begins."""
    return (jnp.arange(first.shape[0]) - first) * length


def extend(
    params,
    prefix: KeysValues,
    path: Path,
    trees,
    tokens,
    counts,
    starts,
    first,
    *,
    config,
    mixed: bool = False,
) -> Path:
    """Computes tokens behind paths and makes them part of these; arguments as for `forward`.

    Rows in use come first; a row without tokens names a tree that does not exist.
    """
    rows = trees, tokens, counts, starts, first
    hidden, kv = forward(params, prefix, path, *rows, config=config, mixed=mixed)
    at = starts + _offsets(first, tokens.shape[1])

    # The loop takes the hidden states in as well, so that the last layer has read its part of the
    # paths before: otherwise the compiler copies that part of all paths.
    def write(i, path):
        return path.replace(
            kv=copies.put_row(path.kv, kv, trees[i], i, at[i], counts[i]),
            length=path.length.at[trees[i]].set(at[i] + counts[i]),
            hidden=path.hidden.at[trees[i]].set(hidden[i]),
        )

    return jax.lax.fori_loop(0, (counts > 0).sum(), write, path)


def score(
    params,
    prefix: KeysValues,
    path: Path,
    cells_kv: KeysValues,
    trees,
    tokens,
    counts,
    cells,
    first,
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
      cells_kv: per layer, keys and values [C,K,M,d] of the steps that were scored, M a multiple of
        `copies.COPIED`.
      trees, tokens, counts, first: as for `forward`; rows in use come first.
      cells: i32[R], where in `cells_kv` the first M positions of each row's step are put.
      squash: a name in `heads.SQUASHES`.
      mixed: as for `forward`.

    Returns:
      cells_kv, and f32[R] scores behind each row, in [-1, 1] where they are squashed: a step's own
      is that of its last row.
    """
    starts = path.length[jnp.minimum(trees, path.length.shape[0] - 1)]
    rows = trees, tokens, counts, starts, first
    hidden, kv = forward(params['decoder'], prefix, path, *rows, config=config, mixed=mixed)
    at = _offsets(first, tokens.shape[1])
    held = jnp.minimum(counts, cells_kv[0][0].shape[2] - at)

    def write(i, cells_kv):
        return copies.put_row(cells_kv, kv, cells[i], i, at[i], held[i])

    cells_kv = jax.lax.fori_loop(0, (counts > 0).sum(), write, cells_kv)
    return cells_kv, heads.squash(squash, heads.value(params['value_head'], hidden))
