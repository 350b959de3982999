"""Which size of a decode step the next chunk takes, and which ones are compiled ahead.

`sizes` says which ones there are, `compiler` which of them are compiled.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable

import jax

from rstar_jax.parallel import compiled
from rstar_jax.search.config import Config
from rstar_jax.search.engine import compiler, memory, programs, sizes
from rstar_jax.search.engine.compiler import Size
from rstar_jax.search.engine.layers import BLOCK
from rstar_jax.search.engine.model import Model

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


class Choice:
    """Of one search.

    `arguments` of methods: those of a decode step, as they are now. `left`: trees that still grow,
    where no other will begin; else inf.

    Attributes:
      sent: when the last chunk was sent off.
    """

    def __init__(self, config: Config, mesh, plan: memory.Plan, policy: Model, arguments: tuple):
        self._config, self._mesh, self._plan, self._policy = config, mesh, plan, policy
        # Numbers of slots that a decode step is compiled for, and which of them is in use.
        self._slots = [plan.slots] if config.one_size else sizes.slot_sizes(plan.slots)
        self._now = len(self._slots) - 1
        self.sent = self._began = time.monotonic()
        self._smallest = True  # whether no smaller size would have done for the last chunk
        *whole, path, cells, _, _, _ = arguments
        same = jax.tree.leaves((whole, path.length, path.hidden, cells))
        self._others = hash((compiled.generation(), *((x.shape, x.dtype) for x in same)))

    def fit(self, cells: int, blocks: int, left: float, arguments: tuple) -> tuple[Size, list[int]]:
        """A size that will do for so many cells and blocks of paths on each device.

        Returns it, and the numbers of slots by way of which its own is reached: all between, as
        each change of one to another is compiled.
        """
        possible = self._enough(self._room, cells, blocks)
        most = map(max, self._most(left), (cells, blocks))
        always = possible.index(self._enough(self._room, *most)[0])
        wasted = 0.0 if self._smallest else time.monotonic() - self.sent
        shapes = functools.partial(_shapes, arguments)
        chosen = compiler.COMPILER.choose(possible, wasted, shapes, always)
        self._smallest = not chosen
        before, self._now = self._now, self._slots.index(possible[chosen].slots)
        up = self._slots[before + 1 : self._now + 1]
        self._look_ahead(possible[chosen], cells, blocks, left, shapes)
        return possible[chosen], up or self._slots[self._now : before][::-1]

    def _look_ahead(
        self, now: Size, cells: int, blocks: int, left: float, shapes: Callable
    ) -> None:
        """Has what will be needed compiled before it is: for longer paths, and for fewer trees."""
        room, longest = self._room, self._config.path_tokens
        slots, most = self._most(left)
        compiler.COMPILER.expect(self._enough(room, slots, int(blocks / NEARLY_BLOCKS)), shapes)
        if self._policy.needed > NEARLY_ROOM * room and room < longest:
            larger = sizes.path_room(room, longest)
            compiler.COMPILER.expect(self._enough(larger, slots, most), shapes)
        taken = time.monotonic() - self._began
        if left == math.inf or taken < LONG * compiler.COMPILER.seconds:
            return
        for slots in reversed(self._slots[: self._now]):
            enough = self._enough(room, slots, math.ceil(SPREAD * blocks / cells * slots))
            if cheap := [size for size in enough if size.cost <= WORTHWHILE * now.cost]:
                compiler.COMPILER.expect(cheap, shapes)
                break

    @property
    def _room(self) -> int:
        """Positions of a path."""
        return sizes.path_room(self._policy.needed, self._config.path_tokens)

    def expect(self, left: float, arguments: tuple) -> None:
        """Has what paths need, as they are now, compiled beside the search."""
        enough = self._enough(self._room, *self._most(left))
        compiler.COMPILER.expect(enough, functools.partial(_shapes, arguments))

    def _most(self, left: float) -> tuple[int, int]:
        """Cells and blocks that the trees in flight, and those that follow them, may need."""
        trees, tokens = min(left, self._plan.trees), self._policy.needed + STEPS
        return min(trees * self._config.candidates, self._plan.slots), trees * _blocks(tokens)

    def _enough(self, room: int, cells: int, blocks: int) -> list[Size]:
        """The sizes that will do for so many cells and blocks of paths, the cheapest first."""
        counts = [None]
        if not self._config.one_size:
            counts = sizes.block_sizes(self._mesh, self._plan.trees, room)
        enough = [
            self._size(slots, held, room)
            for slots, held in itertools.product(self._slots, counts)
            if slots >= min(cells, self._plan.slots) and (held is None or held >= blocks)
        ]
        return sorted(enough, key=lambda size: size.cost)

    def _size(self, slots: int, blocks: int | None, room: int) -> Size:
        """A chunk of decoding that attends to so many blocks of paths; None: to all."""
        read = self._plan.trees * _blocks(room) if blocks is None else blocks
        cost, drafts = min(
            (sizes.step_cost(self._mesh, slots, read, self._config.candidates, drafts), drafts)
            for drafts in sizes.drafts(self._plan.rows, slots, self._config.drafts)
        )
        step = programs.DECODE(
            self._mesh,
            config=self._policy.config,
            candidates=self._config.candidates,
            blocks=blocks,
            near=sizes.near(self._mesh),
            mixed=self._policy.mixed,
            repetition=self._config.repetition,
            ahead=drafts,
        )
        return Size(step, slots, room, self._others, cost)


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

    *whole, path, cells, slots, settings, steps = arguments
    of_path = *path.kv[0][0].shape[:2], size.room
    path = like(path).replace(kv=like(path.kv, *of_path))
    devices = slots.cell.sharding.mesh.shape['data']
    return *like(whole), path, like(cells), like(slots, devices * size.slots), settings, steps
