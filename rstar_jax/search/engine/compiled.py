"""Which compiled size of a decode step the next chunk takes, and which are compiled beside it.

`sizes` says which there are. One that has more room than is wanted gives the same steps, only
later: so a search goes on with one that is compiled, and a better one is compiled meanwhile in a
thread. On a TPU that takes the search no time; on a CPU the two share the cores; on a GPU XLA tries
kernels between the chunks.
"""

import collections
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax

from rstar_jax import parallel
from rstar_jax.search.config import Config
from rstar_jax.search.engine import memory, programs, sizes
from rstar_jax.search.engine.layers import BLOCK, Variant
from rstar_jax.search.engine.model import Model

# A smaller size is compiled when it would have saved so many times what compiling takes: whatever
# comes, no more is lost than a few times the best choice.
WORTH = 1.0
# Tokens by which the paths of all trees are expected to grow until others take their place.
STEPS = 64
# Shares of the paths' room, and of blocks, that are in use when what more need is compiled.
NEARLY_ROOM, NEARLY_BLOCKS = 0.75, 0.9
# Where no tree is left to begin, sizes for fewer are compiled before they are needed if the search
# has taken so many times as long as compiling one: its last trees will take long, too. Each must
# take at most so much of the time of the one in use, with so many times the blocks that as many
# cells need now.
LONG = 5.0
WORTHWHILE = 0.7
SPREAD = 1.25


class Size(NamedTuple):
    """A jitted chunk of decoding, and what its arguments' shapes follow from.

    room: positions of a path. others: a hash of all shapes that are the same in a whole search,
    and of what of a process's programs it finds. cost: by `sizes.Kind.step_cost`.
    """

    step: Any
    slots: int
    room: int
    others: int
    cost: float


class Compiled:
    """What this process has compiled, in all its searches, of several threads too.

    Attributes:
      ready: the sizes that are compiled; the longest took so many `seconds`.
      missed: of the others, the seconds that they would have saved.
      coming: the one that is being compiled. Others do not queue: a search that ends leaves no more
        than one behind.
    """

    def __init__(self):
        self.ready: set[Size] = set()
        self.seconds = 0.0
        self.missed: collections.Counter[Size] = collections.Counter()
        self.coming: tuple[Size, futures.Future] | None = None
        self._failed: set[Size] = set()
        self._lock = threading.RLock()
        self._pool = futures.ThreadPoolExecutor(1, parallel.compiled.BESIDE)

    def choose(
        self,
        possible: list[Size],
        wasted: float,
        arguments: Callable[[Size], Any],
        always: int,
    ) -> int:
        """Of sizes that will do, cheapest first, the index of one that is compiled: or `always`.

        Args:
          wasted: seconds since the chunk before was begun, if a smaller size would have done.
          arguments: gives those of a size; arrays' shapes will do.
          always: the index of the size that will do whatever comes.
        """
        with self._lock:
            self._look()
            chosen = next((i for i, size in enumerate(possible) if size in self.ready), always)
            for size in possible[:chosen]:
                self.missed[size] += wasted * (1 - size.cost / possible[chosen].cost)
                if self.missed[size] > WORTH * self.seconds:
                    self._begin(size, arguments)
            if self.coming and self.coming[0] == possible[chosen]:
                self.wait()
            return chosen

    def expect(self, possible: list[Size], arguments: Callable[[Size], Any]) -> None:
        """Has the first of some sizes compiled beside the search, unless one of them is ready."""
        with self._lock:
            self._look()
            if not self.ready.intersection(possible):
                self._begin(possible[0], arguments)

    def called(self, size: Size, seconds: float) -> None:
        """Notes that a size is compiled; its call was sent off after so many seconds."""
        with self._lock:
            if size not in self.ready:
                self.ready.add(size)
                self.seconds = max(self.seconds, seconds)

    def wait(self) -> None:
        """Waits for what is being compiled."""
        with self._lock:
            if self.coming:
                with parallel.compiled.waiting():
                    futures.wait([self.coming[1]])
                self._look()

    def _begin(self, size: Size, arguments: Callable[[Size], Any]) -> None:
        if self.coming is None and size not in self._failed:
            self.coming = size, self._pool.submit(_compile, size.step, arguments(size))

    def _look(self) -> None:
        """Takes what has been compiled since."""
        if self.coming is None or not self.coming[1].done():
            return
        (size, future), self.coming = self.coming, None
        if error := future.exception():  # whoever needs it calls it, and is told
            self._failed.add(size)
            print(f'search: no decode step of {size.slots} slots could be compiled: {error}')
        else:
            self.called(size, future.result())


COMPILED = Compiled()


def _compile(step: Any, arguments: Any) -> float:
    """Compiles a jitted function so that its first call finds it; returns the seconds it took."""
    began = time.monotonic()
    step.lower(*arguments).compile()
    seconds = time.monotonic() - began
    parallel.trim()  # what compiling took lies in arenas of its threads
    return seconds


class ChunkSizes:
    """The sizes of one search.

    `arguments` of methods: those of a decode step, as they are now. `left`: trees that still grow,
    where no other will begin; else inf.

    Attributes:
      sent: when the last chunk was sent off.
    """

    def __init__(self, config: Config, mesh, plan: memory.Plan, policy: Model, arguments: tuple):
        self._config, self._mesh, self._plan, self._policy = config, mesh, plan, policy
        self._kind = sizes.of(mesh)
        # Numbers of slots that a decode step is compiled for, and which of them is in use.
        self._slots = [plan.slots] if config.one_size else sizes.slot_sizes(plan.slots)
        self._now = len(self._slots) - 1
        self.sent = self._began = time.monotonic()
        self._smallest = True  # whether no smaller size would have done for the last chunk
        *whole, path, cells, _, _ = arguments
        same = jax.tree.leaves((whole, path.length, path.hidden, cells))
        shapes = ((x.shape, x.dtype) for x in same)
        self._others = hash((parallel.compiled.generation(), *shapes))

    def fit(self, cells: int, blocks: int, left: float, arguments: tuple) -> tuple[Size, list[int]]:
        """A size that will do for so many cells and blocks of paths on each device.

        Returns it, and the numbers of slots by way of which its own is reached: all between, as
        each change of one to another is compiled.
        """
        possible = self.enough(cells, blocks)
        most = map(max, self.most(left), (cells, blocks))
        always = possible.index(self.enough(*most)[0])
        wasted = 0.0 if self._smallest else time.monotonic() - self.sent
        shapes = functools.partial(_shapes, arguments)
        chosen = COMPILED.choose(possible, wasted, shapes, always)
        self._smallest = not chosen
        size, before = possible[chosen], self._now
        self._now = self._slots.index(size.slots)
        up = self._slots[before + 1 : self._now + 1]
        self._look_ahead(size, cells, blocks, left, shapes)
        return size, up or self._slots[self._now : before][::-1]

    def expect(self, left: float, arguments: tuple) -> None:
        """Has what paths need, as they are now, compiled beside the search."""
        COMPILED.expect(self.enough(*self.most(left)), functools.partial(_shapes, arguments))

    def most(self, left: float) -> tuple[int, int]:
        """Cells and blocks that the trees in flight, and those that follow them, may need."""
        trees, tokens = min(left, self._plan.trees), self._policy.needed + STEPS
        return min(trees * self._config.candidates, self._plan.slots), trees * _blocks(tokens)

    def enough(self, cells: int, blocks: int, room: int = 0) -> list[Size]:
        """The sizes that will do for so many cells and blocks of paths, the cheapest first.

        room: positions of a path; 0, what they need now.
        """
        room = room or self._room
        counts = [None]
        if not self._config.one_size:
            counts = self._kind.block_sizes(self._plan.trees, room)
        enough = [
            self._size(slots, held, room)
            for slots, held in itertools.product(self._slots, counts)
            if slots >= min(cells, self._plan.slots) and (held is None or held >= blocks)
        ]
        return sorted(enough, key=lambda size: size.cost)

    @property
    def _room(self) -> int:
        return sizes.path_room(self._policy.needed, self._config.path_tokens)

    def _look_ahead(
        self, now: Size, cells: int, blocks: int, left: float, shapes: Callable
    ) -> None:
        """Has what will be needed compiled before it is: for longer paths, and for fewer trees."""
        longest, (slots, most) = self._config.path_tokens, self.most(left)
        COMPILED.expect(self.enough(slots, int(blocks / NEARLY_BLOCKS)), shapes)
        if self._policy.needed > NEARLY_ROOM * now.room and now.room < longest:
            COMPILED.expect(self.enough(slots, most, sizes.path_room(now.room, longest)), shapes)
        taken = time.monotonic() - self._began
        if left == math.inf or taken < LONG * COMPILED.seconds:
            return
        for slots in reversed(self._slots[: self._now]):
            enough = self.enough(slots, math.ceil(SPREAD * blocks / cells * slots))
            if cheap := [size for size in enough if size.cost <= WORTHWHILE * now.cost]:
                COMPILED.expect(cheap, shapes)
                break

    def _size(self, slots: int, blocks: int | None, room: int) -> Size:
        """A chunk of decoding that attends to so many blocks of paths; None: to all."""
        config, plan = self._config, self._plan
        read = plan.trees * _blocks(room) if blocks is None else blocks
        cost, ahead = min(
            (self._kind.step_cost(slots, read, config.candidates, drafts), drafts)
            for drafts in sizes.drafts(plan.rows, slots, config.drafts)
        )
        variant = Variant(
            self._policy.config,
            config.candidates,
            blocks,
            self._kind.near,
            self._policy.mixed,
            config.repetition,
            ahead,
        )
        return Size(programs.DECODE(self._mesh, variant=variant), slots, room, self._others, cost)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def _shapes(arguments: tuple, size: Size) -> tuple:
    """The shapes of a decode step's arguments in another size."""

    def like(arrays, *first):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (*first, *x.shape[len(first) :]), x.dtype, sharding=x.sharding
            ),
            arrays,
        )

    *whole, path, cells, slots, settings = arguments
    of_path = *path.kv[0][0].shape[:2], size.room
    path = like(path).replace(kv=like(path.kv, *of_path))
    devices = slots.cell.sharding.mesh.shape['data']
    return *like(whole), path, like(cells), like(slots, devices * size.slots), settings
