"""Steps that a tree may walk through again: where on the device their keys and values are kept.

    a step is born     -> copied from its cell, behind what its tree has kept
    the walk leaves it -> again, from the path, if more of it was computed (an executor's output)
    and comes back     -> copied into the path, instead of being computed again

What is here decides where; the copies themselves are `copies.keep` and `copies.recall`.
"""


class Kept:
    """The kept steps of one model, for all trees of a host; queues of what is to be copied.

    Attributes:
      positions: tokens kept for each tree; later steps of a tree that has no room are not kept.
      born, left, recalled: copies from cells, from paths, and into paths, to be done in this
        order: (row, source's row on the device, position, source's position, count).
    """

    def __init__(self, rows: int, trees: int, positions: int):
        """Args: rows of the host, and trees, those of each device."""
        self.positions = positions
        self._trees = trees
        self._steps: list[dict[int, tuple[int, int]]] = [{} for _ in range(rows)]
        self._used = [0] * rows
        self.born: list[tuple[int, ...]] = []
        self.left: list[tuple[int, ...]] = []
        self.recalled: list[tuple[int, ...]] = []

    def clear(self, row: int) -> None:
        """Forgets the tree that was in the row."""
        self._steps[row], self._used[row] = {}, 0

    def keep_cell(self, row: int, node: int, cell: int, count: int) -> None:
        """Keeps the first `count` tokens of a step that is in a cell."""
        self._keep(self.born, row, node, cell, 0, count)

    def keep_path(self, row: int, node: int, start: int, count: int) -> None:
        """Keeps a step that is on the row's path from `start`, where not all of it is kept."""
        if self._steps[row].get(node, (0, 0))[1] < count:
            self._keep(self.left, row, node, row % self._trees, start, count)

    def recall(self, row: int, steps: list[tuple[int, int]], start: int) -> int:
        """Brings steps back into the row's path, from position `start` on, as far as they are kept.

        Args:
          steps: node and number of tokens of each step, in the path's order.

        Returns:
          How many tokens that covers.
        """
        covered = 0
        for node, tokens in steps:
            offset, count = self._steps[row].get(node, (0, 0))
            if count:
                place = row, row % self._trees, start + covered, offset, count
                self.recalled.append(place)
            covered += count
            if count < tokens:
                break
        return covered

    def _keep(self, queue, row: int, node: int, source_row: int, start: int, count: int) -> None:
        offset = self._used[row]
        if 0 < count <= self.positions - offset:
            queue.append((row, source_row, offset, start, count))
            self._steps[row][node] = offset, count
            self._used[row] += count
