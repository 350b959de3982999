"""The sizes that are compiled, few of each: slots, paths, their blocks, calls of known tokens.

What a kind of device is fast at is one table, `of(mesh)`; all else follows from that.
"""

import dataclasses
import math

from rstar_jax.search.engine import batch, devices
from rstar_jax.search.engine.layers import BLOCK
from rstar_jax.search.engine.state import COPIED

# Known tokens are computed in rows of so many, see `batch`: outputs of programs have 5 to 25, steps
# 30 on average (GSM8K, 0.5B model).
ROW = 16
LONG_ROWS = 4  # of a step that is longer than most: a path is copied for each row
# Paths have room for as many tokens as one of these; for each all is compiled anew.
PATH_ROOMS = (512, 1024, 2048, 4096)
FEWEST_SLOTS = 2
# Room behind a step's tokens for the executor's output, in the PPM's cells.
OUTPUT_ROOM = 64
# Longest step with its executor output (1,024 characters), where one shape must fit all.
OUTPUT_TOKENS = 1088


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of device, and the sizes that it is fast with.

    Attributes:
      slots: sequences decoded at once: where its products reach their full speed.
      fast: fewer slots with which they do, too; none where a step of fewer takes as long.
      rows: tokens of a decode step of which fewer take hardly less time: drafts take their place.
        Products pad to so many, or take as long as their weights are read. On accelerators twice as
        many would, too, but not what is done for each row: attention to its path, and sampling.
      near: see `layers.Variant`; on accelerators None, whose products wait for no loop.
      longer: a chunk in which every slot has work, and nothing waits for the host, has so many
        times the steps. On CPUs a step takes longer than the host needs to look.
      weights, block: time that a decode step takes to read the weights, and a block of a path for a
        token of its tree. A row more takes 1. (The 0.5B model in bfloat16, 2 cores: 95, 114, 176
        and 250 ms with 8, 16, 32 and 64 rows; 16 blocks 25 ms for 8 candidates, and 16 for one with
        7 drafts. Compiled for a v5e, the bytes of a layer of the 1.5B and the 7B.)
      blocks: whether blocks may be cut out of paths. On TPUs the compiler turns all keys and values
        of a layer for that, in every step.
      call: tokens of one call that computes known tokens. On accelerators as many as take no longer
        to compute than the weights take to be read: few rows wait at a time, and a larger call
        would mostly be padding.
      few: fewer rows of such a call, where those that are not used take as long as others.
      besides: tokens that take as long as what every such call takes, however many it computes. On
        CPUs (0.5B model, float32) one of 16, 32 and 128 tokens takes 130, 200 and 560 ms; on
        accelerators, which read all weights, all take about the same.
    """

    slots: int
    fast: tuple[int, ...]
    rows: int
    near: int | None
    longer: int
    weights: int
    block: float
    blocks: bool
    call: int
    few: tuple[int, ...]
    besides: int

    def kept_busy(self, cells: int, candidates: int) -> int:
        """Slots that so many cells keep busy: others wait, so that no slot does.

        A tree of one candidate fills one slot, and a path is read for it alone. On accelerators
        there are no more such trees than slots. On CPUs it is the nearest number of those whose
        products are fast (0.5B model, bfloat16: steps of 64 and 32 slots take 220 and 145 ms, of 66
        and 40 slots 284 and 207; see models.products.features_first).
        """
        if not self.fast:
            return cells // 2 if candidates > 1 else cells
        count = cells // 2 if candidates > 1 else cells * 2 // 3
        if count >= 1.5 * self.fast[0]:
            return count // 32 * 32
        return next((size for size in self.fast if count >= 0.75 * size), count)

    def step_cost(self, slots: int, blocks: int, candidates: int, drafts: int = 0) -> float:
        """What a decode step takes for each token of a slot, compared with others.

        Blocks of paths are read for all candidates of their trees and for all drafts. Fewer drafts
        are taken to be right than of greedy solutions, of which 1, 3 and 7 make 1.5, 1.8 and 2.1
        tokens a step: 1.33, 1.67 and 2.
        """
        width = 1 + drafts
        step = self.weights + self.block * blocks * candidates * width
        return (step + slots * width) / (1 + math.log2(width) / 3)

    def block_sizes(self, paths: int, room: int) -> list[int | None]:
        """Compiled numbers of blocks of paths that a decode step reads, ascending.

        Half of the blocks that there is room for, or less: a block is copied before it is read, so
        for more of them all paths are read where they lie (None). Each size is compiled with each
        number of slots, so there is only one where paths are short.
        """
        if not self.blocks:
            return [None]
        held = paths * (room // BLOCK)
        shifts = range(1, 7) if room // BLOCK > 2 else (2,)
        return [*sorted({held >> shift for shift in shifts} - {0}), None]

    def call_shapes(self, longest: int = 0) -> list[batch.Shape]:
        """Of a device's calls that compute known tokens, the largest first.

        longest: tokens of a segment that is computed in one piece; the first call has room for it.
        """
        if longest > self.call:
            return [(LONG_ROWS, (1 << (longest - 1).bit_length()) // LONG_ROWS)]
        return [(rows, ROW) for rows in (self.call // ROW, *self.few)]

    def whole_call(self, waiting: list[list[int]], least: int = 0) -> batch.Shape:
        """The next call for segments of which each is computed in one piece.

        waiting: their lengths, of each device, the longest first. least: tokens that the longest
        counts as.
        """
        longest = max(least, *(max(lengths, default=0) for lengths in waiting))
        roomy = [x for x in self.call_shapes(longest) if math.prod(x) >= longest]
        return batch.quickest(waiting, roomy, self.besides)

    def largest_call(self, step_tokens: int, scored: bool) -> batch.Shape:
        """Of the calls that compute known tokens; `scored`: whether steps are scored.

        A step is scored in one piece, with whatever its program printed.
        """
        return self.call_shapes(step_tokens + OUTPUT_TOKENS if scored else 0)[0]


CPU = Kind(
    slots=128,
    fast=(64, 32, 16),
    rows=16,
    near=64,
    longer=1,
    weights=40,
    block=0.06,
    blocks=True,
    call=128,
    few=(4, 2),
    besides=20,
)
GPU = Kind(
    slots=256,
    fast=(),
    rows=128,
    near=None,
    longer=4,
    weights=256,
    block=0.05,
    blocks=True,
    call=256,
    few=(),
    besides=1 << 20,
)
TPU = dataclasses.replace(GPU, blocks=False)


def of(mesh) -> Kind:
    """What a mesh's devices are fast with."""
    return {'cpu': CPU, 'tpu': TPU}.get(devices.platform(mesh), GPU)


def path_room(tokens: int, longest: int) -> int:
    """Positions that paths of so many tokens are given: few different numbers.

    None is larger than for paths of `longest` tokens, unless a prompt alone is.
    """
    need, most = tokens + COPIED, longest + COPIED
    rooms = (*[x for x in PATH_ROOMS if x < most], most)
    return next((x for x in rooms if x >= need), -(-need // PATH_ROOMS[-1]) * PATH_ROOMS[-1])


def scored_room(step_tokens: int) -> int:
    """Positions of a PPM's cell: a step of so many tokens, and most outputs."""
    return -(-(step_tokens + OUTPUT_ROOM) // COPIED) * COPIED


def most_paths(slots: int) -> int:
    """Paths that a decode step needs at most: a slot's each, and half as many to take its place."""
    return slots + slots // 2


def slot_sizes(slots: int) -> list[int]:
    """Compiled numbers of slots, ascending: all, and fewer for when trees run out."""
    below = 1 << (slots - 1).bit_length() >> 1  # a power of two
    fewer = {max(FEWEST_SLOTS, below >> shift) for shift in range(5)}
    return sorted({slots, *(size for size in fewer if size < slots)})


def drafts(rows: int, slots: int, most: int) -> list[int]:
    """Numbers of tokens to draft behind each slot's, so that a decode step has `rows` at most."""
    limit = max(0, min(most, rows // slots - 1))
    return sorted({0, *(count for count in (1, 3, 7) if count < limit), limit})
