"""The device side of generation, and the loop that decodes.

    what all prompts begin with --extend--> prefix  (keys and values, once for all trees)
    prompt, outputs --extend--> Path  (keys and values of root..cursor, once a tree)
    Path --decode--> Slots --ended--> Cells  (candidate steps: tokens, keys and values)
    Cells --append--> Path  (the child that the walk went into; nothing is computed again)
    Cells, Path --copy--> kept --copy--> Path  (steps that a later walk comes by again)
    Path, tokens --score--> PPM scores and PPM Cells

`state` has the arrays, append and copy, `layers` the model's part of a step, `prefill` extend and
score. All arrays are those of one device; `programs` maps the functions over the devices.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rstar_jax.models import decoder as decoders
from rstar_jax.search.engine import devices, drafts, layers, sampling
from rstar_jax.search.engine.layers import Variant
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
    put_row,
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
    *,
    variant: Variant,
) -> tuple[Cells, Slots, jax.Array]:
    """Decodes a chunk: some tokens in every slot, refilling slots as their steps end.

    It stops early when no cell is pending or running.

    Returns:
      The new cells and slots, and i32[1,3]: iterations done, live slots summed over them, and
      tokens sampled.
    """
    network, candidates = decoders.bind(variant.config, params), variant.candidates
    used, taken = layers.used(path, cells, variant)

    def iterate(carry):
        cells, slots, drafted, done = carry
        cells, slots = _refill(cells, slots, path, candidates, taken)
        live = slots.cell != FREE
        before = slots.length
        draw = functools.partial(_sample, network, stops, settings, variant.repetition)
        cells, slots, token, kind = draw(cells, slots, drafted, live)
        sampled = (slots.length - before).sum()
        done += jnp.stack([jnp.int32(1), live.sum(dtype=jnp.int32), sampled])
        guesses = drafts.behind(path, cells, slots, candidates, variant.ahead)
        tokens = jnp.concatenate([token[:, None], guesses], axis=1)
        slots, hidden = layers.run(network, variant, prefix, path, used, slots, tokens, live)
        cells, slots = _retire(cells, slots, live, kind)
        cells, slots = _cancel(cells, slots, candidates, settings.first_answer_only)
        guesses = jnp.where((slots.cell == FREE)[:, None], drafts.NONE, guesses)
        return cells, slots, _Drafted(guesses, hidden), done

    def working(carry):
        cells, slots, _, done = carry
        pending, live = (taken & (cells.state == PENDING)).any(), slots.cell != FREE
        wanted = jnp.where(pending | live.all(), settings.steps[1], settings.steps[0])
        return (done[0] < wanted) & (pending | live.any())

    carry = cells, slots, _Drafted.none(slots, variant.ahead), jnp.zeros(3, jnp.int32)
    cells, slots, _, done = jax.lax.while_loop(working, iterate, carry)
    return cells, slots, done[None]


@struct.dataclass
class _Drafted:
    """What is computed behind the slots' tokens, in case that it is sampled next.

    Attributes:
      tokens: i32[B,A], drafts.NONE for none.
      hidden: [B,A,D], hidden states behind them.
    """

    tokens: jax.Array
    hidden: jax.Array

    @classmethod
    def none(cls, slots: Slots, ahead: int) -> '_Drafted':
        count, width = slots.hidden.shape
        tokens = jnp.full((count, ahead), drafts.NONE, jnp.int32)
        return cls(tokens, jnp.zeros((count, ahead, width), slots.hidden.dtype))


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
    network,
    stops: Stops,
    settings: sampling.Settings,
    repetition: int,
    cells: Cells,
    slots: Slots,
    drafted: _Drafted,
    live,
):
    """Samples each live slot's next tokens, and notes them in its cell.

    One; and one more behind each that is as it was drafted.

    Returns cells, slots, and of each slot the last token and the kind of mark that it ends.
    """
    hidden = jnp.concatenate([slots.hidden[:, None], drafted.hidden], axis=1)
    count, width, _ = hidden.shape
    logits = devices.whole(network.next_logits(hidden.reshape(count * width, -1)))
    padding = -len(logits) % sampling.BLOCK
    logits = jnp.pad(logits, ((0, padding), (0, 0)))
    logits = jnp.where(jnp.arange(len(logits))[:, None] < stops.vocab, logits, -jnp.inf)
    cell = jnp.maximum(slots.cell, 0)
    keys = jnp.repeat(cells.keys[cell], width, axis=0)
    positions = slots.length[:, None] + jnp.arange(width)
    u = sampling.uniforms(keys, positions.reshape(-1))
    tokens, shares = sampling.sample(logits, u, settings)
    tokens, shares = tokens.reshape(count, width), shares.reshape(count, width)

    going, last, kinds = live, tokens[:, 0], jnp.full(count, marks.NONE, jnp.uint8)
    for i in range(width):
        token = tokens[:, i]
        mark = stops.next[slots.mark, token]
        length = slots.length + going
        over = length >= cells.tokens.shape[1]
        kind = jnp.where(over, jnp.uint8(marks.LIMIT), jnp.uint8(marks.NONE))
        runs = _runs(cells.tokens[cell], slots, token)
        if repetition:
            repeated = (runs >= repetition).any(axis=1)
            kind = jnp.where(repeated, jnp.uint8(marks.REPEATED), kind)
        kind = jnp.where(stops.kind[mark] != marks.NONE, stops.kind[mark], kind)
        at = jnp.where(going, slots.cell, cells.state.shape[0])
        cells = cells.replace(
            tokens=cells.tokens.at[at, slots.length].set(token, mode='drop'),
            length=cells.length.at[at].set(length, mode='drop'),
            likelihood=cells.likelihood.at[at].add(jnp.log(shares[:, i]), mode='drop'),
        )
        slots = slots.replace(
            length=length,
            mark=jnp.where(going, mark, slots.mark),
            runs=jnp.where(going[:, None], runs, slots.runs),
        )
        last, kinds = jnp.where(going, token, last), jnp.where(going, kind, kinds)
        if i + 1 < width:
            going &= (kind == marks.NONE) & (token == drafted.tokens[:, i])
    return cells, slots, last, kinds


def _runs(written: jax.Array, slots: Slots, token: jax.Array) -> jax.Array:
    """`Slots.runs` behind one more token; i32[B,T] `written` are those before it."""
    back = slots.length[:, None] - 1 - jnp.arange(slots.runs.shape[1])
    before = jnp.take_along_axis(written, jnp.maximum(back, 0), axis=1)
    return jnp.where((back >= 0) & (before == token[:, None]), slots.runs + 1, 0)


def _retire(cells: Cells, slots: Slots, live, kind) -> tuple[Cells, Slots]:
    """Moves steps that ended out of their slots into their cells."""
    ended = live & (kind != marks.NONE)
    which = jnp.nonzero(ended, size=ended.shape[0], fill_value=0)[0]

    def move(i, kv):
        slot = which[i]
        return put_row(kv, slots.kv, slots.cell[slot], slot, 0, slots.length[slot])

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
