"""The cells as the host knows them: which are to be opened, decoded, or have ended.

A cell is one candidate of one tree, see `state`; here they are those of all devices, in rows.
"""

from typing import Any

import numpy as np

from rstar_jax.search.engine import drafts, sampling, state
from rstar_jax.search.nodes import HostTree


class Board:
    """The cells of all trees in flight.

    Attributes:
      known: u8[C], their states when they were last seen.
      since: i64[C], the first chunk that each is opened for.
      opened: bool[C], those that the next chunk opens, with `keys` u32[C,2].
      expansions: i32[rows], of each tree. Those with few go first: the last trees shall end
        together, not one by one.
      latest: i32[rows,LATEST], what drafts are looked up in.
    """

    def __init__(self, devices: int, width: int, candidates: int):
        self.devices, self.rows, self.candidates = devices, devices * width, candidates
        count = self.rows * candidates
        self.known = np.zeros(count, np.uint8)
        self.since = np.zeros(count, np.int64)
        self.opened = np.zeros(count, bool)
        self.keys = np.zeros((count, 2), np.uint32)
        self.expansions = np.zeros(self.rows, np.int32)
        self.latest = np.full((self.rows, state.LATEST), drafts.NONE, np.int32)

    def open(self, row: int, tree: HostTree) -> None:
        """Has the candidates of a tree's cursor sampled."""
        cells, place = slice(row * self.candidates, (row + 1) * self.candidates), tree.cursor.tag
        self.opened[cells] = True
        self.keys[cells] = [
            sampling.key_of(*tree.seeds, place, candidate) for candidate in range(self.candidates)
        ]
        self.latest[row] = drafts.latest(tree)
        self.expansions[row] += 1

    def take_opened(self, chunk: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """What `state.open_cells` is given for a chunk, and the latest tokens of all rows.

        Copies, as the device may read the host's arrays later than they are changed.
        """
        turn = np.repeat(self.expansions, self.candidates)
        opened = self.opened.copy()
        self.known[opened] = state.PENDING
        self.since[opened] = chunk
        self.opened[:] = False
        return (opened, self.keys.copy(), turn), self.latest.copy()

    def ended(self, chunk: int, seen: np.ndarray) -> list[int]:
        """Notes the cells' states behind a chunk; returns those that have ended since."""
        here = self.since <= chunk  # others are opened for a later chunk
        over = here & (seen >= state.DONE) & (self.known < state.DONE)
        self.known = np.where(here, seen, self.known)
        return np.nonzero(over)[0].tolist()

    @property
    def busy(self) -> np.ndarray:
        """bool[C]: those that are being decoded, or wait for a slot."""
        return (self.known == state.PENDING) | (self.known == state.RUNNING)

    @property
    def needed(self) -> int:
        """Busy cells of the device with the most."""
        return int(self.of_devices(self.busy).max())

    @property
    def wanted(self) -> int:
        """Cells that are to be decoded, of the device with the fewest."""
        return int(self.of_devices(self.busy | self.opened).min())

    def of_devices(self, cells: Any) -> np.ndarray:
        """How many of bool[C] cells are on each device."""
        return cells.reshape(self.devices, -1).sum(axis=1)
