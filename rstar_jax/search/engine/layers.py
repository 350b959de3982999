"""The layers of a decode step: each slot's tokens attend to prefix, path and own step.

Of paths it reads the blocks that are in use, copied layer by layer, or all where they lie.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rstar_jax import models
from rstar_jax.models import decoder as decoders
from rstar_jax.models import two_part
from rstar_jax.search.engine.state import (
    PENDING,
    RUNNING,
    Cells,
    KeysValues,
    Path,
    Slots,
    as_stored,
    kv_length,
)

BLOCK = 128  # positions of a path that are read together


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a decode step is compiled for, beside its arrays' shapes.

    Attributes:
      config: of the policy.
      candidates: cells of each tree.
      blocks: so many blocks of paths are attended to, copied layer by layer, and only cells behind
        paths that lie in them are decoded; those in slots already must. None: all paths, in place.
      near: so many positions of its step does every slot attend to; what lies behind is looked at
        for those slots alone whose step is longer. None: all positions, for all.
      mixed: whether some paths have no prefix in front of them.
      repetition: a step is stopped when so many tokens in a row were written before at one
        distance, of PERIODS at most; 0, never.
      ahead: tokens drafted behind each that is sampled (see `drafts`) and computed with it. Those
        that are then sampled, too, take no step of their own.
    """

    config: models.Config
    candidates: int
    blocks: int | None = None
    near: int | None = None
    mixed: bool = False
    repetition: int = 0
    ahead: int = 0


@struct.dataclass
class Used:
    """The blocks of paths that a chunk attends to, those of a tree one after another.

    Attributes:
      tree: i32[U], whose they are; G where nothing is left.
      first: i32[U], position of a path that each begins at.
      start: i32[U], where each is read from, so that it ends within the path's room.
    """

    tree: jax.Array
    first: jax.Array
    start: jax.Array


def used(path: Path, cells: Cells, variant: Variant) -> tuple[Used | None, jax.Array]:
    """Which blocks a chunk attends to, and bool[C] the cells behind the paths in them.

    The paths of trees that are decoded, and then of those whose turn is first.
    """
    total, candidates, blocks = path.length.shape[0], variant.candidates, variant.blocks
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
    return Used(tree, first, start), jnp.repeat(fits, candidates)


@dataclasses.dataclass
class _Places:
    """Where the tokens of a decode step stand, and so what each of them sees.

    Attributes:
      cell: i32[B], G * n for slots that are not live. tree: i32[B].
      slot: i32[G*n], of each cell.
      own: i32[B,1+A], positions in the step.
      before: i32[B], tokens of the prefix in front; behind: i32[B], those and the path's.
    """

    variant: Variant
    path: Path
    used: Used | None
    cell: jax.Array
    slot: jax.Array
    own: jax.Array
    tree: jax.Array
    before: jax.Array
    behind: jax.Array

    @classmethod
    def of(cls, variant: Variant, path: Path, used: Used | None, slots: Slots, live, width: int):
        trees, candidates = path.length.shape[0], variant.candidates
        cell = jnp.where(live, slots.cell, trees * candidates)
        tree = jnp.minimum(cell // candidates, trees - 1)
        own = jnp.maximum(slots.length - 1, 0)[:, None] + jnp.arange(width)
        before = path.prefix[tree]
        slot = jnp.zeros((trees * candidates,), jnp.int32)
        slot = slot.at[cell].set(jnp.arange(len(cell)), mode='drop')
        behind = before + path.length[tree]
        return cls(variant, path, used, cell, slot, own, tree, before, behind)

    @property
    def position(self) -> jax.Array:
        """i32[B,1+A], in the text."""
        return self.behind[:, None] + self.own

    def biases(self, shared: int, limit: int, window: int | None) -> tuple:
        """Of path, step (of `limit` positions) and prefix (of `shared`)."""
        path, used, candidates = self.path, self.used, self.variant.candidates
        trees, room, width = path.length.shape[0], kv_length(path.kv), self.own.shape[1]
        config = self.variant.config
        group = config.num_heads // config.num_kv_heads
        if used is None:
            of, stored = jnp.arange(trees), jnp.arange(room)
            path_mask = stored < path.length[:, None]
        else:
            of = jnp.minimum(used.tree, trees - 1)
            stored = used.start[:, None] + jnp.arange(min(BLOCK, room))
            path_mask = (stored >= used.first[:, None]) & (stored < path.length[of][:, None])
        path_mask = path_mask[:, None, :]
        step_mask = jnp.arange(limit) <= self.own[..., None]
        if window is not None:
            reach = self.position - window
            step_mask &= self.behind[:, None, None] + jnp.arange(limit) > reach[..., None]
            reach = reach[self.slot].reshape(trees, candidates * width, 1)[of]
            at = path.prefix[of][:, None, None] + jnp.atleast_2d(stored)[:, None, :]
            path_mask = jnp.repeat(path_mask & (at > reach), group, axis=1)
        present = self.before > 0 if self.variant.mixed else None
        to_prefix = two_part.prefix_bias(shared, group, self.position, window, present)
        if width > 1:
            step_mask = jnp.repeat(step_mask, group, axis=1)
        return two_part.bias(path_mask[:, None]), two_part.bias(step_mask[:, None]), to_prefix


def run(
    network,
    variant: Variant,
    prefix: KeysValues,
    path: Path,
    used: Used | None,
    slots: Slots,
    tokens,
    live,
) -> tuple[Slots, jax.Array]:
    """Runs the layers over tokens, attending to prefix, path and own step.

    tokens: i32[B,1+A], the one just sampled, and drafts. Those that turn out wrong leave keys and
    values that nobody reads before others take their place.

    Returns the slots, and [B,A,D] hidden states behind the drafts.
    """
    width, shared, limit = tokens.shape[1], kv_length(prefix), kv_length(slots.kv)
    places = _Places.of(variant, path, used, slots, live, width)
    rows, own = jnp.arange(slots.cell.shape[0]), places.own
    windows = dict.fromkeys(network.config.windows or (None,))
    by_window = {window: places.biases(shared, limit, window) for window in windows}

    def attend(q, k, v, cache, window=None):
        prefix_kv, path_kv, (step_k, step_v) = cache
        path_bias, step_bias, prefix_bias = by_window[window]
        dims = slice(q.shape[-1])
        at = rows[:, None, None], jnp.arange(k.shape[2]), own[..., None], dims
        step_k = step_k.at[at].set(as_stored(k, step_k.dtype), mode='drop')
        step_v = step_v.at[at].set(as_stored(v, step_v.dtype), mode='drop')
        queries = two_part.by_key_head(q, k.shape[2])
        parts = [
            _path_part(queries, places, *path_kv, path_bias),
            _step_part(queries, step_k, step_v, step_bias, own[:, -1], variant.near),
        ]
        if shared:
            prefix_kv = map(decoders.of_bits, prefix_kv)
            parts.append(two_part.attend_shared(queries, *prefix_kv, prefix_bias))
        out = two_part.merge(*parts).astype(q.dtype)
        return two_part.by_position(out, width), (*cache[:2], (step_k, step_v))

    caches = list(zip(prefix, path.kv, slots.kv, strict=True))
    hidden, caches = network(jnp.maximum(tokens, 0), places.position, attend, caches)
    slots = slots.replace(hidden=hidden[:, 0], kv=[step for *_, step in caches])
    return slots, hidden[:, 1:]


def _path_part(queries, places: _Places, path_k, path_v, bias) -> two_part.Part:
    """Attention of the slots to their trees' paths; each path is read once for all its slots.

    queries [B,K,r,d] are brought to their cells, [G,K,n*r,d]; the result is gathered back. What
    cells without a slot get nobody reads. bias: f32[G or U, 1, 1 or n*r, S or a block's length].
    """
    _, kv_heads, group, d = queries.shape
    trees = path_k.shape[0]
    cell, used, candidates = places.cell, places.used, places.variant.candidates
    by_tree = queries[places.slot].reshape(trees, candidates, kv_heads, group, d).swapaxes(1, 2)
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
