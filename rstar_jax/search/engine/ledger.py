"""The ledger: which tokens of which tree lie where, for one model. It touches no array.

    walk(row, ...)   the tree goes on to another node. What its path lacks is brought in:
        the step just born      -> appended, from its cell
        a step kept from before -> recalled
        the prompt, where another tree of the device has or computes it -> repeated, from its path
        all else                -> segments, to be computed
    and, so that a later walk can recall them, beside the path are kept
        every step that is born -> from its cell
        a step that is left     -> from the path, if more of it was computed (a program's output)

Positions count from the start of a row's path, behind what all prompts share.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rstar_jax.search.engine.batch import Batch, Known, Shape, fits, quickest


@dataclasses.dataclass
class Segment:
    """Tokens to be computed behind the first `start` of a row's path."""

    row: int
    start: int
    tokens: list[int]


@dataclasses.dataclass
class _Row:
    """One tree: its path's nodes and where each ends in the text, and what is kept beside it.

    shared: tokens of the prompt that lie in front of the path. prompt: the others, with which the
    path begins once they are `ready`. seen: nodes of the tree that are known of. kept: node ->
    (offset, count) of `used` positions. segments: of the row, still to be computed.
    """

    shared: int = 0
    prompt: list[int] = dataclasses.field(default_factory=list)
    ready: bool = False
    path: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    seen: int = 1
    kept: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    used: int = 0
    segments: int = 0


class Ledger:
    """The ledger of one model, for all rows of a host. Rows are trees in flight.

    Attributes:
      born, left, repeated, recalled: copies from cells and from paths to what is kept, of prompts
        from path to path, and of what is kept to paths, in this order:
        (row, source's place on its device, position, source's position, count).
      appends: copies from cells to the ends of paths: (row, cell, position, count).
      segments: what is to be computed.
    """

    def __init__(
        self,
        devices: int,
        width: int,
        candidates: int,
        keeps: int,
        in_cell: Callable[[Any], int],
        prompts: bool = True,
    ):
        """Args:
        devices: with rows of their own.
        width: rows of each device.
        candidates: cells of each row.
        keeps: tokens kept of each tree; later steps of a tree that has no room are not kept.
        in_cell: how many of a new node's tokens its cell holds.
        prompts: whether a prompt is taken over from a tree that has the same.
        """
        self.devices, self.width, self.candidates = devices, width, candidates
        self.keeps, self._prompts = keeps, prompts
        self._in_cell = in_cell
        self._rows = [_Row() for _ in range(devices * width)]
        self.segments: collections.deque[Segment] = collections.deque()
        self.appends: list[tuple[int, ...]] = []
        self.born: list[tuple[int, ...]] = []
        self.left: list[tuple[int, ...]] = []
        self.recalled: list[tuple[int, ...]] = []
        self.repeated: list[tuple[int, ...]] = []
        # Rows whose prompt another row computes: (row, that row, tokens of the path).
        self._following: list[tuple[int, int, list[int]]] = []

    def start(self, row: int, shared: int = 0, seen: int = 1) -> None:
        """Begins a tree in a row.

        shared: tokens of its prompt that lie in front of all paths. seen: nodes that it has.
        """
        self._following = [entry for entry in self._following if entry[0] != row]
        old = self._rows[row]  # whose prompt may be that of the new tree as well
        ready = old.ready and old.shared == shared
        self._rows[row] = _Row(shared, old.prompt, ready, seen=seen)

    def waits(self, row: int) -> bool:
        """Whether some of the row's path is still to be computed."""
        return self._rows[row].segments > 0

    def walk(self, row: int, nodes: Sequence[Any], path: list[int]) -> int:
        """Notes what brings a row's path to `path`; returns how many tokens are to be computed.

        Args:
          row: of the tree.
          nodes: all of the tree; of each are read `tokens`, `is_open` and `candidate`.
          path: the nodes from the root to where the tree goes on.
        """
        book = self._rows[row]
        common = 0
        while common < min(len(path), len(book.path)) and book.path[common] == path[common]:
            common += 1
        onward = common == len(book.path) == len(path) - 1 and common > 0
        self._keep_steps(row, nodes, common)
        end = book.ends[common - 1] if common else 0
        fresh = [nodes[i].tokens for i in path[common:]]
        start = end - book.shared if common else 0
        rest = [token for tokens in fresh for token in tokens][0 if common else book.shared :]
        at_hand = 0
        if onward:
            at_hand = self._in_cell(nodes[path[-1]])
            if at_hand:
                self.appends.append((row, self._cell(row, nodes[path[-1]]), start, at_hand))
        elif common:
            # The last token is computed: the hidden state behind it is not kept.
            steps = [(i, len(nodes[i].tokens)) for i in path[common:]]
            at_hand = min(self._recall(row, steps, start), len(rest) - 1)
        elif rest:
            at_hand = self._begin(row, nodes[0].tokens[book.shared :], rest)
        if common and at_hand < len(rest):
            self.compute(row, start + at_hand, rest[at_hand:])
        ends = (np.cumsum([len(tokens) for tokens in fresh]) + end).tolist()
        book.path, book.ends, book.seen = list(path), book.ends[:common] + ends, len(nodes)
        return len(rest) - at_hand

    def length(self, row: int) -> int:
        """Positions that the row's path takes."""
        return self._rows[row].ends[-1] - self._rows[row].shared

    def compute(self, row: int, start: int, tokens: list[int]) -> None:
        """Asks for tokens behind the first `start` of the row's path."""
        self.segments.append(Segment(row, start, tokens))
        self._rows[row].segments += 1

    def take(
        self, shapes: Sequence[Shape], besides: int = 0, cut: bool = True
    ) -> tuple[Known, list[int]]:
        """Takes what one call computes, and the rows of which nothing is left to compute.

        shapes, besides: see `batch.quickest`. cut: see `batch.fits`.
        """
        heads: list[list[Segment]] = [[] for _ in range(self.devices)]
        for segment in itertools.islice(self.segments, 4 * len(self._rows)):
            heads[segment.row // self.width].append(segment)
        waiting = [[len(segment.tokens) for segment in of] for of in heads]
        shape = quickest(waiting, shapes, besides)
        batch, done = Batch(self.devices, shape, self.width), []
        for device, lengths in enumerate(waiting):
            for segment, count in zip(heads[device], fits(lengths, shape, cut)):
                if not count:
                    continue
                piece, segment.tokens = segment.tokens[:count], segment.tokens[count:]
                batch.put(device, segment.row % self.width, piece, segment.start)
                segment.start += count
                if not segment.tokens:
                    self.segments.remove(segment)
                    self._rows[segment.row].segments -= 1
                    self._rows[segment.row].ready = True
                    done.append(segment.row)
        return batch.known, [row for row in done if not self.waits(row)]

    def packed(self, queue: list[tuple[int, ...]]) -> Iterator[np.ndarray]:
        """Empties a queue: i32[columns,devices*A], A entries of a device at a time.

        Unused entries are 0 but for a row that does not exist.
        """
        room, columns = self.width * self.candidates, max(map(len, queue), default=0)
        by_device: list[list[tuple[int, ...]]] = [[] for _ in range(self.devices)]
        for row, *entry in queue:
            device, place = divmod(row, self.width)
            by_device[device].append((place, *entry))
        queue.clear()
        while any(by_device):
            packed = np.zeros((columns, self.devices, room), np.int32)
            packed[0] = self.width
            for device, entries in enumerate(by_device):
                some, by_device[device] = entries[:room], entries[room:]
                packed[:, device, : len(some)] = np.array(some, np.int32).reshape(-1, columns).T
            yield packed.reshape(columns, -1)

    def _cell(self, row: int, node: Any) -> int:
        return row % self.width * self.candidates + node.candidate

    def _keep_steps(self, row: int, nodes: Sequence[Any], common: int) -> None:
        """Keeps the newly born steps, and of those that the walk leaves what is not kept yet."""
        if not self.keeps:
            return
        book = self._rows[row]
        for i in range(book.seen, len(nodes)):
            if nodes[i].is_open:
                cell = self._cell(row, nodes[i])
                self._keep(self.born, row, i, cell, 0, self._in_cell(nodes[i]))
        for i in range(max(1, common), len(book.path)):
            node, (start, end) = book.path[i], book.ends[i - 1 : i + 1]
            if book.kept.get(node, (0, 0))[1] < end - start:
                place = row % self.width
                self._keep(self.left, row, node, place, start - book.shared, end - start)

    def _keep(self, queue, row: int, node: int, source: int, start: int, count: int) -> None:
        book = self._rows[row]
        if 0 < count <= self.keeps - book.used:
            queue.append((row, source, book.used, start, count))
            book.kept[node] = book.used, count
            book.used += count

    def _begin(self, row: int, prompt: list[int], tokens: list[int]) -> int:
        """Begins a path by `tokens`, of which the prompt is the first part, or all.

        Returns how many of them lie on the device, or will when another tree has computed them.
        """
        book, first = self._rows[row], row - row % self.width
        # Its own row first: there it need not be copied.
        places = (row, *range(first, first + self.width)) if self._prompts and prompt else ()
        alike = [i for i in places if self._has(i, book.shared, prompt)]
        ready = [i for i in alike if self._rows[i].ready]
        coming = [i for i in alike if self._rows[i].segments]
        book.prompt, book.ready = prompt, False
        if ready:
            self._repeat(row, ready[0], tokens)
        elif coming:
            self._following.append((row, coming[0], tokens))
            book.segments += 1  # it waits
        else:
            self.compute(row, 0, tokens)
        return min(len(prompt), len(tokens) - 1) if ready or coming else 0

    def _has(self, row: int, shared: int, prompt: list[int]) -> bool:
        return (self._rows[row].shared, self._rows[row].prompt) == (shared, prompt)

    def _repeat(self, row: int, other: int, tokens: list[int]) -> None:
        """Takes the prompt over from another row; what follows, or its last token, is computed."""
        count = len(self._rows[row].prompt)
        if other != row:
            self.repeated.append((row, other % self.width, 0, 0, count))
        at_hand = min(count, len(tokens) - 1)
        self.compute(row, at_hand, tokens[at_hand:])

    def release(self) -> None:
        """Lets the rows go on that waited for another to compute their prompt; before copies."""
        waiting, self._following = self._following, []
        for row, other, tokens in waiting:
            book, there = self._rows[row], self._rows[other]
            same = self._has(other, book.shared, book.prompt)
            if same and not there.ready and there.segments:
                self._following.append((row, other, tokens))
                continue
            book.segments -= 1
            if same and there.ready:
                self._repeat(row, other, tokens)
            else:  # the other tree has ended before
                self.compute(row, 0, tokens)

    def _recall(self, row: int, steps: list[tuple[int, int]], start: int) -> int:
        """Brings back steps (node, tokens) from `start` on, as far as they are kept: how many."""
        covered = 0
        for node, tokens in steps:
            offset, count = self._rows[row].kept.get(node, (0, 0))
            if count:
                place = row % self.width
                self.recalled.append((row, place, start + covered, offset, count))
            covered += count
            if count < tokens:
                break
        return covered
