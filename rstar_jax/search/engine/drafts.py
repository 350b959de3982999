"""Guesses at what a step goes on with: what followed where its end was written before.

Prompt lookup (also n-gram speculation): mathematics says again what the question, the examples and
earlier steps said. A guess costs hardly anything where a decode step has fewer rows than the device
multiplies at once, and changes no sample: the token of a place is drawn from what is in front of it
by the key of that place alone, whether it was guessed or not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rstar_jax.search.engine.state import LATEST, Cells, Path, Slots
from rstar_jax.search.nodes import HostTree

NONE = -1
LONGEST = 3  # tokens at the end that are looked for; where they are not found, fewer


def latest(tree: HostTree) -> np.ndarray:
    """i32[LATEST]: the tokens in front of the tree's cursor, NONE before the first."""
    found: list[int] = []
    for node in reversed(tree.path):
        found = tree.nodes[node].tokens[len(found) - LATEST :] + found
        if len(found) >= LATEST:
            break
    return np.array([NONE] * (LATEST - len(found)) + found, np.int32)


def behind(path: Path, cells: Cells, slots: Slots, candidates: int, count: int) -> jax.Array:
    """i32[B,count]: guesses behind each slot's step so far, NONE where there is none.

    Looked up in the latest tokens of its tree's path and in the step. Behind the last of them it
    goes on as it would if that place came again and again.
    """
    cell = jnp.maximum(slots.cell, 0)
    if not count:
        return jnp.zeros((len(cell), 0), jnp.int32)
    text = jnp.concatenate([path.latest[cell // candidates], cells.tokens[cell]], axis=1)
    last = path.latest.shape[1] + slots.length[:, None] - 1
    place = jnp.arange(text.shape[1])
    same = place < last
    long = jnp.zeros(text.shape, jnp.int32)
    for back in range(LONGEST):
        end = jnp.take_along_axis(text, last - back, axis=1)
        earlier = jnp.pad(text, ((0, 0), (back, 0)), constant_values=NONE)[:, : text.shape[1]]
        same &= earlier == end
        long += same
    best = jnp.argmax(long * text.shape[1] + place, axis=1)
    found = long.max(axis=1) > 0
    period = jnp.maximum(last - best[:, None], 1)
    guesses = jnp.take_along_axis(text, best[:, None] + 1 + jnp.arange(count) % period, axis=1)
    return jnp.where(found[:, None], guesses, NONE)
