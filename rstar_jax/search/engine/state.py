"""The arrays of generation on one device: paths, cells and slots.

A *cell* is one candidate of one tree, cell = tree * n + candidate. A *slot* is one row of the
decode batch and belongs to no tree: it takes any pending cell, and the next one as soon as that
ends. Keys and values are lists, one pair of arrays a layer; positions are the third axis.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

EMPTY, PENDING, RUNNING, DONE, CANCELLED = range(5)
FREE = -1
PERIODS = 32  # the longest text, in tokens, that is found to repeat itself
LATEST = 256  # tokens of a path that drafts are looked up in
COPIED = 32  # positions that are copied at once
KeysValues = list[tuple[jax.Array, jax.Array]]


@struct.dataclass
class Path:
    """The current path (prompt, then steps down to the cursor) of each of G trees.

    Attributes:
      kv: per layer, keys and values [G,K,S,d], without those of the prefix.
      prefix: i32[G], tokens of the prefix that are in front: all of them, or none.
      length: i32[G], tokens in the path behind the prefix.
      hidden: [G,D], hidden state behind the path's last token: what the next token comes from.
      latest: i32[G,LATEST], its last tokens, those of the prefix included; -1 before the first.
    """

    kv: KeysValues
    prefix: jax.Array
    length: jax.Array
    hidden: jax.Array
    latest: jax.Array


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
      runs: i32[B,P], how many tokens in a row were the same as those 1, ... P before them.
    """

    kv: KeysValues
    hidden: jax.Array
    cell: jax.Array
    length: jax.Array
    mark: jax.Array
    runs: jax.Array


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


def kv_length(kv: KeysValues) -> int:
    """Positions that there is room for."""
    return kv[0][0].shape[2]


def empty_path(config, trees: int, positions: int, dtype) -> Path:
    return Path(
        kv=empty_kv(config, trees, positions, dtype),
        prefix=jnp.zeros((trees,), jnp.int32),
        length=jnp.zeros((trees,), jnp.int32),
        hidden=jnp.zeros((trees, config.embed_dim), dtype),
        latest=jnp.full((trees, LATEST), -1, jnp.int32),
    )


def empty_cells(config, cells: int, positions: int, dtype) -> Cells:
    return Cells(
        kv=empty_kv(config, cells, positions, dtype),
        hidden=jnp.zeros((cells, config.embed_dim), dtype),
        tokens=jnp.zeros((cells, positions), jnp.int32),
        length=jnp.zeros((cells,), jnp.int32),
        likelihood=jnp.zeros((cells,), jnp.float32),
        state=jnp.full((cells,), EMPTY, jnp.uint8),
        end=jnp.zeros((cells,), jnp.uint8),
        keys=jnp.zeros((cells, 2), jnp.uint32),
        turn=jnp.zeros((cells,), jnp.int32),
    )


def empty_slots(config, slots: int, positions: int, dtype) -> Slots:
    return Slots(
        kv=empty_kv(config, slots, positions, dtype),
        hidden=jnp.zeros((slots, config.embed_dim), dtype),
        cell=jnp.full((slots,), FREE, jnp.int32),
        length=jnp.zeros((slots,), jnp.int32),
        mark=jnp.zeros((slots,), jnp.uint8),
        runs=jnp.zeros((slots, PERIODS), jnp.int32),
    )


def as_stored(values: jax.Array, dtype) -> jax.Array:
    """Keys or values in the dtype of a cache, see `devices.shapes`; read by `decoder.of_bits`."""
    if values.dtype != dtype and dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(values.astype(jnp.bfloat16), dtype)
    return values.astype(dtype)


def open_cells(cells: Cells, opened: jax.Array, keys: jax.Array, turn: jax.Array) -> Cells:
    """Marks the cells of bool[C] `opened` as pending, with u32[C,2] keys and i32[C] turns."""
    return cells.replace(
        state=jnp.where(opened, jnp.uint8(PENDING), cells.state),
        length=jnp.where(opened, 0, cells.length),
        likelihood=jnp.where(opened, 0.0, cells.likelihood),
        keys=jnp.where(opened[:, None], keys, cells.keys),
        turn=jnp.where(opened, turn, cells.turn),
    )


def look(cells: Cells) -> tuple[jax.Array, ...]:
    """Copies of what the host reads of cells, as the next chunk takes their memory over."""
    seen = cells.state, cells.end, cells.length, cells.tokens, cells.likelihood
    return jax.tree.map(jnp.copy, seen)


def pack(x: jax.Array, cell: jax.Array, *, size: int) -> jax.Array:
    """An array [B,...] of `Slots` for `size` of them: those with a cell (i32[B]), then zeros."""
    chosen = x[jnp.argsort(cell == FREE, stable=True)[:size]]
    return jnp.pad(chosen, ((0, size - chosen.shape[0]), *[(0, 0)] * (x.ndim - 1)))


def resize(slots: Slots, *, size: int) -> Slots:
    """Packs the live slots into `size` slots; there must be no more than that."""
    packed = jax.tree.map(functools.partial(pack, cell=slots.cell, size=size), slots)
    live = jnp.arange(size) < (slots.cell != FREE).sum()
    return packed.replace(cell=jnp.where(live, packed.cell, FREE))


def grow(stored: jax.Array, *, positions: int) -> jax.Array:
    """Returns keys or values [G,K,S,d] with room for `positions` tokens, no fewer than before."""
    return jnp.pad(stored, ((0, 0), (0, 0), (0, positions - stored.shape[2]), (0, 0)))


def first_path(path: Path, *, positions: int) -> KeysValues:
    """Returns the first `positions` keys and values of the first path, [1,K,P,d] per layer."""
    return jax.tree.map(lambda x: x[:1, :, :positions], path.kv)


def append(path: Path, cells_kv: KeysValues, hidden, rows, cells, starts, counts) -> Path:
    """Makes finished steps part of their trees' paths, from the keys and values at hand.

    Args:
      hidden: [C,D] of the cells, or None where the path's hidden state is of no use (PPM).
      rows, cells, starts, counts: i32[A]; path `rows[i]` becomes its first `starts[i]` tokens
        and then the first `counts[i]` of cell `cells[i]`. Entries in use come first; the others
        name a path that does not exist.
    """

    sources = cells, starts, jnp.zeros_like(starts), counts
    new = {
        'kv': copy(path.kv, cells_kv, rows, *sources),
        'length': path.length.at[rows].set(starts + counts, mode='drop'),
    }
    if hidden is not None:
        last = hidden[jnp.minimum(cells, hidden.shape[0] - 1)]
        new['hidden'] = path.hidden.at[rows].set(last, mode='drop')
    return path.replace(**new)


def copy(
    into: KeysValues, source: KeysValues | None, rows, source_rows, offsets, source_offsets, counts
) -> KeysValues:
    """Copies steps, or parts of paths, to where a later walk can recall them from, or back.

    One after another: what was copied may be copied on.

    Args:
      into: per layer, keys and values [G,K,M,d].
      source: per layer, keys and values [R,K,S,d]; None, `into` itself.
      rows, source_rows: i32[A]. Entries in use come first; the others have a count of 0.
      offsets, source_offsets, counts: i32[A], positions.
    """

    def write(i, into):
        place = rows[i], source_rows[i], offsets[i], counts[i], source_offsets[i]
        return put_row(into, source, *place)

    return jax.lax.fori_loop(0, (counts > 0).sum(), write, into)


def put_row(
    into: KeysValues, source: KeysValues | None, row, source_row, offset, count, source_offset=0
) -> KeysValues:
    """Copies `count` positions of a row of `source` into a row of `into`, at `offset`.

    source: None, `into` itself.
    In blocks: up to COPIED - 1 positions behind the last are overwritten as well, and looked at
    where they do not begin at 0.
    """
    length = kv_length(source or into)
    block = min(COPIED, length)

    def move(i, into):
        start = jnp.minimum(source_offset + i * block, length - block)

        def put(target, values):
            _, heads, _, dim = values.shape
            at = (source_row, 0, start, 0)
            values = jax.lax.dynamic_slice(values, at, (1, heads, block, dim))
            at = (row, 0, offset + start - source_offset, 0)
            return jax.lax.dynamic_update_slice(target, values, at)

        return jax.tree.map(put, into, source or into)

    return jax.lax.fori_loop(0, (count + block - 1) // block, move, into)
