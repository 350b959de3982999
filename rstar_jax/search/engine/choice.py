"""Which size of a decode step the next chunk takes, and which ones are compiled ahead.

`sizes` says which ones there are, `compiler` which of them are compiled.
"""

import functools
import itertools
import math
import time

import jax

from rstar_jax.parallel import compiled
from rstar_jax.search.config import Config
from rstar_jax.search.engine import compiler, memory, programs, sizes
from rstar_jax.search.engine.compiler import Size
from rstar_jax.search.engine.decode import BLOCK
from rstar_jax.search.engine.model import Model

NEARLY = 0.75  # of what paths reach is what the longest takes when more is made ready
# Where no tree is left to begin, sizes for fewer are compiled before they are needed if the search
# has taken so many times as long as compiling one: its last trees will take long, too.
LONG = 5.0


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
        reach = self._reach
        possible = self._enough(reach, cells, blocks)
        most = map(max, self._most(reach, left), (cells, blocks))
        always = possible.index(self._enough(reach, *most)[0])
        wasted = 0.0 if self._smallest else time.monotonic() - self.sent
        shapes = functools.partial(_shapes, arguments)
        chosen = compiler.COMPILER.choose(possible, wasted, shapes, always)
        self._smallest = not chosen
        before, self._now = self._now, self._slots.index(possible[chosen].slots)
        up = self._slots[before + 1 : self._now + 1]
        return possible[chosen], up or self._slots[self._now : before][::-1]

    def look_ahead(self, left: float, arguments: tuple) -> None:
        """Has what will be needed compiled before it is.

        That is, what paths need that outgrow their reach, and what fewer trees do.
        """
        reach, longest = self._reach, self._config.path_tokens
        if self._policy.needed > NEARLY * reach and reach < longest:
            self.expect(left, arguments, sizes.reach(reach + 1, longest))
        taken = time.monotonic() - self._began
        if left == math.inf or taken < LONG * compiler.COMPILER.seconds:
            return
        shapes = functools.partial(_shapes, arguments)
        for slots in reversed(self._slots[: self._now]):
            enough = self._enough(reach, slots, min(left, slots) * _blocks(reach))
            compiler.COMPILER.expect([one for one in enough if one.slots == slots], shapes)

    @property
    def _reach(self) -> int:
        """Tokens that paths are expected to have."""
        return sizes.reach(self._policy.needed, self._config.path_tokens)

    def expect(self, left: float, arguments: tuple, reach: int = 0) -> None:
        """Has what paths of this reach, or as they are now, need compiled beside the search."""
        reach = reach or self._reach
        enough = self._enough(reach, *self._most(reach, left))
        compiler.COMPILER.expect(enough, functools.partial(_shapes, arguments))

    def _most(self, reach: int, left: float) -> tuple[int, int]:
        """Cells and blocks that the trees in flight, and those that follow them, may need."""
        trees = min(left, self._plan.trees)
        return min(trees * self._config.candidates, self._plan.slots), trees * _blocks(reach)

    def _enough(self, reach: int, cells: int, blocks: int) -> list[Size]:
        """The sizes that will do for so many cells and blocks of paths, smallest first."""
        room = sizes.path_room(reach, self._config.path_tokens)
        counts = [None]
        if not self._config.one_size:
            counts = sizes.block_sizes(self._plan.trees, room)
        return [
            self._size(slots, held, room)
            for slots, held in itertools.product(self._slots, counts)
            if slots >= min(cells, self._plan.slots) and (held is None or held >= blocks)
        ]

    def _size(self, slots: int, blocks: int | None, room: int) -> Size:
        """A chunk of decoding that attends to so many blocks of paths; None: to all."""
        step = programs.DECODE(
            self._mesh,
            config=self._policy.config,
            candidates=self._config.candidates,
            blocks=blocks,
            near=sizes.near(self._mesh),
            mixed=self._policy.mixed,
            repetition=self._config.repetition,
        )
        return Size(step, slots, room, self._others)


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
