"""Known tokens behind paths: prompts and outputs become part of them, steps are scored."""

import functools

import jax
import jax.numpy as jnp

from rstar_jax import parallel
from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads, two_part
from rstar_jax.search.engine.batch import Known
from rstar_jax.search.engine.state import KeysValues, Path, as_stored, kv_length, put_row

# Tokens of a row: the scores of longer ones are made row by row, which takes less room.
AT_ONCE = 64
# Platforms where rows are cut out of paths one by one, as they are read: all at once the compiler
# copies the paths of all trees, in parts.
PATHS_BY_ROW = ('tpu',)


def forward(
    params, prefix: KeysValues, path: Path, known: Known, *, config, mixed: bool
) -> tuple[jax.Array, KeysValues]:
    """Runs segments of known tokens behind paths: prompts, executor outputs, steps to be scored.

    Args:
      prefix: per layer, keys and values [1,K,P,d] in front of paths; P may be 0.
      path: whose keys and values [G,K,S,d] the segments continue.
      mixed: whether some paths have no prefix in front of them.

    Returns the hidden state behind each row's last token [R,D], and per layer the rows' own keys
    and values [R,K,T,d].
    """
    network = decoders.bind(config, params)
    rows, length = known.tokens.shape
    trees, starts = jnp.minimum(known.trees, path.length.shape[0] - 1), known.starts
    before, shared = path.prefix[trees][:, None], kv_length(prefix)
    own = known.offsets()[:, None] + jnp.arange(length)  # in the segment
    # Row by row the rows from the segment's first one on; those behind the row itself are masked.
    segment = jnp.minimum(known.first[:, None] + jnp.arange(rows), rows - 1)
    places = starts, before, own
    biases = functools.partial(_biases, config, (kv_length(path.kv), rows * length, shared), mixed)
    by_window = {w: biases(w, *places) for w in dict.fromkeys(config.windows or (None,))}

    def attend(q, k, v, cache, window=None):
        prefix_kv, (path_k, path_v) = cache
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

        def to_path(queries, trees, bias):
            path_kv = [decoders.of_bits(x[trees]) for x in (path_k, path_v)]
            return two_part.attend(queries, *path_kv, bias)

        def attended(queries, trees, segment, path_bias, own_bias, prefix_bias):
            by_row = parallel.platform() in PATHS_BY_ROW
            read = functools.partial(_row_by_row, to_path) if by_row else to_path
            own_kv = (_in_one(x, segment) for x in (k, v))
            parts = [
                read(queries, trees, path_bias),
                two_part.attend(queries, *own_kv, own_bias),
            ]
            if shared:
                shared_kv = map(decoders.of_bits, prefix_kv)
                parts.append(two_part.attend_shared(queries, *shared_kv, prefix_bias))
            return two_part.merge(*parts).astype(q.dtype)

        def of_place(queries, trees, segment, *place):
            return attended(queries, trees, segment, *biases(window, *place))

        of_rows = two_part.by_key_head(q, k.shape[1]), trees, segment
        if length <= AT_ONCE:
            out = attended(*of_rows, *by_window[window])
        else:
            out = _row_by_row(of_place, *of_rows, *places)
        stored = as_stored(k, path_k.dtype), as_stored(v, path_k.dtype)
        return two_part.by_position(out, length), stored

    caches = list(zip(prefix, path.kv, strict=True))
    hidden, kv = network(known.tokens, before + starts[:, None] + own, attend, caches)
    last = jnp.maximum(known.counts - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], kv


def _biases(config, lengths: tuple[int, int, int], mixed: bool, window, starts, before, own):
    """Of path, own tokens and prefix, which have so many positions."""
    room, tokens, shared = lengths
    group = config.num_heads // config.num_kv_heads
    stored, of_segment = jnp.arange(room), jnp.arange(tokens)
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


def _in_one(x: jax.Array, segment: jax.Array) -> jax.Array:
    """Keys or values [R,K,T,d], those of the rows of i32[Q,R] one after another: [Q,K,R*T,d]."""
    return x[segment].swapaxes(1, 2).reshape(len(segment), x.shape[1], -1, x.shape[3])


def _row_by_row(f, *rows):
    """`f(*rows)`, where `f` maps arrays along their first axis: for one row after another."""

    def one(row):
        return jax.tree.map(lambda x: x[0], f(*(x[None] for x in row)))

    return jax.lax.map(one, rows)


def extend(
    params, prefix: KeysValues, path: Path, known: Known, *, config, mixed: bool = False
) -> Path:
    """Computes tokens behind paths and makes them part of these; arguments as for `forward`."""
    hidden, kv = forward(params, prefix, path, known, config=config, mixed=mixed)
    trees, counts, at = known.trees, known.counts, known.starts + known.offsets()

    # The loop takes the hidden states in as well, so that the last layer has read its part of the
    # paths before: otherwise the compiler copies that part of all paths.
    def write(i, path):
        return path.replace(
            kv=put_row(path.kv, kv, trees[i], i, at[i], counts[i]),
            length=path.length.at[trees[i]].set(at[i] + counts[i]),
            hidden=path.hidden.at[trees[i]].set(hidden[i]),
        )

    return jax.lax.fori_loop(0, (counts > 0).sum(), write, path)


def score(
    params,
    prefix: KeysValues,
    path: Path,
    cells_kv: KeysValues,
    known: Known,
    *,
    config,
    squash: str,
    mixed: bool = False,
) -> tuple[KeysValues, jax.Array]:
    """Scores steps with the PPM, each behind its tree's path.

    Args:
      params: {'decoder', 'value_head'}.
      prefix: as for `forward`.
      path: the trees' paths [G,K,S,d]; a step continues the whole of its own.
      cells_kv: per layer, keys and values [C,K,M,d] of the steps that were scored, M a multiple of
        `state.COPIED`. The first M positions of a step are put into its cell.
      squash: a name in `heads.SQUASHES`.
      mixed: as for `forward`.

    Returns:
      cells_kv, and f32[R] scores behind each row, in [-1, 1] where they are squashed: a step's own
      is that of its last row.
    """
    starts = path.length[jnp.minimum(known.trees, path.length.shape[0] - 1)]
    behind = known.replace(starts=starts)
    hidden, kv = forward(params['decoder'], prefix, path, behind, config=config, mixed=mixed)
    counts, at = known.counts, known.offsets()
    held = jnp.minimum(counts, kv_length(cells_kv) - at)

    def write(i, cells_kv):
        return put_row(cells_kv, kv, known.starts[i], i, at[i], held[i])

    cells_kv = jax.lax.fori_loop(0, (counts > 0).sum(), write, cells_kv)
    return cells_kv, heads.squash(squash, heads.value(params['value_head'], hidden))
