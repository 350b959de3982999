"""The device side of generation, and the loop that decodes.

    what all prompts begin with --extend--> prefix  (keys and values, once for all trees)
    prompt, outputs --extend--> Path  (keys and values of root..cursor, once a tree)
    Path --decode--> Slots --ended--> Cells  (candidate steps: tokens, keys and values)
    Cells --append--> Path  (the child that the walk went into; nothing is computed again)
    Cells, Path --keep--> kept --recall--> Path  (steps that a later walk comes by again)
    Path, tokens --score--> PPM scores and PPM Cells

`state` has the arrays, `prefill` extend and score, `copies` append, keep and recall. All arrays are
those of one device; `programs` maps the functions over the devices.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

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
    kv_length,
)
from rstar_jax.steps import marks


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
    """Decodes a chunk: some tokens in every slot, refilling slots as their steps end.

    i32[2] `iterations`: so many, or more, up to the second, while no slot is without work. Stops
    early when no cell is pending or running. No more than `trees` trees may have such cells (None:
    all may); only their paths are attended to. Returns the new cells and slots, and i32[2]:
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
        pending, live = (cells.state == PENDING).any(), slots.cell != FREE
        wanted = jnp.where(pending | live.all(), iterations[1], iterations[0])
        return (done < wanted) & (pending | live.any())

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
    before = kv_length(prefix)
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
        near = two_part.prefix_bias(before, group, position[:, None], window)
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


def _cancel(cells: Cells, slots: Slots, candidates: int) -> tuple[Cells, Slots]:
    """Stops the candidates behind the first that ended in an answer: they would be dropped."""
    state = cells.state.reshape(-1, candidates)
    answer = (state == DONE) & (cells.end.reshape(-1, candidates) == marks.ANSWER)
    behind = (jnp.cumsum(answer, axis=1) - answer) > 0
    state = jnp.where(behind & (state < DONE) & (state > EMPTY), jnp.uint8(CANCELLED), state)
    state = state.reshape(-1)
    gone = state[jnp.maximum(slots.cell, 0)] == CANCELLED
    return cells.replace(state=state), slots.replace(cell=jnp.where(gone, FREE, slots.cell))
