"""The device side of generation, and the loop that decodes.

    what all prompts begin with --extend--> prefix  (keys and values, once for all trees)
    prompt, outputs --extend--> Path  (keys and values of root..cursor, once a tree)
    Path --decode--> Slots --ended--> Cells  (candidate steps: tokens, keys and values)
    Cells --append--> Path  (the child that the walk went into; nothing is computed again)
    Cells, Path --copy--> kept --copy--> Path  (steps that a later walk comes by again)
    Path, tokens --score--> PPM scores and PPM Cells

`state` has the arrays, `prefill` extend and score, `copies` append and copy. All arrays are
those of one device; `programs` maps the functions over the devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rstar_jax.models import decoder as decoders
from rstar_jax.models import two_part
from rstar_jax.search.engine import copies, devices, sampling
from rstar_jax.search.engine.state import (
    CANCELLED,
    DONE,
    EMPTY,
    FREE,
    PENDING,
    RUNNING,
    Cells,
    KeysValues,
    Path,
    Slots,
    Stops,
    as_stored,
    kv_length,
)
from rstar_jax.steps import marks

BLOCK = 128  # positions of a path that are read together


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
    blocks: int | None = None,
    near: int | None = None,
    mixed: bool = False,
    repetition: int = 0,
) -> tuple[Cells, Slots, jax.Array]:
    """Decodes a chunk: some tokens in every slot, refilling slots as their steps end.

    Args:
      iterations: i32[2]; so many, or more, up to the second, while no slot is without work. It
        stops early when no cell is pending or running.
      blocks: so many blocks of paths are attended to, copied layer by layer, and only cells behind
        paths that lie in them are decoded; those in slots already must. None: all paths, in place.
      near: so many positions of its step does every slot attend to; what lies behind is looked at
        for those slots alone whose step is longer. None: all positions, for all.
      mixed: as for `prefill.forward`.
      repetition: a step is stopped when so many tokens in a row were written before at one
        distance, up to the periods of `slots`; 0, never.

    Returns:
      The new cells and slots, and i32[1,2]: iterations done, and tokens computed (live slots summed
      over the iterations).
    """
    network = decoders.bind(config, params)
    limit = cells.tokens.shape[1]
    used, taken = _used(path, cells, candidates, blocks)

    def iterate(carry):
        cells, slots, done, computed = carry
        cells, slots = _refill(cells, slots, path, candidates, taken)
        live = slots.cell != FREE
        cells, slots, token, kind = _sample(
            network, stops, cells, slots, live, settings, limit, repetition
        )
        slots = _run_token(network, prefix, path, used, slots, token, live, candidates, near, mixed)
        cells, slots = _retire(cells, slots, live, kind)
        cells, slots = _cancel(cells, slots, candidates, settings.first_answer_only)
        return cells, slots, done + 1, computed + live.sum(dtype=jnp.int32)

    def working(carry):
        cells, slots, done, _ = carry
        pending, live = (taken & (cells.state == PENDING)).any(), slots.cell != FREE
        wanted = jnp.where(pending | live.all(), iterations[1], iterations[0])
        return (done < wanted) & (pending | live.any())

    zero = jnp.int32(0)
    cells, slots, done, computed = jax.lax.while_loop(working, iterate, (cells, slots, zero, zero))
    return cells, slots, jnp.stack([done, computed])[None]


@struct.dataclass
class _Used:
    """The blocks of paths that a chunk attends to, those of a tree one after another.

    Attributes:
      tree: i32[U], whose they are; G where nothing is left.
      first: i32[U], position of a path that each begins at.
      start: i32[U], where each is read from, so that it ends within the path's room.
    """

    tree: jax.Array
    first: jax.Array
    start: jax.Array


def _used(
    path: Path, cells: Cells, candidates: int, blocks: int | None
) -> tuple[_Used | None, jax.Array]:
    """Which blocks a chunk attends to, and bool[C] the cells behind the paths in them.

    The paths of trees that are decoded, and then of those whose turn is first.
    """
    total = path.length.shape[0]
    if blocks is None:
        return None, jnp.ones(cells.state.shape, bool)
    last = jnp.iinfo(jnp.int32).max
    turn = jnp.where(cells.state == PENDING, cells.turn, last)
    turn = jnp.where(cells.state == RUNNING, -1, turn).reshape(total, candidates).min(axis=1)
    count = jnp.where(turn < last, -(-path.length // BLOCK), 0)
    order = jnp.argsort(turn, stable=True)
    fits = jnp.zeros((total,), bool).at[order].set(jnp.cumsum(count[order]) <= blocks)
    ends = jnp.cumsum(jnp.where(fits, count, 0))
    number = jnp.arange(blocks)
    tree = (ends <= number[:, None]).sum(axis=1)
    first = (number - jnp.where(tree > 0, ends[tree - 1], 0)) * BLOCK
    room = kv_length(path.kv)
    start = jnp.minimum(first, room - min(BLOCK, room))
    return _Used(tree, first, start), jnp.repeat(fits, candidates)


def _refill(
    cells: Cells, slots: Slots, path: Path, candidates: int, allowed: jax.Array
) -> tuple[Cells, Slots]:
    """Gives free slots to pending cells of bool[C] `allowed`, those whose turn is first."""
    count = cells.state.shape[0]
    free = slots.cell == FREE
    pending = allowed & (cells.state == PENDING)
    queue = jnp.argsort(jnp.where(pending, cells.turn, jnp.iinfo(jnp.int32).max), stable=True)
    queue = jnp.where(pending[queue], queue, count)
    taken = jnp.where(free, queue[jnp.minimum(jnp.cumsum(free), count) - 1], count)
    new = taken < count
    tree = jnp.minimum(taken, count - 1) // candidates
    slots = slots.replace(
        cell=jnp.where(new, taken, slots.cell).astype(jnp.int32),
        length=jnp.where(new, 0, slots.length),
        mark=jnp.where(new, jnp.uint8(0), slots.mark),
        runs=jnp.where(new[:, None], 0, slots.runs),
        hidden=jnp.where(new[:, None], path.hidden[tree], slots.hidden),
    )
    state = cells.state.at[taken].set(jnp.uint8(RUNNING), mode='drop')
    return cells.replace(state=state), slots


def _sample(
    network, stops: Stops, cells: Cells, slots: Slots, live, settings, limit: int, repetition: int
):
    """Samples each live slot's next token and notes it in its cell."""
    logits = devices.whole(network.next_logits(slots.hidden))
    padding = -len(logits) % sampling.BLOCK
    logits = jnp.pad(logits, ((0, padding), (0, 0)))
    logits = jnp.where(jnp.arange(len(logits))[:, None] < stops.vocab, logits, -jnp.inf)
    cell = jnp.maximum(slots.cell, 0)
    u = sampling.uniforms(cells.keys[cell], slots.length)
    token, share = sampling.sample(logits, u, settings)
    mark = stops.next[slots.mark, token]
    length = slots.length + live
    kind = jnp.where(length >= limit, jnp.uint8(marks.LIMIT), jnp.uint8(marks.NONE))
    runs = _runs(cells.tokens[cell], slots, token)
    if repetition:
        repeated = (runs >= repetition).any(axis=1)
        kind = jnp.where(repeated, jnp.uint8(marks.REPEATED), kind)
    kind = jnp.where(stops.kind[mark] != marks.NONE, stops.kind[mark], kind)
    at = jnp.where(live, slots.cell, cells.state.shape[0])
    cells = cells.replace(
        tokens=cells.tokens.at[at, slots.length].set(token, mode='drop'),
        length=cells.length.at[at].set(length, mode='drop'),
        likelihood=cells.likelihood.at[at].add(jnp.log(share), mode='drop'),
    )
    return cells, slots.replace(length=length, mark=mark, runs=runs), token, kind


def _runs(written: jax.Array, slots: Slots, token: jax.Array) -> jax.Array:
    """`Slots.runs` behind one more token; i32[B,T] `written` are those before it."""
    back = slots.length[:, None] - 1 - jnp.arange(slots.runs.shape[1])
    before = jnp.take_along_axis(written, jnp.maximum(back, 0), axis=1)
    return jnp.where((back >= 0) & (before == token[:, None]), slots.runs + 1, 0)


def _run_token(
    network,
    prefix: KeysValues,
    path: Path,
    used: _Used | None,
    slots: Slots,
    token,
    live,
    candidates: int,
    near: int | None,
    mixed: bool,
) -> Slots:
    """Runs the layers over the token just sampled, attending to prefix, path and own step."""
    trees, room = path.length.shape[0], kv_length(path.kv)
    rows = jnp.arange(slots.cell.shape[0])
    cell = jnp.where(live, slots.cell, trees * candidates)
    tree = jnp.minimum(cell // candidates, trees - 1)
    own = jnp.maximum(slots.length - 1, 0)
    before, shared = path.prefix[tree], kv_length(prefix)
    position = before + path.length[tree] + own
    limit = slots.kv[0][0].shape[2]
    group = network.config.num_heads // network.config.num_kv_heads
    own_mask = jnp.arange(limit) <= own[:, None]
    slot_of_cell = jnp.zeros((trees * candidates,), jnp.int32).at[cell].set(rows, mode='drop')

    def biases(window):
        """Of path, step and prefix."""
        if used is None:
            of, stored = jnp.arange(trees), jnp.arange(room)
            path_mask = stored < path.length[:, None]
        else:
            of = jnp.minimum(used.tree, trees - 1)
            stored = used.start[:, None] + jnp.arange(min(BLOCK, room))
            path_mask = (stored >= used.first[:, None]) & (stored < path.length[of][:, None])
        path_mask = path_mask[:, None, :]
        step_mask = own_mask
        if window is not None:
            reach = position[:, None] - window
            step_mask &= (before + path.length[tree])[:, None] + jnp.arange(limit) > reach
            reach = reach[slot_of_cell].reshape(trees, candidates, 1)[of]
            at = path.prefix[of][:, None, None] + jnp.atleast_2d(stored)[:, None, :]
            path_mask = path_mask & (at > reach)
            path_mask = jnp.repeat(path_mask, group, axis=1)
        present = before > 0 if mixed else None
        to_prefix = two_part.prefix_bias(shared, group, position[:, None], window, present)
        to_path = two_part.bias(path_mask[:, None])
        return to_path, two_part.bias(step_mask[:, None, None]), to_prefix

    by_window = {
        window: biases(window) for window in dict.fromkeys(network.config.windows or (None,))
    }

    def attend(q, k, v, cache, window=None):
        prefix_kv, (path_k, path_v), (step_k, step_v) = cache
        path_bias, step_bias, prefix_bias = by_window[window]
        dims = slice(q.shape[-1])
        at = rows[:, None], jnp.arange(k.shape[2]), own[:, None], dims
        step_k = step_k.at[at].set(as_stored(k[:, 0], step_k.dtype))
        step_v = step_v.at[at].set(as_stored(v[:, 0], step_v.dtype))
        queries = two_part.by_key_head(q, k.shape[2])
        parts = [
            _path_part(queries, cell, slot_of_cell, path_k, path_v, path_bias, used),
            _step_part(queries, step_k, step_v, step_bias, own, near),
        ]
        if shared:
            prefix_kv = map(decoders.of_bits, prefix_kv)
            parts.append(two_part.attend_shared(queries, *prefix_kv, prefix_bias))
        out = two_part.merge(*parts).astype(q.dtype)
        return two_part.by_position(out, 1), (*cache[:2], (step_k, step_v))

    caches = list(zip(prefix, path.kv, slots.kv, strict=True))
    hidden, caches = network(token[:, None], position[:, None], attend, caches)
    return slots.replace(hidden=hidden[:, 0], kv=[step for *_, step in caches])


def _path_part(
    queries, cell, slot_of_cell, path_k, path_v, bias, used: _Used | None
) -> two_part.Part:
    """Attention of the slots to their trees' paths; each path is read once for all its slots.

    queries [B,K,r,d] are brought to their cells, [G,K,n*r,d]; the result is gathered back. What
    cells without a slot get nobody reads. bias: f32[G or U, 1, 1 or n*r, S or a block's length].
    """
    _, kv_heads, group, d = queries.shape
    trees = path_k.shape[0]
    candidates = slot_of_cell.shape[0] // trees
    by_tree = queries[slot_of_cell].reshape(trees, candidates, kv_heads, group, d).swapaxes(1, 2)
    by_tree = by_tree.reshape(trees, kv_heads, -1, d)
    if used is None:
        part = two_part.attend(by_tree, decoders.of_bits(path_k), decoders.of_bits(path_v), bias)
    else:
        own = jnp.minimum(used.tree, trees - 1)
        blocks = (decoders.of_bits(_blocks(x, own, used.start)) for x in (path_k, path_v))
        part = two_part.attend(by_tree[own], *blocks, bias)
        part = two_part.gather(part, used.tree == jnp.arange(trees)[:, None])

    def back(x):
        x = x.reshape(trees, kv_heads, candidates, group, *x.shape[3:]).swapaxes(1, 2)
        x = x.reshape(trees * candidates, kv_heads, group, *x.shape[4:])
        return x[jnp.minimum(cell, trees * candidates - 1)]

    return two_part.Part(*map(back, part))


def _step_part(queries, step_k, step_v, bias, own, near: int | None) -> two_part.Part:
    """Attention of the slots to their own steps, whose newest positions are i32[B] `own`.

    Most steps are short. Behind `near`, a quarter of the slots at a time, as far as there are such.
    """
    if near is None or near >= step_k.shape[2]:
        return two_part.attend(queries, decoders.of_bits(step_k), decoders.of_bits(step_v), bias)
    near_kv = (decoders.of_bits(x[:, :, :near]) for x in (step_k, step_v))
    part = two_part.attend(queries, *near_kv, bias[..., :near])
    rows = own.shape[0]
    some = -(-rows // 4)
    order = jnp.pad(jnp.argsort(own < near, stable=True), (0, some), constant_values=rows)

    def add(i, part):
        at = jax.lax.dynamic_slice(order, (i * some,), (some,))
        read = jnp.minimum(at, rows - 1)
        far_kv = (decoders.of_bits(x[read, :, near:]) for x in (step_k, step_v))
        far = two_part.attend(queries[read], *far_kv, bias[read, ..., near:])
        joined = two_part.join(two_part.Part(*(x[read] for x in part)), far)
        return two_part.Part(*(x.at[at].set(y, mode='drop') for x, y in zip(part, joined)))

    return jax.lax.fori_loop(0, -(-(own >= near).sum() // some), add, part)


def _blocks(stored: jax.Array, tree: jax.Array, first: jax.Array) -> jax.Array:
    """Blocks [U,K,BLOCK,d] of keys or values [G,K,S,d], at i32[U] positions of i32[U] trees."""
    _, kv_heads, room, d = stored.shape
    size = 1, kv_heads, min(BLOCK, room), d
    cut = jax.vmap(lambda tree, at: jax.lax.dynamic_slice(stored, (tree, 0, at, 0), size)[0])
    return cut(tree, first)


def _retire(cells: Cells, slots: Slots, live, kind) -> tuple[Cells, Slots]:
    """Moves steps that ended out of their slots into their cells."""
    ended = live & (kind != marks.NONE)
    which = jnp.nonzero(ended, size=ended.shape[0], fill_value=0)[0]

    def move(i, kv):
        slot = which[i]
        return copies.put_row(kv, slots.kv, slots.cell[slot], slot, 0, slots.length[slot])

    kv = jax.lax.fori_loop(0, ended.sum(), move, cells.kv)
    at = jnp.where(ended, slots.cell, cells.state.shape[0])
    cells = cells.replace(
        kv=kv,
        hidden=cells.hidden.at[at].set(slots.hidden, mode='drop'),
        state=cells.state.at[at].set(jnp.uint8(DONE), mode='drop'),
        end=cells.end.at[at].set(kind, mode='drop'),
    )
    return cells, slots.replace(cell=jnp.where(ended, FREE, slots.cell))


def _cancel(cells: Cells, slots: Slots, candidates: int, wanted) -> tuple[Cells, Slots]:
    """Where that is wanted, stops the candidates behind the first that ended in an answer."""
    state = cells.state.reshape(-1, candidates)
    answer = (state == DONE) & (cells.end.reshape(-1, candidates) == marks.ANSWER)
    behind = wanted & (jnp.cumsum(answer, axis=1) - answer > 0)
    state = jnp.where(behind & (state < DONE) & (state > EMPTY), jnp.uint8(CANCELLED), state)
    state = state.reshape(-1)
    gone = state[jnp.maximum(slots.cell, 0)] == CANCELLED
    return cells.replace(state=state), slots.replace(cell=jnp.where(gone, FREE, slots.cell))
