"""The sizes that are compiled, few of each: calls of known tokens, paths, slots."""

import math

from rstar_jax.search.engine import batch, copies, devices, layers

# Known tokens are computed in rows of so many, see `batch`: outputs of programs have 5 to 25, steps
# 30 on average (GSM8K, 0.5B model).
ROW = 16
FEW_ROWS = (4, 2)  # on CPUs, where rows that are not used take as long as others
LONG_ROWS = 4  # of a step that is longer than most: a path is copied for each row
# Paths have room for as many tokens as one of these; for each all is compiled anew.
PATH_ROOMS = (512, 1024, 2048, 4096)
FAST_SLOTS = (64, 32, 16)  # on CPUs
# Positions of a step that every slot attends to, where longer ones are looked at for few slots.
NEAR = 64
FEWEST_SLOTS = 2
# Room behind a step's tokens for the executor's output, in the PPM's cells.
OUTPUT_ROOM = 64
# Longest step with its executor output (1,024 characters), where one shape must fit all.
OUTPUT_TOKENS = 1088


def path_room(tokens: int, longest: int) -> int:
    """Positions that paths of so many tokens are given: few different numbers.

    None is larger than for paths of `longest` tokens, unless a prompt alone is.
    """
    need, most = (x + copies.COPIED for x in (tokens, longest))
    rooms = (*[x for x in PATH_ROOMS if x < most], most)
    return next((x for x in rooms if x >= need), -(-need // PATH_ROOMS[-1]) * PATH_ROOMS[-1])


def default_slots(mesh) -> int:
    """Sequences that one device decodes at once: where its products reach their full speed."""
    return 128 if devices.on_cpu(mesh) else 256


def kept_busy(mesh, cells: int, candidates: int) -> int:
    """Slots that so many cells keep busy: others wait, so that no slot does.

    A tree of one candidate fills one slot, and a path is read for it alone. On accelerators, where
    a step of fewer slots takes as long, there are no more such trees than slots. On CPUs it is the
    nearest number of those whose products are fast (0.5B model, bfloat16: steps of 64 and 32 slots
    take 220 and 145 ms, of 66 and 40 slots 284 and 207; see models.products.features_first).
    """
    on_cpu = devices.on_cpu(mesh)
    count = cells // 2 if candidates > 1 else cells * 2 // 3 if on_cpu else cells
    if not on_cpu:
        return count
    if count >= 1.5 * FAST_SLOTS[0]:
        return count // 32 * 32
    return next((size for size in FAST_SLOTS if count >= 0.75 * size), count)


def near(mesh) -> int | None:
    """`near` of `decode.decode`: on accelerators none, whose products wait for no loop."""
    return NEAR if devices.on_cpu(mesh) else None


def fewest_rows(mesh) -> int:
    """Tokens of a decode step of which fewer take hardly less time: drafts take their place.

    Products pad to so many rows, or take as long as their weights are read. On accelerators twice
    as many would, too, but not what is done for each row: attention to its path, and sampling.
    """
    return 16 if devices.on_cpu(mesh) else 128


def drafts(rows: int, slots: int, most: int) -> list[int]:
    """Numbers of tokens to draft behind each slot's, so that a decode step has `rows` at most."""
    limit = max(0, min(most, rows // slots - 1))
    return sorted({0, *(count for count in (1, 3, 7) if count < limit), limit})


def step_cost(mesh, slots: int, blocks: int, candidates: int, drafts: int = 0) -> float:
    """What a decode step takes for each token of a slot, compared with others; a row more takes 1.

    A part of it is the same for all: the weights are read. Blocks of paths are read for all
    candidates of their trees and for all drafts. (The 0.5B model in bfloat16, 2 cores: 95, 114, 176
    and 250 ms with 8, 16, 32 and 64 rows; 16 blocks 25 ms for 8 candidates, and 16 for one with 7
    drafts. Compiled for a v5e, the bytes of a layer of the 1.5B and the 7B.) Fewer drafts are taken
    to be right than of greedy solutions, of which 1, 3 and 7 make 1.5, 1.8 and 2.1 tokens a step:
    1.33, 1.67 and 2.
    """
    width = 1 + drafts
    weights, block = (40, 0.06) if devices.on_cpu(mesh) else (256, 0.05)
    step = weights + block * blocks * candidates * width
    return (step + slots * width) / (1 + math.log2(width) / 3)


def longest_chunk(mesh, config) -> int:
    """Decode steps of a chunk in which every slot has work: then nothing is waiting for the host.

    On CPUs a step takes longer than the host needs to look.
    """
    return config.chunk * (1 if devices.on_cpu(mesh) else 4)


def call_budget(mesh) -> int:
    """Tokens of one call that computes known tokens on one device.

    On accelerators as many as take no longer to compute than the weights take to be read: few rows
    wait at a time, and a larger call would mostly be padding.
    """
    return 128 if devices.on_cpu(mesh) else 256


def call_shapes(mesh, longest: int = 0) -> list[batch.Shape]:
    """Of a device's calls that compute known tokens, the largest first.

    longest: tokens of a segment that is computed in one piece; the first call has room for it.
    """
    budget = call_budget(mesh)
    if longest > budget:
        return [(LONG_ROWS, (1 << (longest - 1).bit_length()) // LONG_ROWS)]
    few = FEW_ROWS if devices.on_cpu(mesh) else ()
    return [(rows, ROW) for rows in (budget // ROW, *few)]


def call_tokens(mesh) -> int:
    """Tokens that take as long as what every call takes, however many it computes.

    On CPUs (0.5B model, float32) a call of 16, 32 and 128 tokens takes 130, 200 and 560 ms. On
    accelerators, which read all weights, all take about the same.
    """
    return 20 if devices.on_cpu(mesh) else 1 << 20


def largest_call(mesh, config, scored: bool) -> batch.Shape:
    """Of the calls that compute known tokens; `scored`: whether steps are scored.

    A step is scored in one piece, with whatever its program printed.
    """
    return call_shapes(mesh, config.step_tokens + OUTPUT_TOKENS if scored else 0)[0]


def scored_room(step_tokens: int) -> int:
    """Positions of a PPM's cell: a step of so many tokens, and most outputs."""
    return -(-(step_tokens + OUTPUT_ROOM) // copies.COPIED) * copies.COPIED


def most_paths(slots: int) -> int:
    """Paths that a decode step needs at most: a slot's each, and half as many to take its place."""
    return slots + slots // 2


def slot_sizes(slots: int) -> list[int]:
    """Compiled numbers of slots, ascending: all, and fewer for when trees run out."""
    below = 1 << (slots - 1).bit_length() >> 1  # a power of two
    fewer = {max(FEWEST_SLOTS, below >> shift) for shift in range(5)}
    return sorted({slots, *(size for size in fewer if size < slots)})


def block_sizes(mesh, paths: int, room: int) -> list[int | None]:
    """Compiled numbers of blocks of paths that a decode step reads, ascending.

    Half of the blocks that there is room for, or less: a block is copied before it is read, so for
    more of them all paths are read where they lie (None). Each size is compiled with each number
    of slots, so there is only one where paths are short. TPUs read all paths: to cut blocks out of
    them the compiler turns all keys and values of a layer, in every step.
    """
    if devices.platform(mesh) == 'tpu':
        return [None]
    blocks = paths * (room // layers.BLOCK)
    shifts = range(1, 7) if room // layers.BLOCK > 2 else (2,)
    return [*sorted({blocks >> shift for shift in shifts} - {0}), None]
