"""The device side of generation: paths, cells and slots, and the loop that decodes.

    what all prompts begin with --extend--> prefix  (keys and values, once for all trees)
    prompt, outputs --extend--> Path  (keys and values of root..cursor, once a tree)
    Path --decode--> Slots --ended--> Cells  (candidate steps: tokens, keys and values)
    Cells --append--> Path  (the child that the walk went into; nothing is computed again)
    Cells, Path --keep--> kept --recall--> Path  (steps that a later walk comes by again)
    Path, tokens --score--> PPM scores and PPM Cells

A *cell* is one candidate of one tree, cell = tree * n + candidate. A *slot* is one row of the
decode batch and belongs to no tree: it takes any pending cell, and the next one as soon as that
ends. All arrays here are those of one device; `engine` maps the functions over the devices.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rstar_jax.models import decoder as decoders
from rstar_jax.models import heads, two_part
from rstar_jax.search import devices, sampling
from rstar_jax.steps import marks

EMPTY, PENDING, RUNNING, DONE, CANCELLED = range(5)
FREE = -1
COPIED = 32  # positions of keys and values that are copied at once
KeysValues = list[tuple[jax.Array, jax.Array]]


@struct.dataclass
class Path:
    """The current path (prompt, then steps down to the cursor) of each of G trees.

    Attributes:
      kv: per layer, keys and values [G,K,S,d], without those of the prefix.
      length: i32[G], tokens in the path behind the prefix.
      hidden: [G,D], hidden state behind the path's last token: what the next token comes from.
    """

    kv: KeysValues
    length: jax.Array
    hidden: jax.Array


@struct.dataclass
class Cells:
    """The candidates of each tree's cursor; C = G * n cells.

    Attributes:
      kv: per layer, keys and values of the step [C,K,T,d].
      hidden: [C,D], hidden state behind the step's last token.
      tokens: i32[C,T].
      length: i32[C], tokens sampled.
      likelihood: f32[C], sum of their log-probabilities.
      state: u8[C], EMPTY, PENDING, RUNNING, DONE or CANCELLED.
      end: u8[C], the kind of mark at which the step ended (`steps.marks`).
      keys: u32[C,2], sampling keys.
      turn: i32[C]; slots go to the pending cells with the lowest first.
    """

    kv: KeysValues
    hidden: jax.Array
    tokens: jax.Array
    length: jax.Array
    likelihood: jax.Array
    state: jax.Array
    end: jax.Array
    keys: jax.Array
    turn: jax.Array


@struct.dataclass
class Slots:
    """The decode batch; B slots.

    Attributes:
      kv: per layer, keys and values of the step being written [B,K,T,d].
      hidden: [B,D], hidden state that the next token is sampled from.
      cell: i32[B], FREE for none.
      length: i32[B], tokens of the step so far.
      mark: u8[B], state of the stop-mark automaton.
    """

    kv: KeysValues
    hidden: jax.Array
    cell: jax.Array
    length: jax.Array
    mark: jax.Array


@struct.dataclass
class Stops:
    """The stop-mark automaton on the device (`steps.marks.MarkTable`), and which ids exist.

    Attributes:
      next: u8[states,V].
      kind: u8[states].
      vocab: i32[], ids from here on are padding rows of the head and never sampled.
    """

    next: jax.Array
    kind: jax.Array
    vocab: jax.Array


def empty_kv(config, rows: int, positions: int, dtype) -> KeysValues:
    """Returns zeros [rows,K,positions,d] for the keys and values of each layer."""
    shape = (rows, config.num_kv_heads, positions, config.head_dim)
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)]


def cache_dtype(platform: str, dtype) -> Any:
    """The dtype of the caches of a network that runs in `dtype`.

    XLA for CPUs has no batched products in bfloat16: it would widen every cache for each token.
    """
    return jnp.dtype(jnp.float32) if platform == 'cpu' else jnp.dtype(dtype)


def kept_dtype(platform: str, dtype) -> Any:
    """The dtype that steps are kept in: the model's, as bits where XLA would widen them all.

    On CPUs it widens a bfloat16 array as a whole for each slice that a loop writes into it.
    """
    return jnp.dtype(jnp.uint16 if (platform, dtype) == ('cpu', jnp.bfloat16) else dtype)


def wide_embedding(platform: str, config, params: Any) -> tuple[Any, Any]:
    """(config, params) whose table for looking tokens up is float32 where the platform needs it.

    In a loop XLA for CPUs widens a bfloat16 table as a whole before rows are taken from it.
    """
    decoder = params.get('decoder', params)
    table = decoder['embed']['weight']
    if platform != 'cpu' or table.dtype == jnp.float32:
        return config, params
    decoder = {**decoder, 'embed': {'weight': jnp.asarray(table, jnp.float32)}}
    if 'decoder' in params:
        return config, {**params, 'decoder': decoder}
    if config.tie_embeddings:
        decoder['output'] = {'weight': table}
        config = dataclasses.replace(config, tie_embeddings=False)
    return config, decoder


def empty_path(config, trees: int, positions: int, dtype, kv_dtype=None) -> Path:
    return Path(
        kv=empty_kv(config, trees, positions, kv_dtype or dtype),
        length=jnp.zeros((trees,), jnp.int32),
        hidden=jnp.zeros((trees, config.embed_dim), dtype),
    )


def empty_cells(config, cells: int, positions: int, dtype, kv_dtype=None) -> Cells:
    return Cells(
        kv=empty_kv(config, cells, positions, kv_dtype or dtype),
        hidden=jnp.zeros((cells, config.embed_dim), dtype),
        tokens=jnp.zeros((cells, positions), jnp.int32),
        length=jnp.zeros((cells,), jnp.int32),
        likelihood=jnp.zeros((cells,), jnp.float32),
        state=jnp.full((cells,), EMPTY, jnp.uint8),
        end=jnp.zeros((cells,), jnp.uint8),
        keys=jnp.zeros((cells, 2), jnp.uint32),
        turn=jnp.zeros((cells,), jnp.int32),
    )


def empty_slots(config, slots: int, positions: int, dtype, kv_dtype=None) -> Slots:
    return Slots(
        kv=empty_kv(config, slots, positions, kv_dtype or dtype),
        hidden=jnp.zeros((slots, config.embed_dim), dtype),
        cell=jnp.full((slots,), FREE, jnp.int32),
        length=jnp.zeros((slots,), jnp.int32),
        mark=jnp.zeros((slots,), jnp.uint8),
    )


def decode(
    params: Any,
    stops: Stops,
    prefix: KeysValues,
    path: Path,
    cells: Cells,
    slots: Slots,
    settings: sampling.Settings,
    iterations: jax.Array,
    *,
    config,
    candidates: int,
    first_answer_only: bool,
    trees: int | None = None,
) -> tuple[Cells, Slots, jax.Array]:
    """Decodes up to `iterations` tokens in every slot, refilling slots as their steps end.

    Stops early when no cell is pending or running. No more than `trees` trees may have such cells
    (None: all may); only their paths are attended to. Returns the new cells and slots, and i32[2]:
    iterations done, and tokens computed (live slots summed over the iterations).
    """
    network = decoders.bind(config, params)
    limit = cells.tokens.shape[1]
    used, place = _paths_in_use(path, cells, candidates, trees)

    def iterate(carry):
        cells, slots, done, computed = carry
        cells, slots = _refill(cells, slots, path, candidates)
        live = slots.cell != FREE
        cells, slots, token, kind = _sample(network, stops, cells, slots, live, settings, limit)
        slots = _run_token(network, prefix, used, place, slots, token, live, candidates)
        cells, slots = _retire(cells, slots, live, kind)
        if first_answer_only:
            cells, slots = _cancel(cells, slots, candidates)
        return cells, slots, done + 1, computed + live.sum(dtype=jnp.int32)

    def working(carry):
        cells, slots, done, _ = carry
        waiting = (cells.state == PENDING).any() | (slots.cell != FREE).any()
        return (done < iterations) & waiting

    zero = jnp.int32(0)
    cells, slots, done, computed = jax.lax.while_loop(working, iterate, (cells, slots, zero, zero))
    return cells, slots, jnp.stack([done, computed])[None]


def _paths_in_use(
    path: Path, cells: Cells, candidates: int, trees: int | None
) -> tuple[Path, jax.Array]:
    """The paths of those trees that have cells to decode, and i32[G] where each of these is."""
    total = path.length.shape[0]
    if trees is None or trees >= total:
        return path, jnp.arange(total)
    busy = ((cells.state == PENDING) | (cells.state == RUNNING)).reshape(total, candidates)
    rows = jnp.nonzero(busy.any(axis=1), size=trees, fill_value=total - 1)[0]
    place = jnp.zeros((total,), jnp.int32).at[rows].set(jnp.arange(trees))
    return jax.tree.map(lambda x: x[rows], path), place


def _refill(cells: Cells, slots: Slots, path: Path, candidates: int) -> tuple[Cells, Slots]:
    """Gives free slots to pending cells, those whose turn is first."""
    count = cells.state.shape[0]
    free = slots.cell == FREE
    pending = cells.state == PENDING
    queue = jnp.argsort(jnp.where(pending, cells.turn, jnp.iinfo(jnp.int32).max), stable=True)
    queue = jnp.where(pending[queue], queue, count)
    taken = jnp.where(free, queue[jnp.minimum(jnp.cumsum(free), count) - 1], count)
    new = taken < count
    tree = jnp.minimum(taken, count - 1) // candidates
    slots = slots.replace(
        cell=jnp.where(new, taken, slots.cell).astype(jnp.int32),
        length=jnp.where(new, 0, slots.length),
        mark=jnp.where(new, jnp.uint8(0), slots.mark),
        hidden=jnp.where(new[:, None], path.hidden[tree], slots.hidden),
    )
    state = cells.state.at[taken].set(jnp.uint8(RUNNING), mode='drop')
    return cells.replace(state=state), slots


def _sample(network, stops: Stops, cells: Cells, slots: Slots, live, settings, limit: int):
    """Samples each live slot's next token and notes it in its cell."""
    logits = devices.whole(network.head(slots.hidden))
    padding = -logits.shape[1] % sampling.BLOCK
    logits = jnp.pad(logits, ((0, 0), (0, padding)))
    logits = jnp.where(jnp.arange(logits.shape[1]) < stops.vocab, logits, -jnp.inf)
    cell = jnp.maximum(slots.cell, 0)
    u = sampling.uniforms(cells.keys[cell], slots.length)
    token, share = sampling.sample(logits, u, settings)
    mark = stops.next[slots.mark, token]
    length = slots.length + live
    kind = jnp.where(length >= limit, jnp.uint8(marks.LIMIT), jnp.uint8(marks.NONE))
    kind = jnp.where(stops.kind[mark] != marks.NONE, stops.kind[mark], kind)
    at = jnp.where(live, slots.cell, cells.state.shape[0])
    cells = cells.replace(
        tokens=cells.tokens.at[at, slots.length].set(token, mode='drop'),
        length=cells.length.at[at].set(length, mode='drop'),
        likelihood=cells.likelihood.at[at].add(jnp.log(share), mode='drop'),
    )
    return cells, slots.replace(length=length, mark=mark), token, kind


def _run_token(
    network, prefix: KeysValues, path: Path, place, slots: Slots, token, live, candidates: int
) -> Slots:
    """Runs the layers over the token just sampled, attending to prefix, path and own step.

    path: of the trees in use; i32[G] `place` says which is a tree's. Cells here are theirs.
    """
    trees = path.length.shape[0]
    rows = jnp.arange(slots.cell.shape[0])
    cell = place[slots.cell // candidates] * candidates + slots.cell % candidates
    cell = jnp.where(live, cell, trees * candidates)
    tree = jnp.minimum(cell // candidates, trees - 1)
    own = jnp.maximum(slots.length - 1, 0)
    before = _length(prefix)
    position = before + path.length[tree] + own
    limit = slots.kv[0][0].shape[2]
    group = network.config.num_heads // network.config.num_kv_heads
    own_mask = jnp.arange(limit) <= own[:, None]
    slot_of_cell = jnp.zeros((trees * candidates,), jnp.int32).at[cell].set(rows, mode='drop')

    @functools.cache
    def biases(window):
        """Of path, step and prefix."""
        stored = jnp.arange(path.kv[0][0].shape[2])
        path_mask = (stored < path.length[:, None])[:, None, :]
        step_mask = own_mask
        if window is not None:
            reach = position[:, None] - window
            step_mask &= before + path.length[tree][:, None] + jnp.arange(limit) > reach
            reach = reach[slot_of_cell].reshape(trees, candidates, 1)
            path_mask = path_mask & (before + stored > reach)
            path_mask = jnp.repeat(path_mask, group, axis=1)
        near = _prefix_bias(before, group, position[:, None], window)
        return two_part.bias(path_mask[:, None]), two_part.bias(step_mask[:, None, None]), near

    def attend(q, k, v, cache, window=None):
        first, (path_k, path_v), (step_k, step_v) = cache
        path_bias, step_bias, first_bias = biases(window)
        dims = slice(q.shape[-1])
        step_k = step_k.at[rows, :, own, dims].set(k[:, 0].astype(step_k.dtype))
        step_v = step_v.at[rows, :, own, dims].set(v[:, 0].astype(step_v.dtype))
        queries = two_part.by_key_head(q, k.shape[2]).astype(step_k.dtype)
        parts = [
            _path_part(queries, cell, slot_of_cell, path_k, path_v, path_bias),
            two_part.attend(queries, step_k, step_v, step_bias),
        ]
        if before:
            parts.append(two_part.attend_shared(queries, *first, first_bias))
        out = two_part.merge(*parts).astype(q.dtype)
        return two_part.by_position(out, 1), (*cache[:2], (step_k, step_v))

    caches = list(zip(prefix, path.kv, slots.kv, strict=True))
    hidden, caches = network(token[:, None], position[:, None], attend, caches)
    return slots.replace(hidden=hidden[:, 0], kv=[step for *_, step in caches])


def _length(prefix: KeysValues) -> int:
    return prefix[0][0].shape[2]


def _prefix_bias(length: int, group: int, positions, window: int | None) -> jax.Array | None:
    """Of tokens at i32[R,T] `positions`, `group` queries each, to a prefix: f32[R,T*group,P]."""
    if window is None:
        return None
    reach = jnp.repeat(positions - window, group, axis=1)
    return two_part.bias(jnp.arange(length) > reach[..., None])


def _path_part(queries, cell, slot_of_cell, path_k, path_v, bias) -> two_part.Part:
    """Attention of the slots to their trees' paths; each path is read once for all its slots.

    queries [B,K,r,d] are brought to their cells, [G,K,n*r,d]; the result is gathered back. What
    cells without a slot get nobody reads. bias: f32[G, 1, 1 or n*r, S].
    """
    _, kv_heads, group, d = queries.shape
    trees = path_k.shape[0]
    candidates = slot_of_cell.shape[0] // trees
    by_tree = queries[slot_of_cell].reshape(trees, candidates, kv_heads, group, d).swapaxes(1, 2)
    part = two_part.attend(by_tree.reshape(trees, kv_heads, -1, d), path_k, path_v, bias)

    def back(x):
        x = x.reshape(trees, kv_heads, candidates, group, *x.shape[3:]).swapaxes(1, 2)
        x = x.reshape(trees * candidates, kv_heads, group, *x.shape[4:])
        return x[jnp.minimum(cell, trees * candidates - 1)]

    return two_part.Part(*map(back, part))


def _retire(cells: Cells, slots: Slots, live, kind) -> tuple[Cells, Slots]:
    """Moves steps that ended out of their slots into their cells."""
    ended = live & (kind != marks.NONE)
    which = jnp.nonzero(ended, size=ended.shape[0], fill_value=0)[0]

    def move(i, kv):
        slot = which[i]
        return _put_row(kv, slots.kv, slots.cell[slot], slot, 0, slots.length[slot])

    kv = jax.lax.fori_loop(0, ended.sum(), move, cells.kv)
    at = jnp.where(ended, slots.cell, cells.state.shape[0])
    cells = cells.replace(
        kv=kv,
        hidden=cells.hidden.at[at].set(slots.hidden, mode='drop'),
        state=cells.state.at[at].set(jnp.uint8(DONE), mode='drop'),
        end=cells.end.at[at].set(kind, mode='drop'),
    )
    return cells, slots.replace(cell=jnp.where(ended, FREE, slots.cell))


def _cancel(cells: Cells, slots: Slots, candidates: int) -> tuple[Cells, Slots]:
    """Stops the candidates behind the first that ended in an answer: they would be dropped."""
    state = cells.state.reshape(-1, candidates)
    answer = (state == DONE) & (cells.end.reshape(-1, candidates) == marks.ANSWER)
    behind = (jnp.cumsum(answer, axis=1) - answer) > 0
    state = jnp.where(behind & (state < DONE) & (state > EMPTY), jnp.uint8(CANCELLED), state)
    state = state.reshape(-1)
    gone = state[jnp.maximum(slots.cell, 0)] == CANCELLED
    return cells.replace(state=state), slots.replace(cell=jnp.where(gone, FREE, slots.cell))


def _put_row(
    into: KeysValues, source: KeysValues, row, source_row, offset, count, source_offset=0
) -> KeysValues:
    """Copies `count` positions of a row of `source` into a row of `into`, at `offset`.

    In blocks: up to COPIED - 1 positions behind the last are overwritten as well, and looked at
    where they do not begin at 0.
    """
    length = source[0][0].shape[2]
    block = min(COPIED, length)

    def copy(i, into):
        start = jnp.minimum(source_offset + i * block, length - block)

        def put(target, values):
            _, heads, _, dim = values.shape
            at = (source_row, 0, start, 0)
            values = jax.lax.dynamic_slice(values, at, (1, heads, block, dim))
            at = (row, 0, offset + start - source_offset, 0)
            return jax.lax.dynamic_update_slice(target, _cast(values, target.dtype), at)

        return jax.tree.map(put, into, source)

    return jax.lax.fori_loop(0, (count + block - 1) // block, copy, into)


def _cast(values: jax.Array, dtype) -> jax.Array:
    """`values` in another dtype; uint16 stands for the bits of bfloat16."""
    if values.dtype == dtype:
        return values
    if values.dtype == jnp.uint16:
        values = jax.lax.bitcast_convert_type(values, jnp.bfloat16)
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(values.astype(jnp.bfloat16), dtype)
    return values.astype(dtype)


def forward(params, prefix: KeysValues, path: Path, trees, tokens, counts, starts, *, config):
    """Runs rows of known tokens behind paths: prompts, executor outputs, steps to be scored.

    Args:
      prefix: per layer, keys and values [1,K,P,d] in front of every path; P may be 0.
      path: whose keys and values [G,K,S,d] the rows continue.
      trees: i32[R], each row's path. Rows without tokens may name any.
      tokens: i32[R,C].
      counts: i32[R], tokens of each row; 0 for none.
      starts: i32[R], how much of its path a row continues.

    Returns:
      The hidden state behind each row's last token [R,D], and per layer the rows' own keys and
      values [R,K,C,d].
    """
    network = decoders.bind(config, params)
    length = tokens.shape[1]
    trees = jnp.minimum(trees, path.length.shape[0] - 1)
    own = jnp.arange(length)
    before = _length(prefix)
    positions = before + starts[:, None] + own
    causal = (own[None, None, :] <= own[None, :, None]) & (own < counts[:, None])[:, None, :]
    causal |= jnp.eye(length, dtype=bool)[None]

    group = config.num_heads // config.num_kv_heads

    @functools.cache
    def biases(window):
        """Of path, own tokens and prefix."""
        stored = jnp.arange(path.kv[0][0].shape[2])
        path_mask, own_mask = (stored < starts[:, None])[:, None, :], causal
        if window is not None:
            path_mask = path_mask & (before + stored > positions[..., None] - window)
            path_mask = jnp.repeat(path_mask, group, axis=1)
            own_mask = own_mask & (own[None, None, :] > own[None, :, None] - window)
        own_mask = jnp.repeat(own_mask, group, axis=1)
        near = _prefix_bias(before, group, positions, window)
        return two_part.bias(path_mask[:, None]), two_part.bias(own_mask[:, None]), near

    def attend(q, k, v, cache, window=None):
        first, (path_k, path_v) = cache
        path_bias, own_bias, first_bias = biases(window)
        queries = two_part.by_key_head(q, k.shape[2])
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        # With so many queries, products in the model's dtype are worth a narrowed copy of a cache.
        path_kv = [x[trees].astype(q.dtype) for x in (path_k, path_v)]
        parts = [
            two_part.attend(queries, *path_kv, path_bias),
            two_part.attend(queries, k, v, own_bias),
        ]
        if before:
            first = [x.astype(q.dtype) for x in first]
            parts.append(two_part.attend_shared(queries, *first, first_bias))
        out = two_part.merge(*parts).astype(q.dtype)
        return two_part.by_position(out, length), (k.astype(path_k.dtype), v.astype(path_k.dtype))

    caches = list(zip(prefix, path.kv, strict=True))
    hidden, kv = network(tokens, positions, attend, caches)
    last = jnp.maximum(counts - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], kv


def extend(
    params, prefix: KeysValues, path: Path, trees, tokens, counts, starts, *, config
) -> Path:
    """Computes tokens behind paths and makes them part of these; arguments as for `forward`.

    Rows in use come first; a row without tokens names a tree that does not exist.
    """
    hidden, kv = forward(params, prefix, path, trees, tokens, counts, starts, config=config)

    def write(i, stored):
        return _put_row(stored, kv, trees[i], i, starts[i], counts[i])

    return Path(
        kv=jax.lax.fori_loop(0, (counts > 0).sum(), write, path.kv),
        length=path.length.at[trees].set(starts + counts, mode='drop'),
        hidden=path.hidden.at[trees].set(hidden, mode='drop'),
    )


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
):
    """Scores steps with the PPM, each behind its tree's path.

    Args:
      params: {'decoder', 'value_head'}.
      cells_kv: per layer, keys and values of the scored steps [C,K,T,d]; those of the rows'
        steps are written to i32[R] `cells`, as far as they fit.

    Returns:
      cells_kv, and f32[R] scores in [-1, 1].
    """
    starts = path.length[jnp.minimum(trees, path.length.shape[0] - 1)]
    hidden, kv = forward(
        params['decoder'], prefix, path, trees, tokens, counts, starts, config=config
    )
    room = cells_kv[0][0].shape[2]
    kv = jax.tree.map(lambda x: x[:, :, :room], kv)

    def write(i, stored):
        return _put_row(stored, kv, cells[i], i, 0, jnp.minimum(counts[i], room))

    cells_kv = jax.lax.fori_loop(0, (counts > 0).sum(), write, cells_kv)
    return cells_kv, heads.squash(squash, heads.value(params['value_head'], hidden))


def append(path: Path, cells_kv: KeysValues, hidden, trees, cells, starts, counts) -> Path:
    """Makes finished steps part of their trees' paths, from the keys and values at hand.

    Args:
      hidden: [C,D] of the cells, or None where the path's hidden state is of no use (PPM).
      trees, cells, starts, counts: i32[A]; path `trees[i]` becomes its first `starts[i]` tokens
        and then the first `counts[i]` of cell `cells[i]`. Entries in use come first; the others
        name a tree that does not exist.
    """

    def write(i, stored):
        return _put_row(stored, cells_kv, trees[i], cells[i], starts[i], counts[i])

    new = {
        'kv': jax.lax.fori_loop(0, (trees < path.length.shape[0]).sum(), write, path.kv),
        'length': path.length.at[trees].set(starts + counts, mode='drop'),
    }
    if hidden is not None:
        last = hidden[jnp.minimum(cells, hidden.shape[0] - 1)]
        new['hidden'] = path.hidden.at[trees].set(last, mode='drop')
    return path.replace(**new)


def keep(
    kept: KeysValues, source: KeysValues, rows, source_rows, offsets, source_offsets, counts
) -> KeysValues:
    """Copies steps, or parts of paths, to where a later walk can recall them from, or back.

    Args:
      kept: per layer, keys and values [G,K,M,d], in a dtype of their own (`kept_dtype`).
      source: per layer, keys and values [R,K,S,d].
      rows, source_rows: i32[A]. Entries in use come first; the others have a count of 0.
      offsets, source_offsets, counts: i32[A], positions.
    """

    def write(i, kept):
        place = rows[i], source_rows[i], offsets[i], counts[i], source_offsets[i]
        return _put_row(kept, source, *place)

    return jax.lax.fori_loop(0, (counts > 0).sum(), write, kept)


def recall(path: Path, kept: KeysValues, *places) -> Path:
    """`keep` the other way round; the path's length and hidden state stay as they are."""
    return path.replace(kv=keep(path.kv, kept, *places))


def open_cells(cells: Cells, opened: jax.Array, keys: jax.Array, turn: jax.Array) -> Cells:
    """Marks the cells of bool[C] `opened` as pending, with u32[C,2] keys and i32[C] turns."""
    return cells.replace(
        state=jnp.where(opened, jnp.uint8(PENDING), cells.state),
        length=jnp.where(opened, 0, cells.length),
        likelihood=jnp.where(opened, 0.0, cells.likelihood),
        keys=jnp.where(opened[:, None], keys, cells.keys),
        turn=jnp.where(opened, turn, cells.turn),
    )


def resize(slots: Slots, size: int) -> Slots:
    """Packs the live slots into `size` slots; there must be no more than that."""
    order = jnp.argsort(slots.cell == FREE, stable=True)
    have = slots.cell.shape[0]
    if size <= have:
        return jax.tree.map(lambda x: x[order[:size]], slots)

    def pad(x):
        return jnp.pad(x, ((0, size - have), *[(0, 0)] * (x.ndim - 1)))

    grown = jax.tree.map(pad, slots)
    cell = jnp.where(jnp.arange(size) < have, grown.cell, FREE)
    return grown.replace(cell=cell)


def grow(path: Path, positions: int) -> Path:
    """Returns the path with room for `positions` tokens (more or fewer than before)."""

    def fit(x):
        missing = positions - x.shape[2]
        if missing <= 0:
            return x[:, :, :positions]
        return jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))

    return path.replace(kv=jax.tree.map(fit, path.kv))


def first_path(path: Path, positions: int) -> KeysValues:
    """Returns the first `positions` keys and values of the first path, [1,K,P,d] per layer."""
    return jax.tree.map(lambda x: x[:1, :, :positions], path.kv)


def sampling_key(*parts: Any) -> np.ndarray:
    """Returns u32[2], a hash of the parts: the key of one candidate, whoever decodes it when."""
    text = '/'.join(map(str, parts))
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32)
