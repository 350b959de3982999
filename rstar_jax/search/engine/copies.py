"""Copies of keys and values among paths, cells, slots and kept steps, in place."""

import jax
import jax.numpy as jnp

from rstar_jax.search.engine.state import KeysValues, Path, kv_length

COPIED = 32  # positions that are copied at once


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
